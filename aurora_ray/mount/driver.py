"""The volume driver: takes redo out of the shared region and sends it, and brings in the pages that are missed.

All of it runs in one event loop, woken by the region's doorbell. The way of a commit:

    engine: fdatasync orders its records -> it waits; the last of those that the next flush waits for rings the bell
    driver: take one flush of everything logged so far -> six streams -> four acknowledgements -> VDL moves -> wake

Flushes grow with load: while one is on its way, everything that is logged meanwhile goes into the next, and that one
goes when enough commits wait for it (`grouping`). What is much, or waited for by an fsync, goes at once, beside it.
Redo that nobody waits for goes out with the next flush, or after `_IDLE_S`.

Pages come in on demand, with read-ahead that doubles while a file is read in sequence. A page is filled in only if it
is still absent: a write that came in between is newer than what was fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from aurora_ray import telemetry
from aurora_ray.errors import AuroraError, EngineError, FencedError
from aurora_ray.interposer import native
from aurora_ray.interposer.region import Taker
from aurora_ray.log.batch import compress
from aurora_ray.mount.evictor import Evictor
from aurora_ray.mount.fetcher import Fetcher
from aurora_ray.mount.grouping import Grouping
from aurora_ray.mount.localfiles import LocalFiles
from aurora_ray.volume.spec import EXTENT_PAGES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from aurora_ray.interposer.region import Region
    from aurora_ray.volume.spec import GroupPlacement
    from aurora_ray.volume.write.volume import Volume

_log = logging.getLogger(__name__)
_QUORUM_S = telemetry.histogram("aurora_quorum_seconds", "From sending a flush until four of six have it")

FLUSH_BYTES_MAX = 4 << 20
FLUSHES_IN_FLIGHT_MAX = 4
FLUSH_BYTES_URGENT = 256 << 10  # so much goes at once, whatever else is on its way or may still come
INFLIGHT_BYTES_MAX = 32 << 20
_IDLE_S = 0.05
_RECLAIM_EVERY = 20  # idle turns
_TRACE_EVERY = 256  # flushes
_GROW_TIMEOUT_S = 60.0
_NO_TRACE = telemetry.extract_dict(None)  # flushes are not part of whatever opened the volume


class Driver:
    """Serves one region for one volume that is open for writing."""

    def __init__(
        self,
        volume: Volume,
        region: Region,
        root: Path,
        *,
        cache_bytes: int,
        grow: Callable[[], Awaitable[GroupPlacement]] | None,
    ) -> None:
        self._volume = volume
        self._region = region
        self._grow = grow
        self._taker = Taker(
            region,
            volume=volume.spec.volume_id,
            epoch=volume.epoch,
            group_tails=dict(volume.group_tails),
            flush_bytes_max=FLUSH_BYTES_MAX,
        )
        self._local = LocalFiles(region, root)
        self._evictor = Evictor(volume, region, self._local, root, cache_bytes)
        self._fetcher = Fetcher(volume, region, self._local, self._evictor.turn)
        self._grouping = Grouping(region, self._send)
        self._in_flight: deque[tuple[int, int, int]] = deque()  # flushes: end, bytes, when it was sent (ns, unix)
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._group_added = asyncio.Event()
        self._until_trace = 1
        self._idle_turns = 0
        self._flushes = 0
        self._flush_bytes = 0
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    # ---- life

    def register(self, path: str, ino: int, file_id: int, size: int, extents: array[int]) -> None:
        """A regular file of the mounted tree."""
        slot = self._region.mount_file(ino, file_id, size, len(extents))
        self._local.know(slot, path)
        self._fetcher.know(slot, extents)

    def start(self) -> None:
        """Begins to listen to the bell, and to the volume."""
        self._volume.on_vdl = self._on_vdl
        self._volume.add_fenced_callback(self._on_fenced)
        self.listen()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._on_idle)
        self._spawn(self._evictor.run())

    def listen(self) -> None:
        """Answers the bell. Called anew under a span: pages that are missed while it lasts belong to its trace."""
        asyncio.get_running_loop().add_reader(self._region.bell_fd, self._on_bell)

    async def stop(self) -> None:
        """Stops listening; what was not sent is lost, as it should be: nobody was told that it is durable."""
        asyncio.get_running_loop().remove_reader(self._region.bell_fd)
        self._volume.on_vdl = None
        if self._idle is not None:
            self._idle.cancel()
        self._grouping.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fetcher.stop()
        self._local.close()
        self.failed.cancel()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else EngineError(f"the volume driver failed: {error!r}"))

    def _fail(self, error: Exception) -> None:
        if self.failed.done():
            return
        fenced = isinstance(error, FencedError)
        if not self._region.closed:
            self._region.set_state(native.STATE_FENCED if fenced else native.STATE_CLOSED)
        self.failed.set_result(error)

    def _on_fenced(self) -> None:
        self._fail(FencedError("a higher epoch exists, another writer has the volume"))

    # ---- redo out

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._region.bell_fd)
        poll = self._region.poll()
        if poll.state == native.STATE_POISONED:
            self._fail(EngineError("an engine process died while it changed the volume"))
            return
        if poll.requests:
            self._serve_requests()
        if poll.tail > poll.head and (self._is_urgent() or not self._grouping.holds()):
            self._send()

    def _on_idle(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._on_idle)
        if self._region.peek().state == native.STATE_POISONED:
            self._fail(EngineError("an engine process died, or was stopped, while it changed the volume"))
            return
        self._idle_turns += 1
        if self._idle_turns % _RECLAIM_EVERY == 0:
            self._region.reclaim_requests()
        self._send()

    def _send(self) -> None:
        """Sends flushes while there is something and room for it on the way."""
        volume = self._volume
        while len(self._in_flight) < FLUSHES_IN_FLIGHT_MAX and volume.inflight_bytes < INFLIGHT_BYTES_MAX:
            if self._in_flight and not self._is_urgent():
                return
            try:
                flush = self._taker.take(volume.vdl)
            except AuroraError as error:
                self._fail(error)
                return
            if flush is None:
                return
            self._grouping.sent(flush.arrivals)
            batches = [(group, compress(batch)) for group, batch in flush.batches]
            nbytes = sum([len(batch) for _, batch in batches])
            self._in_flight.append((flush.end, nbytes, time.time_ns()))
            self._flushes += 1
            self._flush_bytes += nbytes
            try:
                volume.submit(flush.start, flush.end, batches)
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
        self._region.publish(vdl)
        now_ns = time.time_ns()
        while self._in_flight and self._in_flight[0][0] <= vdl:
            end, nbytes, sent_ns = self._in_flight.popleft()
            _QUORUM_S.observe((now_ns - sent_ns) / 1e9)
            self._until_trace -= 1
            if self._until_trace <= 0:
                self._until_trace = _TRACE_EVERY
                telemetry.record_span(
                    "volume.flush",
                    sent_ns,
                    now_ns,
                    {"aurora.lsn": end, "aurora.bytes": nbytes, "aurora.vdl": vdl},
                    parent=_NO_TRACE,
                )
        if self._in_flight or self._grouping.done() or self._is_urgent():
            self._send()

    async def flush(self, *, timeout_s: float) -> int:
        """Sends all that is logged by now and waits until it is durable. Returns its LSN."""
        async with asyncio.timeout(timeout_s):
            target: int = self._region.base_lsn + self._region.peek().tail
            while self._region.base_lsn + self._region.peek().head < target:
                self._send()
                await asyncio.sleep(0.001)
            await self._volume.wait_durable(target, timeout_s=timeout_s)
        return target

    # ---- requests

    def _serve_requests(self) -> None:
        for index, request in self._region.requests():
            if request.want == native.WANT_EXTENTS:
                self._spawn(self._serve_extents(index, request))
            elif request.want == native.WANT_GROUP:
                self._spawn(self._serve_growth(index))
            else:
                self._spawn(self._serve_pages(index, request))

    async def _serve_extents(self, index: int, request: native.Request) -> None:
        error = errno.EIO
        try:
            error = await self._fetcher.tell_extents(request.slot, request.first, request.count)
        finally:
            self._region.answer(index, error)

    async def _serve_pages(self, index: int, request: native.Request) -> None:
        error = errno.EIO
        try:
            error = await self._fetcher.demand(request)
        except AuroraError as failure:
            _log.error("pages %d+%d of a file cannot be read: %s", request.first, request.count, failure)
        finally:
            self._region.answer(index, error)

    async def _serve_growth(self, index: int) -> None:
        """Answers when there is room again; ENOSPC when nobody gave any in time."""
        error = 0
        try:
            async with asyncio.timeout(_GROW_TIMEOUT_S):
                if self._grow is not None and not self._region.free_extents():
                    placement = await self._grow()
                    self.add_group(placement.group)
                while not self._region.free_extents():
                    self._group_added.clear()
                    await self._group_added.wait()
        except (TimeoutError, AuroraError) as failure:
            _log.error("the volume cannot grow: %s", failure or "no protection group was added in time")
            error = errno.ENOSPC
        finally:
            self._region.answer(index, error)

    def add_group(self, group: int) -> None:
        """A new protection group takes extents from now on."""
        self._region.add_group(group, self._volume.spec.group_bytes // (EXTENT_PAGES * self._volume.spec.page_size))
        self._group_added.set()

    async def prefetch(self, slots: Sequence[int]) -> None:
        """Fetches all absent pages of these files."""
        await self._fetcher.fetch_files(slots)

    def prefetch_soon(self, slots: Sequence[int]) -> None:
        """Fetches these files in the background, a little at a time, so that a miss never waits for long behind it."""
        self._spawn(self._fetcher.fetch_quietly(slots))

    # ---- figures

    def stats(self) -> dict[str, int | float]:
        """See MountedVolume.stats."""
        spec = self._volume.spec
        extent_bytes = EXTENT_PAGES * spec.page_size
        poll = self._region.peek()
        total = len(spec.groups) * (spec.group_bytes // extent_bytes)
        free = self._region.free_extents()
        return {
            **self._region.counters(),
            "flushes": self._flushes,
            "flush_bytes": self._flush_bytes,
            "unsent_bytes": poll.tail - poll.head,
            "cached_bytes": poll.present_pages * spec.page_size,
            "used_bytes": (total - free) * extent_bytes,
            "free_bytes": free * extent_bytes,
            "pages_fetched": self._fetcher.pages_fetched,
        }
