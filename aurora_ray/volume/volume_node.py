"""One storage node as one volume sees it: calls with plain arguments and answers, all of that volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.errors import UnknownVolumeError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, Truncation
from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.node_client import NodeClient
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.origin import GroupPlace
from aurora_ray.volume.recovery import BatchInfo, SegmentState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aurora_ray.rpc.calls import Replies
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.rpc.stream_client import Receiver, StreamCall
    from aurora_ray.volume.origin import ForkPoint, Target
    from aurora_ray.volume.recovery import Truncate
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress


class VolumeNode:
    """A client of one storage node for one volume. What calls raise is told in `rpc/node_client.py`."""

    def __init__(self, node: NodeAddress, volume: bytes, abroad: Abroad = HOME) -> None:
        """`abroad`: how the node's fleet is reached, if it is not ours."""
        self.node = node
        self._volume = volume
        self._client = NodeClient(node.node_id, node.address, abroad)

    async def close(self) -> None:
        """Ends all calls."""
        await self._client.close()

    async def append(self, receiver: Receiver) -> StreamCall:
        """Opens an Append stream. Raises StorageError."""
        return await self._client.append(receiver)

    async def create_segments(
        self, page_size: int, groups: Iterable[int], members: Iterable[str], timeout_s: float, lineage: Lineage = ROOT
    ) -> None:
        """Creates this node's copies of `groups`, once it can be reached; harmless if they are there."""
        request = pb.CreateSegmentsRequest(
            volume=self._volume,
            page_size=page_size,
            groups=list(groups),
            members=list(members),
            lineage=pb.Lineage(**lineage._asdict()),
        )
        await self._client.create_segments(request, timeout_s, until_ready=True)

    async def fork(self, parent: bytes, point: ForkPoint, placement: GroupPlacement, timeout_s: float) -> None:
        """Makes this node's copy of a group, out of that of `parent`; harmless if it is there.

        Raises StaleSegmentError, NotCompleteError, OutOfRangeError, UnknownVolumeError where the parent's will not do.
        """
        await self._client.fork(fork_request(self._volume, parent, point, placement, timeout_s), timeout_s)

    async def locate(self, target: Target, timeout_s: float) -> list[GroupPlace]:
        """Where the log of each group stands at an LSN or a time."""
        request = pb.LocateRequest(volume=self._volume, lsn=target.lsn, time_us=target.time_us)
        return decode_places(await self._client.locate(request, timeout_s))

    async def set_peers(self, addresses: Mapping[str, str], timeout_s: float) -> None:
        """Tells the node where the others are (node id -> host:port)."""
        await self._client.set_peers(addresses, timeout_s)

    async def hold(self, holder: str, lsn: int, lease_s: float, timeout_s: float) -> float:
        """Keeps what can be read as of `lsn` and later, until the lease ends or the holder names another LSN; 0 s: no
        longer. For how many seconds it is granted. Raises OutOfRangeError if it is gone."""
        return await self._client.set_read_point(self._volume, holder, lsn, lease_s, timeout_s)

    async def state(self, timeout_s: float) -> list[SegmentState]:
        """What the node has of this volume. Raises UnknownVolumeError if it has nothing."""
        return [decode_state(segment) for segment in await self.segments(timeout_s)]

    async def segments(self, timeout_s: float) -> list[pb.SegmentState]:
        """As `state`, with all that a node tells."""
        reply = await self._client.state(self._volume, timeout_s)
        found = [volume for volume in reply.volumes if volume.volume == self._volume]
        if not found:
            raise UnknownVolumeError(f"storage node {self.node.node_id} has no segment of this volume")
        return list(found[0].segments)

    async def seal(self, epoch: int, owner: bytes, timeout_s: float) -> tuple[bool, int, list[SegmentState]]:
        """Asks for a promise. Gives whether it was made, the epoch promised, and what the node has."""
        request = pb.SealRequest(volume=self._volume, epoch=epoch, owner=owner)
        reply = await self._client.seal(request, timeout_s)
        return reply.promised, reply.promised_epoch, [decode_state(segment) for segment in reply.segments]

    async def truncate(self, order: Truncate, owner: bytes, timeout_s: float) -> list[SegmentState]:
        """Installs a history; what the node has afterwards. Raises FencedError if it has promised itself to others."""
        request = pb.TruncateRequest(
            volume=self._volume,
            epoch=order.epoch,
            owner=owner,
            truncations=[encode_truncation(cut) for cut in order.truncations],
            vdl=order.vdl,
            tails=[pb.GroupTail(group=group, lsn=lsn) for group, lsn in sorted(order.tails.items())],
            members=[
                pb.GroupMembers(group=group, number=held.number, members=held.members, next_members=held.next_members)
                for group, held in sorted(order.members.items())
            ],
        )
        reply = await self._client.truncate(request, timeout_s)
        return [decode_state(segment) for segment in reply.segments]

    async def catch_up(self, tails: Mapping[int, int], timeout_s: float) -> dict[int, int]:
        """Lets the node fetch from its peers up to `tails`; its SCLs when it is there or the time is up."""
        request = pb.CatchUpRequest(
            volume=self._volume,
            tails=[pb.GroupTail(group=group, lsn=lsn) for group, lsn in sorted(tails.items())],
            timeout_ms=int(timeout_s * 1000),
        )
        reply = await self._client.catch_up(request, timeout_s + 0.5)
        return {tail.group: tail.lsn for tail in reply.scls}

    async def read_pages(self, request: pb.ReadPagesRequest, timeout_s: float) -> pb.ReadPagesReply:
        """Pages as of an LSN."""
        return await self._client.read_pages(request, timeout_s)

    def subscribe(self, group: int, after_lsn: int) -> Replies:
        """LogChunks of a group's durable log behind `after_lsn`, without end. Raises OutOfRangeError, StorageError."""
        return self._client.subscribe(self._volume, group, after_lsn)

    async def read_file_table(self, lsn: int, required_scl: int, timeout_s: float) -> FileTable:
        """The file table as of an LSN."""
        packed = await self._client.read_file_table(self._volume, lsn, required_scl, timeout_s)
        return FileTable.unpack_compressed(packed)


def fork_request(
    volume: bytes, parent: bytes, point: ForkPoint, placement: GroupPlacement, timeout_s: float
) -> pb.ForkRequest:
    """Of a node's copy of a group; `timeout_s`: of the call, of which half may go to what the node must fetch."""
    return pb.ForkRequest(
        volume=volume,
        parent=parent,
        lsn=point.lsn,
        epoch=point.epoch,
        first_epoch=point.first_epoch,
        tails=[pb.GroupTail(group=placement.group, lsn=dict(point.tails)[placement.group])],
        members=placement.node_ids,
        timeout_ms=int(timeout_s * 500),
    )


def decode_places(reply: pb.LocateReply) -> list[GroupPlace]:
    """What a node says of its groups, out of protobuf."""
    return [
        GroupPlace(
            place.group,
            place.lsn,
            place.time_us,
            epoch=place.installed_epoch,
            vdl=place.vdl,
            floor_lsn=place.floor_lsn,
            floor_time_us=place.floor_time_us,
        )
        for place in reply.places
    ]


def encode_truncation(cut: Truncation) -> pb.Truncation:
    """A truncation, as protobuf."""
    return pb.Truncation(epoch=cut.epoch, lsn=cut.lsn, first=cut.first)


def decode_state(state: pb.SegmentState) -> SegmentState:
    """A segment's state, out of protobuf."""
    return SegmentState(
        group=state.group,
        promised_epoch=state.promised_epoch,
        installed_epoch=state.installed_epoch,
        truncations=tuple(Truncation(cut.epoch, cut.lsn, cut.first) for cut in state.truncations),
        scl=state.scl,
        vdl=state.vdl,
        highest_lsn=state.highest_lsn,
        tail=tuple(
            BatchInfo(batch.epoch, batch.flush_start, batch.flush_end, tuple(batch.flush_groups))
            for batch in state.tail
        ),
        membership=Membership(state.members_number, tuple(state.members), tuple(state.next_members)),
        last_time_us=state.last_time_us,
    )
