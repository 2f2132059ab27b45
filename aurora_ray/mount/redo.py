"""Redo out: takes what the engine has logged out of the shared region. To the volume, or nowhere.

The way of a commit:

    engine: fdatasync orders its records -> it waits; the last of those that the next flush waits for rings the bell
    here: take one flush of everything logged so far -> six streams -> four acknowledgements -> VDL moves -> wake,
          unless the gate holds it (`gate.py`)

Flushes grow with load: while one is on its way, everything that is logged meanwhile goes into the next, and that one
goes when enough commits wait for it (`grouping`). What is much, or waited for by an fsync, goes at once, beside it.
Redo that nobody waits for goes out with the next flush, or at the next idle turn.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aurora_ray import telemetry
from aurora_ray.errors import AuroraError, FencedError
from aurora_ray.interposer.region import Taker
from aurora_ray.log.batch import compress
from aurora_ray.log.flush import Flush, LogEnd
from aurora_ray.mount.gate import Gate
from aurora_ray.mount.grouping import Grouping

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from aurora_ray.interposer.region import Region
    from aurora_ray.volume.durable import Listening
    from aurora_ray.volume.write.volume import Volume

_QUORUM_S = telemetry.histogram("aurora_quorum_seconds", "From sending a flush until four of six have it")

FLUSH_BYTES = 4 << 20  # what is taken at once, at most
FLUSHES_IN_FLIGHT_MAX = 4
FLUSH_BYTES_URGENT = 256 << 10  # so much goes at once, whatever else is on its way or may still come
UNDER_WAY_BYTES_MAX = 32 << 20  # not durable yet; the rest waits in the ring
_TRACE_EVERY = 256  # flushes
_NO_TRACE = telemetry.extract_dict(None)  # flushes are not part of whatever opened the volume


class RedoOut(Protocol):
    """What the driver does with redo."""

    def start(self) -> None:
        """From now on it may be asked to send."""

    def stop(self) -> None:
        """Nothing is sent any more; what was not sent is lost."""

    def on_bell(self) -> None:
        """Some process rang: a commit waits, or much was logged."""

    def send(self) -> None:
        """Sends what was logged, as far as there is room on the way."""

    async def wait_durable(self, lsn: int, timeout_s: float) -> None:
        """Returns once all up to `lsn` will not be lost. Raises FencedError, QuorumLostError."""

    def stats(self) -> dict[str, int]:
        """Counters since mounting."""


class _Sent(NamedTuple):
    """A flush on its way; `sent_ns` in Unix time."""

    end: int
    nbytes: int
    sent_ns: int


class VolumeRedo:
    """Sends redo to a volume that is open for writing."""

    def __init__(self, volume: Volume, region: Region, fail: Callable[[Exception], object]) -> None:
        """`fail` is told when it cannot go on, once or more often."""
        self._volume, self._region, self._fail = volume, region, fail
        self._taker = Taker(
            region,
            volume=volume.spec.volume_id,
            epoch=volume.epoch,
            end=volume.redo.end,
            flush_bytes_max=FLUSH_BYTES,
        )
        self._grouping = Grouping(region, self.send)
        self._under_way: deque[_Sent] = deque()
        self._until_trace = 1
        self._flushes = 0
        self._flush_bytes = 0
        self._listening: Listening | None = None
        self.gate = Gate(region.publish)

    def start(self) -> None:
        """Listens to the volume."""
        self._listening = self._volume.durable.listen(self._on_vdl)
        self._volume.fence.listen(self._on_fenced)

    def stop(self) -> None:
        """Listens no more."""
        if self._listening is not None:
            self._listening.stop()
        self._grouping.close()

    def _on_fenced(self) -> None:
        self._fail(FencedError("a higher epoch exists, another writer has the volume"))

    def on_bell(self) -> None:
        """Sends, unless it is better to wait for other commits."""
        if self._is_urgent() or not self._grouping.holds():
            self.send()

    def send(self) -> None:
        """Sends flushes while there is something and room for it on the way."""
        volume = self._volume
        while len(self._under_way) < FLUSHES_IN_FLIGHT_MAX and volume.redo.inflight_bytes < UNDER_WAY_BYTES_MAX:
            if self._under_way and not self._is_urgent():
                return
            try:
                taken = self._taker.take(volume.vdl)
                if taken is None:
                    return
                self._grouping.sent(taken.arrivals)
                flush = taken.flush
                flush = Flush(flush.start, flush.end, {g: compress(batch) for g, batch in flush.batches.items()})
                nbytes = flush.nbytes
                self._under_way.append(_Sent(flush.end, nbytes, time.time_ns()))
                self._flushes += 1
                self._flush_bytes += nbytes
                volume.redo.submit(flush)
            except AuroraError as error:
                self._fail(error)
                return

    def _is_urgent(self) -> bool:
        """Whether what is logged goes at once, even beside a flush: if it is much, or some fsync waits for it."""
        poll = self._region.peek()
        return bool(poll.wanted > poll.head or poll.tail - poll.head >= FLUSH_BYTES_URGENT)

    def _on_vdl(self, vdl: int) -> None:
        if self._region.closed:
            return
        self.gate.durable(vdl)
        now_ns = time.time_ns()
        while self._under_way and self._under_way[0].end <= vdl:
            done = self._under_way.popleft()
            _QUORUM_S.observe((now_ns - done.sent_ns) / 1e9)
            self._until_trace -= 1
            if self._until_trace <= 0:
                self._until_trace = _TRACE_EVERY
                attributes = {"aurora.lsn": done.end, "aurora.bytes": done.nbytes, "aurora.vdl": vdl}
                telemetry.record_span("volume.flush", done.sent_ns, now_ns, attributes, parent=_NO_TRACE)
        if self._under_way or self._grouping.done() or self._is_urgent():
            self.send()

    async def wait_durable(self, lsn: int, timeout_s: float) -> None:
        """Waits for the volume."""
        await self._volume.durable.wait_for(lsn, timeout_s)

    def stats(self) -> dict[str, int]:
        """What was sent."""
        return {"flushes": self._flushes, "flush_bytes": self._flush_bytes}


class LocalRedo:
    """Of a mount without a volume to write to: what the engine changes stays here, a private overlay.

    Redo is taken and thrown away, and waited for by nobody. Pages that it changed are never evicted, because their
    LSNs lie above whatever can be read from the volume.
    """

    def __init__(self, volume_id: UUID, region: Region, base_lsn: int) -> None:
        self._region = region
        self._end = LogEnd(base_lsn)
        self._taker = Taker(region, volume=volume_id, epoch=0, end=self._end, flush_bytes_max=FLUSH_BYTES)
        self._bytes = 0

    def start(self) -> None:
        """Nobody shall wait for what nobody makes durable."""
        self._region.set_private()

    def stop(self) -> None:
        """Nothing to end."""

    def on_bell(self) -> None:
        """Somebody waits, or the ring fills."""
        self.send()

    def send(self) -> None:
        """Takes all that was logged, so that the ring has room."""
        before = self._end.lsn
        while (taken := self._taker.take(0)) is not None:
            self._end.advance(taken.flush)
        self._bytes += self._end.lsn - before

    async def wait_durable(self, lsn: int, timeout_s: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """What is local is as safe as it gets."""
        self.send()

    def stats(self) -> dict[str, int]:
        """What was thrown away."""
        return {"flushes": 0, "flush_bytes": 0, "local_redo_bytes": self._bytes}
