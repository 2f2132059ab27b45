"""The append side of an open volume: flushes in, the VDL out.

`submit` is the hot path: the batches are encoded already, the call returns at once, and `durable` says when what has
become durable. The LSNs of a flush are the caller's: flushes follow each other without gaps from `end` on, and each
batch links back to its group's tail there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import UsageError
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.flush import Flush, LogEnd
from aurora_ray.log.record import RecordBuilder
from aurora_ray.volume.write.quorum import InFlight, QuorumTracker
from aurora_ray.volume.write.streams import FLUSH_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.record import Record
    from aurora_ray.volume.durable import DurableLsn
    from aurora_ray.volume.recovery import Recovered
    from aurora_ray.volume.shape import Shape
    from aurora_ray.volume.spec import GroupPlacement
    from aurora_ray.volume.write.fanout import Fanout

INFLIGHT_BYTES_MAX: Final = 256 << 20  # redo that is not durable yet; callers keep below by `wait_room`
HEARTBEAT_S: Final = 0.5


class RedoWriter:
    """Owns the end of the log, what is in flight, and the VDL."""

    def __init__(self, shape: Shape, recovered: Recovered, durable: DurableLsn, fanout: Fanout) -> None:
        self.epoch = recovered.epoch
        self.end = LogEnd(recovered.end_lsn, recovered.tails)
        self.durable = durable
        self.inflight_bytes = 0
        self._volume = shape.spec.volume_id.bytes
        self._fanout = fanout
        self._quorum = QuorumTracker(shape.spec.placements, recovered.end_lsn, recovered.tails)
        self._in_flight: deque[InFlight] = deque()
        self._append_lock = asyncio.Lock()
        self._last_submit_s = 0.0
        self._last_time_us = recovered.last_time_us
        self._told_vdl = recovered.end_lsn  # the newest that a batch on its way to the nodes says

    # ---- in

    def submit(self, flush: Flush) -> None:
        """Hands over the next flush. Does not block.

        Called in the event loop, in LSN order. Raises what ended the volume (FencedError), or UsageError for a flush
        out of order or too large.
        """
        self.durable.check()
        self.end.check(flush)
        nbytes = flush.nbytes
        if nbytes > FLUSH_BYTES_MAX or self.inflight_bytes + nbytes > INFLIGHT_BYTES_MAX:
            raise UsageError(f"no room for {nbytes} bytes beside {self.inflight_bytes} in flight: wait for room first")
        self._last_submit_s = now_s = time.monotonic()
        under_way = InFlight(flush.end, flush.groups, nbytes, now_s)
        self._quorum.submit(under_way)
        self.end.advance(flush)
        self.inflight_bytes += nbytes
        self._told_vdl = self.durable.lsn
        self._in_flight.append(under_way)
        self._fanout.push(flush, self._in_flight[0])

    async def wait_room(self, nbytes: int, timeout_s: float) -> None:
        """Returns once `nbytes` more may be submitted. Raises as `DurableLsn.wait_for`."""
        deadline = time.monotonic() + timeout_s
        while self.inflight_bytes + nbytes > INFLIGHT_BYTES_MAX and self._in_flight:
            await self.durable.wait_for(self._in_flight[0].end, max(0.0, deadline - time.monotonic()))

    async def append(self, records: Sequence[Record], timeout_s: float = 30.0) -> int:
        """Encodes records (their LSNs are assigned here), submits them as one flush, and waits until it is durable.

        Gives the LSN of the last one. For tools and tests; the driver encodes by itself and calls `submit`.
        """
        if not records:
            return self.durable.lsn
        async with self._append_lock:
            await self.wait_room(sum(record.encoded_bytes for record in records), timeout_s)
            flush = self.encode(records)
            self.submit(flush)
        await self.durable.wait_for(flush.end, timeout_s)
        return flush.end

    def encode(self, records: Sequence[Record], end_lsn: int | None = None) -> Flush:
        """The next flush, of these records; it is not submitted. `end_lsn`: where it ends, if not with the last one.

        Raises UsageError for one that lies before that.
        """
        builder = RecordBuilder(self.end.lsn)
        for record in records:
            builder.add(record)
        start, end = builder.start_lsn, builder.end_lsn if end_lsn is None else end_lsn
        if end < builder.end_lsn:
            raise UsageError(f"the records end at LSN {builder.end_lsn}: a flush of them cannot end at {end}")
        parts = builder.take()
        groups = tuple(part.group for part in parts)
        batches = {
            part.group: encode_batch(
                group=part.group,
                volume=self._volume,
                epoch=self.epoch,
                prev_lsn=self.end.tail(part.group),
                flush_start=start,
                flush_end=end,
                time_us=self._now_us(),
                vdl=self.durable.lsn,
                record_count=part.record_count,
                groups=groups,
                records=part.payload,
            )
            for part in parts
        }
        return Flush(start, end, batches)

    def _now_us(self) -> int:
        """The log's own clock: this machine's, but later with each flush, whatever writers' clocks do. So a time stands
        for one place in the log."""
        self._last_time_us = max(self._last_time_us + 1, time.time_ns() // 1000)
        return self._last_time_us

    # ---- what the streams and the shape tell

    def on_ack(self, node_id: str, lsn: int) -> None:
        """A node has all it was sent up to `lsn`."""
        if self._quorum.ack(node_id, lsn):
            self.on_vdl_moved()

    def acked(self, node_id: str) -> int:
        """Up to where a node has acknowledged."""
        return self._quorum.acked(node_id)

    def place(self, placement: GroupPlacement) -> bool:
        """From now on a group has these members. True if that moved the VDL: then call `on_vdl_moved`.

        Raises UsageError if they cannot take over yet.
        """
        return self._quorum.place(placement)

    @property
    def durable_tails(self) -> dict[int, int]:
        """The end of the last durable flush of each group."""
        return self._quorum.group_tails

    def on_vdl_moved(self) -> None:
        """The quorum's VDL moved: tells everybody."""
        vdl, in_flight = self._quorum.vdl, self._in_flight
        assert vdl <= self.end.lsn, "only what was submitted is durable"  # noqa: S101
        while in_flight and in_flight[0].end <= vdl:
            done = in_flight.popleft()
            self.inflight_bytes -= done.nbytes
            took_s = time.monotonic() - done.submitted_s
            self._fanout.on_durable(took_s, in_flight[0] if in_flight else None)
        self.durable.advance(vdl)  # a listener may submit the next flush, which says this VDL
        if self._told_vdl < vdl:
            self._told_vdl = vdl
            self.tell_subscribers()

    def tell_subscribers(self) -> None:
        """Says the VDL to the nodes that somebody subscribes at: nothing else would bring it soon."""
        self._fanout.tell_vdl(self.durable.lsn, self._heartbeat, subscribed_only=True)

    # ---- while nothing is written

    async def beat(self) -> None:
        """For ever, while nothing is written: tells the nodes the VDL, and learns soon if we have been replaced."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if time.monotonic() - self._last_submit_s >= HEARTBEAT_S:
                self._fanout.tell_vdl(self.durable.lsn, self._heartbeat, subscribed_only=False)

    def _heartbeat(self, group: int) -> bytes:
        """A batch without records: it says the VDL."""
        vdl = self.durable.lsn
        return encode_batch(
            group=group,
            volume=self._volume,
            epoch=self.epoch,
            prev_lsn=0,
            flush_start=vdl,
            flush_end=vdl,
            time_us=self._last_time_us,
            vdl=vdl,
            record_count=0,
            groups=(group,),
            records=b"",
        )
