"""One storage node as the volume sees it: calls with plain arguments and answers, and errors of our own tree."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.errors import NodeTimeoutError, UnknownVolumeError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, Truncation
from aurora_ray.rpc.admission import Caller
from aurora_ray.rpc.channel import open_channel
from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.stream_client import StreamEndedError, open_stream
from aurora_ray.rpc.tracing import trace_metadata
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
from aurora_ray.volume.origin import GroupPlace
from aurora_ray.volume.recovery import BatchInfo, SegmentState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aurora_ray.rpc.calls import Replies
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.rpc.stream_client import Receiver, StreamCall
    from aurora_ray.volume.origin import ForkPoint, Target
    from aurora_ray.volume.recovery import Truncate
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

APPEND_METHOD: Final = "/aurora_ray.storage.v1.StorageNode/Append"
# A gRPC server in the middle of stopping may leave a call without an answer. So its first tries are short: who waits
# for a node that restarts is not kept by its end.
APPEND_PORT_TIMEOUTS_S: Final = (0.25, 0.5, 1.0, 2.0)


class NodeClient:
    """A channel to one storage node. Every call has a deadline and raises from our own tree."""

    def __init__(self, node: NodeAddress, volume: bytes, abroad: Abroad = HOME) -> None:
        """`abroad`: how the node's fleet is reached, if it is not ours."""
        self.node = node
        self._volume = volume
        self._secret = abroad.secret
        channel = self._channel = open_channel(node.address, node.node_id, abroad.secret, abroad.link)
        self._stub: Any = StorageNodeStub(channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Ends all calls."""
        await self._channel.close()

    async def append(self, receiver: Receiver) -> StreamCall:
        """Opens an Append stream. Bytes in, bytes out: a flush is serialised once for all nodes. See `ended`.

        Raises StorageError.
        """
        port = await self._append_port()
        host = self.node.address.rpartition(":")[0].strip("[]")
        try:
            caller = Caller(self.node.node_id, str(port), self._secret, self._channel.caller.challenge)
            return await open_stream(host, port, APPEND_METHOD, receiver, caller)
        except StreamEndedError as error:
            raise error.error from error

    async def _append_port(self) -> int:
        *tries, last_try_s = APPEND_PORT_TIMEOUTS_S
        for timeout_s in tries:
            with contextlib.suppress(NodeTimeoutError):
                return int((await self._stub.AppendPort(pb.AppendPortRequest(), timeout=timeout_s)).port)
        return int((await self._stub.AppendPort(pb.AppendPortRequest(), timeout=last_try_s)).port)

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
        await self._stub.CreateSegments(request, timeout=timeout_s, wait_for_ready=True)

    async def fork(self, parent: bytes, point: ForkPoint, placement: GroupPlacement, timeout_s: float) -> None:
        """Makes this node's copy of a group, out of that of `parent`; harmless if it is there.

        Raises StaleSegmentError, NotCompleteError, OutOfRangeError, UnknownVolumeError where the parent's will not do.
        """
        await self._stub.Fork(fork_request(self._volume, parent, point, placement, timeout_s), timeout=timeout_s)

    async def locate(self, target: Target, timeout_s: float) -> list[GroupPlace]:
        """Where the log of each group stands at an LSN or a time."""
        request = pb.LocateRequest(volume=self._volume, lsn=target.lsn, time_us=target.time_us)
        return decode_places(await self._stub.Locate(request, timeout=timeout_s))

    async def set_peers(self, addresses: Mapping[str, str], timeout_s: float) -> None:
        """Tells the node where the others are (node id -> host:port)."""
        await self._stub.SetPeers(pb.SetPeersRequest(addresses=dict(addresses)), timeout=timeout_s)

    async def hold(self, holder: str, lsn: int, lease_s: float, timeout_s: float) -> None:
        """Keeps what can be read as of `lsn` and later, until the lease ends or the holder names another LSN."""
        request = pb.SetReadPointRequest(volume=self._volume, holder=holder, lsn=lsn, lease_ms=int(lease_s * 1000))
        await self._stub.SetReadPoint(request, timeout=timeout_s)

    async def state(self, timeout_s: float) -> list[SegmentState]:
        """What the node has of this volume. Raises UnknownVolumeError if it has nothing."""
        return [decode_state(segment) for segment in await self.segments(timeout_s)]

    async def segments(self, timeout_s: float) -> list[pb.SegmentState]:
        """As `state`, with all that a node tells."""
        reply = await self._stub.State(
            pb.StateRequest(volume=self._volume), timeout=timeout_s, metadata=trace_metadata()
        )
        found = [volume for volume in reply.volumes if volume.volume == self._volume]
        if not found:
            raise UnknownVolumeError(f"storage node {self.node.node_id} has no segment of this volume")
        return list(found[0].segments)

    async def seal(self, epoch: int, owner: bytes, timeout_s: float) -> tuple[bool, int, list[SegmentState]]:
        """Asks for a promise. Gives whether it was made, the epoch promised, and what the node has."""
        request = pb.SealRequest(volume=self._volume, epoch=epoch, owner=owner)
        reply = await self._stub.Seal(request, timeout=timeout_s, metadata=trace_metadata())
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
        reply = await self._stub.Truncate(request, timeout=timeout_s, metadata=trace_metadata())
        return [decode_state(segment) for segment in reply.segments]

    async def catch_up(self, tails: Mapping[int, int], timeout_s: float) -> dict[int, int]:
        """Lets the node fetch from its peers up to `tails`; its SCLs when it is there or the time is up."""
        request = pb.CatchUpRequest(
            volume=self._volume,
            tails=[pb.GroupTail(group=group, lsn=lsn) for group, lsn in sorted(tails.items())],
            timeout_ms=int(timeout_s * 1000),
        )
        reply = await self._stub.CatchUp(request, timeout=timeout_s + 0.5, metadata=trace_metadata())
        return {tail.group: tail.lsn for tail in reply.scls}

    async def read_pages(self, request: pb.ReadPagesRequest, timeout_s: float) -> pb.ReadPagesReply:
        """Pages as of an LSN."""
        reply: pb.ReadPagesReply = await self._stub.ReadPages(request, timeout=timeout_s, metadata=trace_metadata())
        return reply

    async def set_read_point(self, holder: str, lsn: int, lease_s: float, timeout_s: float) -> None:
        """Holds what a reader at `lsn` needs for `lease_s`; 0: no longer. Raises OutOfRangeError if it is gone."""
        request = pb.SetReadPointRequest(volume=self._volume, holder=holder, lsn=lsn, lease_ms=int(1000 * lease_s))
        await self._stub.SetReadPoint(request, timeout=timeout_s)

    def subscribe(self, group: int, after_lsn: int) -> Replies:
        """LogChunks of a group's durable log behind `after_lsn`, without end. Raises OutOfRangeError, StorageError."""
        replies: Replies = self._stub.Subscribe(
            pb.SubscribeRequest(volume=self._volume, group=group, after_lsn=after_lsn)
        )
        return replies

    async def read_file_table(self, lsn: int, required_scl: int, timeout_s: float) -> FileTable:
        """The file table as of an LSN."""
        request = pb.ReadFileTableRequest(volume=self._volume, lsn=lsn, required_scl=required_scl)
        chunks: AsyncIterator[pb.FileTableChunk] = self._stub.ReadFileTable(
            request, timeout=timeout_s, metadata=trace_metadata()
        )
        packed = b"".join([chunk.data async for chunk in chunks])
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
