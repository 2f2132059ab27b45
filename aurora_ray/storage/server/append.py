"""The hot path: one long-lived stream a writer, one write and one sync a message.

Nothing is indexed here. While one volume is written to, no thread is involved: a hop to a thread costs more than the
write. Where volumes share the node, their messages take turns (`sharing.py`). A message is checked as a whole before
any of it is stored, so a refused message changes nothing; the refusal ends the stream.

The stream is served twice, by the same logic: at the node's address by gRPC's library, as all else, for whoever has
only that; and at the append port by `stream_server.py`, which takes half the CPU for a message. Writers use the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc.aio

from aurora_ray.errors import AuroraError, DiskFullError, UnknownVolumeError
from aurora_ray.log.batch import BatchHeader, check_records, verify
from aurora_ray.log.wire import append_reply, split_append
from aurora_ray.storage.disk.keys import LSN_KEY
from aurora_ray.storage.node.status import refuse
from aurora_ray.storage.server.holding import wait_for_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.segment.segment import Segment, VdlBox


_DISK_CHECK_BYTES: Final = 1 << 20


class Stored(NamedTuple):
    """What a message brought: the highest flush_end, and where its volume's VDL is known; None if it was empty.

    `crowded`: a segment with more redo than may wait for its layers.
    """

    lsn: int
    box: VdlBox | None
    crowded: Segment | None = None


class Written(NamedTuple):
    """A message that was checked and written, but is not durable yet; what is in memory knows nothing of it."""

    fresh: list[tuple[Segment, BatchHeader, bytes]]
    told: list[tuple[Segment, int]]  # VDLs
    stored: Stored  # when it is durable

    @property
    def segments(self) -> list[Segment]:
        """Those to be synced."""
        return list(dict.fromkeys(segment for segment, _, _ in self.fresh))


class Appender:
    """Serves Append for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._unchecked_bytes = 0

    async def serve(self, _: object, context: Any) -> None:
        """One stream by gRPC's library; messages and replies are bytes."""
        read, write, store = context.read, context.write, self.store
        acked_lsn = 0
        while True:
            message = await read()
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            try:
                stored = store(message)
            except AuroraError as error:
                await refuse(context, self.node, error)
            acked_lsn = max(acked_lsn, stored.lsn)
            if stored.crowded is not None:
                self.node.counters["held_acknowledgements"] += 1
                await wait_for_layers(self.crowded, stored.crowded)
            await write(append_reply(acked_lsn, subscribed=stored.box is not None and stored.box.subscribed))

    def crowded(self, segment: Segment) -> bool:
        """Whether more redo waits for its layers than may."""
        return segment.tail_bytes > self.node.config.tail_bytes_max and not segment.closed

    def store(self, message: bytes) -> Stored:
        """Makes the message's batches durable. Raises AuroraError."""
        written = self.write(message)
        segments = written.segments
        try:
            for segment in segments:
                segment.store.sync(True)
        except Exception as error:  # RocksDB's errors have no common class
            raise self.failed(segments, error) from error
        return self.take_in(written)

    def write(self, message: bytes) -> Written:
        """Checks the message's batches and writes them. Raises AuroraError."""
        node = self.node
        self._unchecked_bytes += len(message)
        if self._unchecked_bytes > max(_DISK_CHECK_BYTES, node.config.disk_reserve_bytes // 16):
            # The background looks every second, in which the reserve could be used up.
            self._unchecked_bytes = 0
            node.check_disk()
        if node.disk_full:
            raise DiskFullError("less than the reserve is free on the node's disk; nothing was written")
        written = self._check(split_append(message))
        put_key = LSN_KEY.pack
        try:
            for segment, header, batch in written.fresh:
                segment.store.put_log(put_key(header.flush_end), batch)
        except Exception as error:  # RocksDB's errors have no common class
            raise self.failed(written.segments, error) from error
        return written

    def failed(self, segments: Sequence[Segment], error: Exception) -> DiskFullError:
        """A write or a sync did: what is on disk is the truth."""
        self.node.reopen_after_error(segments, error)
        return DiskFullError(f"the log could not be written: {error}")

    def take_in(self, written: Written) -> Stored:
        """It is durable by now; only from here on it counts. Raises AuroraError if it must not be told so, since its
        segment was replaced or its epoch ended while it was synced: then it is as if it had come and never been
        answered.
        """
        for segment, header, _ in written.fresh:
            if segment.closed:
                raise UnknownVolumeError(f"group {segment.group} was replaced or dropped in the middle: ask again")
            if segment.check(header, segment.scl):
                segment.link(header)
        for segment, vdl in written.told:
            segment.learn_vdl(vdl)
        self.node.counters["appended_batches"] += len(written.fresh)
        crowded = next((segment for segment, _, _ in written.fresh if self.crowded(segment)), None)
        return written.stored if crowded is None else written.stored._replace(crowded=crowded)

    def _check(self, batches: list[bytes]) -> Written:
        """The batches that are new, VDLs that the others tell, and what will be stored. Changes nothing."""
        segments = self.node.segments
        fresh: list[tuple[Segment, BatchHeader, bytes]] = []
        told: list[tuple[Segment, int]] = []
        chain_ends: dict[Segment, int] = {}
        highest_lsn, box = 0, None
        for batch in batches:
            header = verify(batch)
            segment = segments.get((header.volume, header.group))
            if segment is None:
                raise UnknownVolumeError(f"no segment of group {header.group} of volume {header.volume.hex()} here")
            box = segment.box
            at_lsn = chain_ends.get(segment, segment.scl)
            if not header.record_count:
                segment.check(header, 0)
                told.append((segment, header.vdl))
            elif segment.check(header, at_lsn):
                check_records(batch, header)
                fresh.append((segment, header, batch))
                if header.prev_lsn == at_lsn:
                    chain_ends[segment] = header.flush_end
            highest_lsn = max(highest_lsn, header.flush_end)
        return Written(fresh, told, Stored(highest_lsn, box))
