"""The volume driver: answers the region's doorbell. Redo goes out (`redo.py`), pages that are missed come in.

All of it runs in one event loop. Pages come in on demand, with read-ahead that doubles while a file is read in
sequence. A page is filled in only if it is still absent: a write that came in between is newer than what was fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_ray.errors import AuroraError, EngineError, FencedError, StorageError
from aurora_ray.interposer import native
from aurora_ray.log.sizes import EXTENT_PAGES, GROUPS_MAX
from aurora_ray.mount.evictor import Evictor
from aurora_ray.mount.exchange import Exchange, ExchangeRefusedError, difference, look
from aurora_ray.mount.fetcher import Fetcher
from aurora_ray.mount.localfiles import LocalFiles
from aurora_ray.mount.redo import LocalRedo, VolumeRedo
from aurora_ray.mount.unlinked import Unlinked

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from aurora_ray.interposer.region import Region
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.mount.exchange import Rules
    from aurora_ray.mount.gate import Gate
    from aurora_ray.mount.localtree import MountedFile
    from aurora_ray.mount.redo import RedoOut
    from aurora_ray.volume.read.source import PageSource
    from aurora_ray.volume.spec import GroupPlacement
    from aurora_ray.volume.write.volume import Volume

_log = logging.getLogger(__name__)

_IDLE_S = 0.05
_RECLAIM_EVERY = 20  # idle turns
_GROW_TIMEOUT_S = 60.0
_HOLD_PAUSE_S = 0.001
# What an exchange left to do goes beside sessions that have just begun on a writer whose pages are all elsewhere: after
# a while, with so little on its way that no commit waits for long behind it, and in so long a time, about.
_SETTLE_AFTER_S = 1.0
_SETTLE_AHEAD_BYTES = 1 << 20
_SETTLE_BYTES_S = 16 << 20
_SETTLE_MOST_S = 10.0
_SETTLE_PAUSE_S = 0.005


class Driver:
    """Serves one region: pages come from `source`, redo goes to `writer`, or nowhere if there is none."""

    def __init__(
        self,
        source: PageSource,
        region: Region,
        root: Path,
        *,
        writer: Volume | None,
        cache_bytes: int,
        grow: Callable[[], Awaitable[GroupPlacement]] | None,
        groups_max: int = GROUPS_MAX,
    ) -> None:
        self._source = source
        self._region = region
        self._grow = grow
        self.groups_max = groups_max
        self._redo: RedoOut
        if writer is not None:
            self._redo = VolumeRedo(writer, region, self._fail)
        else:
            self._redo = LocalRedo(source.spec.volume_id, region, region.base_lsn)
        self._local = LocalFiles(region, root)
        self._evictor = Evictor(source, region, self._local, root, cache_bytes)
        self._fetcher = Fetcher(source, region, self._local, self._evictor.turn)
        self._unlinked: Unlinked | None = None
        if writer is not None:
            self._unlinked = Unlinked(writer, region, self._local, self._fetcher, root=root, cache_bytes=cache_bytes)
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._group_added = asyncio.Event()
        self._idle_turns = 0
        self._stopped = False
        self._mounted_ids = 0  # ids below are of files that were mounted
        self._settling = False
        self._settle_rate = 0.0  # bytes a second
        self._settle_now = asyncio.Event()  # somebody waits for it
        self.settled = asyncio.Event()  # after an exchange: the volume lacks nothing
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    # ---- life

    def register(self, files: Sequence[MountedFile], next_file_id: int) -> array[int]:
        """The regular files of the mounted tree, whose ids are below `next_file_id`; returns their slots."""
        self._mounted_ids = next_file_id
        slots = self._region.mount_files([(ino, entry.file_id, entry.size, len(entry.extents)) for ino, entry in files])
        for slot, file in zip(slots, files, strict=True):
            self._local.know(slot, file.entry.paths[0])
            self._fetcher.know(slot, file.entry.extents)
        return slots

    def start(self) -> None:
        """Begins to listen to the bell, and to the volume."""
        self._redo.start()
        self.listen()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._on_idle)
        self._spawn(self._evictor.run())
        if self._unlinked is not None:
            self._spawn(self._unlinked.run())

    @property
    def gate(self) -> Gate | None:
        """What may hold acknowledgements; None of a mount without a writer."""
        return self._redo.gate if isinstance(self._redo, VolumeRedo) else None

    def listen(self) -> None:
        """Answers the bell. Called anew under a span: pages that are missed while it lasts belong to its trace."""
        asyncio.get_running_loop().add_reader(self._region.bell_fd, self._on_bell)

    async def stop(self) -> None:
        """Stops listening; what was not sent is lost, as it should be: nobody was told that it is durable."""
        self._stopped = True
        asyncio.get_running_loop().remove_reader(self._region.bell_fd)
        self._redo.stop()
        if self._idle is not None:
            self._idle.cancel()
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

    # ---- from a private mount to one that writes

    async def exchange(self, writer: Volume, table: FileTable, rules: Rules, free: Mapping[int, int]) -> Exchange:
        """The mount, which had no writer, is one of `writer` from now on, which nothing was appended to since it was
        opened, and whose file table is `table`; `free`: extents left in each group. The pages that the volume lacks go
        there when it settles.

        Raises ExchangeRefusedError, after which all is as it was. After anything else the mount has failed.
        """
        while self._stopped or (error := self._region.hold()):
            if self._stopped:
                raise EngineError("the mount is closed")
            if error != errno.EBUSY:
                raise EngineError("an engine process died while it changed the mount")
            await asyncio.sleep(_HOLD_PAUSE_S)
        try:
            exchanged = self._exchange_held(writer, table, rules, free)
        except ExchangeRefusedError:
            raise
        except BaseException as failure:
            self._fail(failure if isinstance(failure, Exception) else EngineError(f"{failure!r}"))
            raise
        finally:
            self._region.release()
        self._settle_rate = max(_SETTLE_BYTES_S, exchanged.owed_pages * writer.spec.page_size / _SETTLE_MOST_S)
        self._swap(writer, exchanged)
        return exchanged

    def bring_first(self, reads: Sequence[tuple[int, int, int]], eager: Sequence[int], soon: Sequence[int]) -> None:
        """Begins to bring what the engine reads first after an exchange, of which nothing is here but what it has
        written: pages (slot, first, end), and files. Whoever misses one of them meanwhile waits for the same answer, so
        what is missed first comes by itself."""
        self._spawn(self._bring_first(reads, eager, soon))

    async def _bring_first(
        self, reads: Sequence[tuple[int, int, int]], eager: Sequence[int], soon: Sequence[int]
    ) -> None:
        fetcher = self._fetcher
        with contextlib.suppress(AuroraError):  # the next one who reads it will say so
            await fetcher.fetch_parts(reads[:1])
            await fetcher.fetch_files(eager)
            for part in reads[1:]:
                await fetcher.fetch_parts([part])
            await fetcher.fetch_quietly(soon)

    def _exchange_held(self, writer: Volume, table: FileTable, rules: Rules, free: Mapping[int, int]) -> Exchange:
        root = self._local.root
        here = look(self._region, root)
        plan = difference(here, table, rules, self._mounted_ids, self._region.is_volatile)
        first = here.get(rules.first.path)
        if first is None or all((first.slot, True) != (slot, ours) for slot, _, ours in plan.becomes):
            raise ExchangeRefusedError(f"{os.fsdecode(rules.first.path)} is not as the engine wrote it")
        if plan.log_bytes(len(writer.spec.groups)) > self._region.ring_bytes // 2:
            raise ExchangeRefusedError("the volume and the mount differ in more names than are told at once")
        at = slice(rules.first.first, rules.first.end)
        here_page = Path(root, os.fsdecode(rules.first.path)).read_bytes()[: writer.spec.page_size]
        if len(rules.first.page) != writer.spec.page_size or here_page[at] != rules.first.page[at]:
            raise ExchangeRefusedError(f"{os.fsdecode(rules.first.path)} has changed meanwhile")
        exchange = Exchange(self._region, root, writer.tail_lsn, rules)
        exchange.run(plan, table, free, first.slot)
        slots = {path: found.slot for path, found in here.items()} | {path: at for at, path in exchange.slots.items()}
        exchange.paths = {path: slot for path, slot in slots.items() if slot >= 0}
        return exchange

    def _swap(self, writer: Volume, exchanged: Exchange) -> None:
        self._redo.stop()
        self._fetcher.supersede()
        self._source = writer
        self._redo = VolumeRedo(writer, self._region, self._fail)
        self._evictor.read_from(writer)
        self._fetcher = Fetcher(writer, self._region, self._local, self._evictor.turn)
        for slot, extents in exchanged.extents.items():
            self._fetcher.know(slot, extents)
        for slot, path in exchanged.slots.items():
            self._local.know(slot, path)
        self._unlinked = Unlinked(
            writer,
            self._region,
            self._local,
            self._fetcher,
            root=self._local.root,
            cache_bytes=self._evictor.cache_bytes,
        )
        self._redo.start()
        self._redo.send()
        self._spawn(self._unlinked.run())

    def settle(self) -> None:
        """Begins to bring to the volume what it lacks after an exchange: not with that, as an engine that is being
        promoted reads some pages first, and would wait behind these."""
        if not self._settling:
            self._settling = True
            self._spawn(self._settle())

    def hurry(self) -> None:
        """Somebody waits for that."""
        self._settle_now.set()

    async def wait_settled(self) -> None:
        """Settles without rests; returns when the volume lacks nothing."""
        self.hurry()
        self.settle()
        await self.settled.wait()

    async def _settle_later(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settle_now.wait(), pause_s)

    async def _settle(self) -> None:
        """Logs what the volume lacks, a little at a time."""
        await self._settle_later(_SETTLE_AFTER_S)  # a checkpoint that waits will be seen then
        slot = chunk = 0
        while (at := self._region.next_owed(slot, chunk)) is not None:
            slot, chunk = at
            logged = 0
            fd = await self._local.find(slot)
            if fd is None and not self._region.slot(slot).dropped:
                raise EngineError("a page that the volume lacks cannot be read")
            error = self._region.hold() if fd is not None else 0
            if fd is not None and not error:
                before = self._region.peek().tail
                error = self._region.log_owed(slot, chunk, fd)
                logged = self._region.peek().tail - before
                self._region.release()
            if error == errno.ENOSPC:
                await self._grow_once()
            elif error == errno.EBUSY:
                await asyncio.sleep(_HOLD_PAUSE_S)
            elif error:
                raise EngineError(f"a page that the volume lacks cannot be logged: {os.strerror(error)}")
            self._redo.send()
            if self._region.peek().settle_wanted:
                self.hurry()
            await self._settle_later(logged / self._settle_rate)
            await self._settle_near()
        self._region.settled()
        self.settled.set()

    async def _settle_near(self) -> None:
        while True:
            poll = self._region.peek()
            if poll.tail - poll.durable <= _SETTLE_AHEAD_BYTES:
                return
            await asyncio.sleep(_SETTLE_PAUSE_S)

    # ---- the bell

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._region.bell_fd)
        poll = self._region.poll()
        if poll.state == native.STATE_POISONED:
            self._fail(EngineError("an engine process died while it changed the volume"))
            return
        if poll.requests:
            self._serve_requests()
        if poll.tail > poll.head:
            self._redo.on_bell()

    def _on_idle(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._on_idle)
        if self._region.peek().state == native.STATE_POISONED:
            self._fail(EngineError("an engine process died, or was stopped, while it changed the volume"))
            return
        self._idle_turns += 1
        if self._idle_turns % _RECLAIM_EVERY == 0:
            self._region.reclaim_requests()
        self._redo.send()

    async def flush(self, *, timeout_s: float) -> int:
        """Sends all that is logged by now and waits until it is durable; its LSN. Raises QuorumLostError, FencedError.

        What finds no room on the way goes when something arrives, without a reminder.
        """
        target = self._region.end_lsn
        self._redo.send()
        await self._redo.wait_durable(target, timeout_s)
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
        error, fetcher = errno.EIO, self._fetcher
        try:
            error = await fetcher.tell_extents(request.slot, request.first, request.count)
        finally:
            self._region.answer(index, error if fetcher is self._fetcher else errno.EBUSY)

    async def _serve_pages(self, index: int, request: native.Request) -> None:
        error, fetcher = errno.EIO, self._fetcher
        try:
            error = await fetcher.demand(request)
        except AuroraError as failure:
            if fetcher is self._fetcher:
                _log.error("pages %d+%d of a file cannot be read: %s", request.first, request.count, failure)
        finally:  # what was to come from the volume as it was before an exchange is asked for again
            self._region.answer(index, error if fetcher is self._fetcher else errno.EBUSY)

    async def _serve_growth(self, index: int) -> None:
        """Answers when there is room again; ENOSPC when nobody gave any in time, or the volume may not grow."""
        error = 0
        try:
            async with asyncio.timeout(_GROW_TIMEOUT_S):
                if not self._region.free_extents() and len(self._source.spec.groups) >= self.groups_max:
                    raise StorageError(f"its limit is {self.groups_max} protection groups")
                await self._grow_once()
        except (TimeoutError, AuroraError) as failure:
            _log.error("the volume cannot grow: %s", str(failure) or "no protection group was added in time")
            error = errno.ENOSPC
        finally:
            self._region.answer(index, error)

    async def _grow_once(self) -> None:
        """Returns when there is room."""
        if self._grow is not None and not self._region.free_extents():
            placement = await self._grow()
            self.add_group(placement.group)
        while not self._region.free_extents():
            self._group_added.clear()
            await self._group_added.wait()

    def add_group(self, group: int) -> None:
        """A new protection group takes extents from now on."""
        self._region.add_group(group, self._source.spec.group_bytes // (EXTENT_PAGES * self._source.spec.page_size))
        self._group_added.set()

    async def prefetch(self, slots: Sequence[int]) -> None:
        """Fetches all absent pages of these files."""
        await self._fetcher.fetch_files(slots)

    async def fetch_parts(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """See Fetcher."""
        await self._fetcher.fetch_parts(parts)

    def slots_by_path(self) -> dict[bytes, int]:
        """The slots of the files that were mounted, by the paths that they had then."""
        return self._local.mounted()

    @property
    def cache_pages(self) -> int:
        """How many pages may be here at the moment."""
        return self._evictor.budget_bytes // self._source.spec.page_size

    def prefetch_soon(self, slots: Sequence[int]) -> None:
        """Fetches these files in the background, a little at a time, so that a miss never waits for long behind it."""
        self._spawn(self._fetcher.fetch_quietly(slots))

    # ---- figures

    def stats(self) -> dict[str, int | float]:
        """Counters since mounting, and how full the volume and the local cache are."""
        poll = self._region.peek()
        return {
            **self._region.counters(),
            **self._redo.stats(),
            **self._room(),
            "unsent_bytes": poll.tail - poll.head,
            "cached_bytes": poll.present_pages * self._source.spec.page_size,
            "pages_fetched": self._fetcher.pages_fetched,
            "cache_budget_bytes": self._evictor.budget_bytes,
        }

    def _room(self) -> dict[str, int]:
        """How full the volume is. What an overlay adds is not in it."""
        spec, file_bytes = self._source.spec, self._region.file_bytes()
        if not isinstance(self._redo, VolumeRedo):
            return {"used_bytes": file_bytes}
        extent_bytes = EXTENT_PAGES * spec.page_size
        total, free = len(spec.groups) * (spec.group_bytes // extent_bytes), self._region.free_extents()
        # Of files with holes, what is there.
        return {"used_bytes": min(file_bytes, (total - free) * extent_bytes), "free_bytes": free * extent_bytes}

    def set_cache_bytes(self, cache_bytes: int) -> None:
        """Another budget for the local cache, from now on."""
        self._evictor.set_budget(cache_bytes)
