"""The RPCs of a storage node, except Append. Each is a thin shell: find the segment, call the logic, map errors."""

from __future__ import annotations

import os
import sys
from array import array
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.errors import MalformedError, UsageError
from aurora_ray.log.compression import compress
from aurora_ray.log.lineage import Lineage
from aurora_ray.storage.node.epochs import seal, segment_state, truncate
from aurora_ray.storage.node.fork import ForkOrder, fork
from aurora_ray.storage.node.status import refuse
from aurora_ray.storage.pages.copying import digest, outline, send_pages
from aurora_ray.storage.pages.reading import read_checked_pages, read_file_table, require_complete
from aurora_ray.storage.segment import places
from aurora_ray.storage.segment.meta import Retention
from aurora_ray.storage.server.subscribe import fetch_log, subscribe
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.storage.heal.gossip import Gossip
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.node.volume import NodeVolume
    from aurora_ray.storage.segment.segment import Segment

_TABLE_CHUNK_BYTES: Final = 1 << 20
_READ_BYTES_MAX: Final = 64 << 20


class StorageService:
    """Handlers named as in the proto file; unary ones return replies, streams yield messages (log chunks as bytes)."""

    def __init__(self, node: Node, gossip: Gossip) -> None:
        self._node, self._gossip = node, gossip

    # ---- segments

    async def create_segments(self, request: pb.CreateSegmentsRequest) -> pb.CreateSegmentsReply:
        """Creates what is missing."""
        lineage = Lineage(request.lineage.parent, request.lineage.origin_lsn)
        self._node.create_segments(request.volume, request.page_size, request.groups, request.members, lineage)
        return pb.CreateSegmentsReply()

    async def fork(self, request: pb.ForkRequest) -> pb.ForkReply:
        """Makes a fork's segments, with what peers have of the parent if they lack something here.

        It will be opened at once.
        """
        self._node.openings.begin()
        tails = {tail.group: tail.lsn for tail in request.tails}
        order = ForkOrder(
            request.volume,
            request.parent,
            request.lsn,
            request.epoch,
            tails,
            tuple(request.members),
            request.first_epoch or request.epoch + 1,
        ).checked()
        missing = {group: lsn for group, lsn in tails.items() if (request.volume, group) not in self._node.segments}
        if missing:
            await self._gossip.catch_up(self._node.volume(request.parent), missing, request.timeout_ms / 1e3)
        await fork(self._node, order)
        return pb.ForkReply()

    async def locate(self, request: pb.LocateRequest) -> pb.LocateReply:
        """Where the log of each group stands."""
        reply = pb.LocateReply()
        for segment in self._node.volume(request.volume).segments.values():
            if request.time_us:
                place = places.at_time(segment, request.time_us, request.lsn)
            else:
                place = places.at_lsn(segment, request.lsn)
            reply.places.add(
                group=segment.group,
                lsn=place.lsn,
                time_us=place.time_us,
                installed_epoch=segment.meta.epochs.installed_epoch,
                vdl=segment.vdl,
                floor_lsn=segment.meta.floor_lsn,
                floor_time_us=places.oldest_time_us(segment),
            )
        return reply

    async def drop_volume(self, request: pb.DropVolumeRequest) -> pb.DropVolumeReply:
        """Moves a volume, or some of its groups, to the graveyard."""
        _require_volume(request.volume)
        reason = request.reason or "a caller asked for it without a reason"
        if request.groups:
            return pb.DropVolumeReply(grave=self._node.drop_groups(request.volume, request.groups, reason))
        return pb.DropVolumeReply(grave=self._node.drop_volume(request.volume, reason))

    async def list_graveyard(self, request: pb.ListGraveyardRequest) -> pb.ListGraveyardReply:
        """What was dropped or replaced, and is kept."""
        if request.volume:
            _require_volume(request.volume)
        graves = [grave for grave in self._node.graveyard.graves if request.volume in (b"", grave.volume)]
        return pb.ListGraveyardReply(graves=[grave.message() for grave in graves])

    async def restore_volume(self, request: pb.RestoreVolumeRequest) -> pb.RestoreVolumeReply:
        """Brings a dropped volume back."""
        _require_volume(request.volume)
        return pb.RestoreVolumeReply(grave=self._node.restore_volume(request.volume, request.grave))

    async def purge_graveyard(self, request: pb.PurgeGraveyardRequest) -> pb.PurgeGraveyardReply:
        """Destroys graves before their time."""
        if not request.graves:
            raise UsageError("no graves are named: list the graveyard and name what shall go")
        return pb.PurgeGraveyardReply(bytes=await self._node.graveyard.purge(request.graves))

    # ---- reading

    async def read_pages(self, request: pb.ReadPagesRequest) -> pb.ReadPagesReply:
        """Pages as of an LSN."""
        self._node.openings.note_read()
        volume = self._node.volume(request.volume)
        if sum(r.count for r in request.ranges) * volume.page_size > _READ_BYTES_MAX:
            raise UsageError(f"more than {_READ_BYTES_MAX} bytes of pages asked for at once")
        kinds, carried = bytearray(), list[tuple[bytes, int]]()
        for group, ranges in groupby(request.ranges, lambda wanted: wanted.group):
            segment = volume.segment(group)
            require_complete(segment, request.required_scl)
            found = await read_checked_pages(segment, request.lsn, [(r.file_id, r.first_page, r.count) for r in ranges])
            kinds += bytes(page is not None for page in found)
            carried += [page for page in found if page is not None]
        self._node.counters["read_pages"] += len(kinds)
        crcs = array("I", [crc for _, crc in carried])
        if sys.byteorder == "big":
            crcs.byteswap()
        pages = b"".join([page for page, _ in carried])
        return pb.ReadPagesReply(kinds=bytes(kinds), pages=pages, crcs=crcs.tobytes())

    async def read_file_table(self, request: pb.ReadFileTableRequest) -> AsyncIterator[pb.FileTableChunk]:
        """The file table as of an LSN, in chunks. Whoever mounts the volume begins with it."""
        self._node.openings.begin()
        segment = self._node.volume(request.volume).segment(0)
        require_complete(segment, request.required_scl)
        anomalies: list[str] = []
        table = await read_file_table(segment, request.lsn, anomalies)
        self._node.counters["table_anomalies_read"] += len(anomalies)
        data = compress(table.pack())
        for at in range(0, len(data), _TABLE_CHUNK_BYTES):
            yield pb.FileTableChunk(data=data[at : at + _TABLE_CHUNK_BYTES])

    async def subscribe(self, request: pb.SubscribeRequest) -> AsyncIterator[bytes]:
        """The durable log, as it comes."""
        segment = self._node.volume(request.volume).segment(request.group)
        async for chunk in subscribe(segment, request.after_lsn):
            yield chunk

    # ---- recovery

    async def seal(self, request: pb.SealRequest) -> pb.SealReply:
        """Recovery's first phase. An engine's will follow it, which reads."""
        self._node.openings.begin()
        reply = seal(self._node.volume(request.volume), request)
        self._node.counters["seals" if reply.promised else "refused_seals"] += 1
        return reply

    async def truncate(self, request: pb.TruncateRequest) -> pb.TruncateReply:
        """Recovery's second phase."""
        history = [t.epoch for t in request.truncations]
        if history != sorted(set(history)) or not history or history[-1] != request.epoch:
            raise MalformedError("a truncation history ascends by epoch and ends with the epoch that installs it")
        return truncate(self._node.volume(request.volume), request)

    async def catch_up(self, request: pb.CatchUpRequest) -> pb.CatchUpReply:
        """Pulls what is missing, now."""
        volume = self._node.volume(request.volume)
        tails = {tail.group: tail.lsn for tail in request.tails}
        await self._gossip.catch_up(volume, tails, request.timeout_ms / 1e3)
        return pb.CatchUpReply(scls=[pb.GroupTail(group=g, lsn=volume.segment(g).scl) for g in tails])

    # ---- between peers

    async def fetch_log(self, request: pb.FetchLogRequest) -> AsyncIterator[bytes]:
        """Stored log, for a peer."""
        segment = self._node.volume(request.volume).segment(request.group)
        async for chunk in fetch_log(segment, request.after_lsn, request.up_to_lsn):
            self._node.counters["sent_log_bytes"] += len(chunk)
            yield chunk

    async def copy_segment(self, request: pb.CopySegmentRequest) -> AsyncIterator[pb.PageChunk]:
        """Content of a segment, for a peer."""
        async for chunk in send_pages(self._node.volume(request.volume).segment(request.group), request):
            self._node.counters["sent_pages"] += len(chunk.pages)
            yield chunk

    async def outline_segment(self, request: pb.OutlineSegmentRequest) -> pb.OutlineSegmentReply:
        """Where to cut a segment into ranges."""
        segment = self._node.volume(request.volume).segment(request.group)
        return await outline(segment, max(1, request.pages_per_range))

    async def digest(self, request: pb.DigestRequest) -> pb.DigestReply:
        """What sound copies have in common."""
        return await digest(self._node.volume(request.volume).segment(request.group), request)

    async def set_peers(self, request: pb.SetPeersRequest) -> pb.SetPeersReply:
        """Where the others are."""
        self._node.set_peers(dict(request.addresses))
        return pb.SetPeersReply()

    async def set_read_point(self, request: pb.SetReadPointRequest) -> pb.SetReadPointReply:
        """Holds the floor for a while."""
        volume = self._node.volume(request.volume)
        lease_s = min(request.lease_ms / 1e3, self._node.config.lease_s_max)
        volume.hold(request.holder, request.lsn, self._node.clock() + lease_s)
        return pb.SetReadPointReply(lease_ms=int(1e3 * lease_s))

    async def set_retention(self, request: pb.SetRetentionRequest) -> pb.SetRetentionReply:
        """For how long history is kept."""
        volume = self._node.volume(request.volume)
        retention = Retention(request.retention.seconds, request.retention.log_bytes)
        for segment in volume.segments.values():
            if segment.meta.retention != retention:
                segment.commit(retention=retention)
        return pb.SetRetentionReply()

    # ---- state

    async def append_port(self, _: pb.AppendPortRequest) -> pb.AppendPortReply:
        """Where streams of redo go."""
        return pb.AppendPortReply(port=self._node.append_port)

    async def state(self, request: pb.StateRequest) -> pb.StateReply:
        """What the node has."""
        node = self._node
        volumes = [node.volume(request.volume)] if request.volume else list(node.volumes.values())
        states = [
            pb.VolumeState(
                volume=volume.volume,
                page_size=volume.page_size,
                segments=[self._segment_state(volume, segment) for segment in volume.segments.values()],
                lost_groups=sorted(volume.lost),
                lineage=pb.Lineage(**volume.lineage._asdict()),
                retention=pb.Retention(**volume.retention._asdict()),
            )
            for volume in volumes
        ]
        return pb.StateReply(
            node_id=node.config.node_id,
            az=node.config.az,
            pid=os.getpid(),
            volumes=states,
            counters=node.counters,
            disk_bytes=node.disk_bytes,
            space=self._space(),
        )

    def _space(self) -> pb.Space:
        node = self._node
        space, least = node.space(), node.config.retention_bytes
        asked = any(segment.meta.retention.log_bytes > least for segment in node.segments.values())
        return pb.Space(**space._asdict(), history_share=space.history_share if asked else 1.0)

    def _segment_state(self, volume: NodeVolume, segment: Segment) -> pb.SegmentState:
        state = segment_state(segment)
        state.damaged_items = len(self._node.damage.items((volume.volume, segment.group)))
        copy = volume.copies.get(segment.group)
        if copy is not None:
            state.copy.CopyFrom(copy.message())
        return state


def _require_volume(volume: bytes) -> None:
    if len(volume) != 16:
        raise UsageError(f"a volume is named by 16 bytes, not {len(volume)}")


def unary(node: Node, method: Any) -> Any:
    """A gRPC handler around a unary method."""

    async def handle(request: Any, context: Any) -> Any:
        try:
            return await method(request)
        except Exception as error:
            await refuse(context, node, error)

    return handle


def streaming(node: Node, method: Any) -> Any:
    """A gRPC handler around a streaming method."""

    async def handle(request: Any, context: Any) -> None:
        messages = method(request)
        try:
            while True:
                try:
                    message = await anext(messages)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    await refuse(context, node, error)
                await context.write(message)
        finally:
            await messages.aclose()

    return handle
