"""Brings absent pages into the local files: on demand, ahead of sequential readers, or whole files at once.

A page costs little to read and a message costs much, so what is asked for while some reads are on their way is gathered
and goes out together: a single miss is read at once, and an engine that recovers, which asks for thousands of scattered
pages one by one, far ahead, gets them by the dozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aurora_ray.errors import AuroraError, OutOfRangeError
from aurora_ray.interposer import native
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.mount.readahead import Stream
from aurora_ray.volume.read.pages import PageRange, PageRun

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from aurora_ray.interposer.region import Region
    from aurora_ray.mount.localfiles import LocalFiles
    from aurora_ray.volume.read.source import PageSource

_LEAF_EXTENTS = 64  # how many extents the region keeps together
_PAGES_A_READ = 128  # pages asked of one node at once
_READS_AT_ONCE = 8
_READS_HURRIED = 2  # with fewer reads than these on their way, whatever is wanted goes out at once;
_PAGES_WORTH_IT = 32  # with more, only so many together
_BUSY_S = 0.01  # until the next try, while an engine process is at a long local write
_ROOM_TRIES = 50  # how often room is made on a full disk before a read fails
_TOO_LATE_TRIES = 5  # how often a read is made anew that waited until what it asks for was no longer kept
_QUIET_PAGES = 4096  # fetched on suspicion after a mount
_NO_EXTENTS: array[int] = array("I")


@dataclass(slots=True, eq=False)
class _Wanted:
    """Absent pages of one file, as runs (first, count) in order, and how many they are. When `arrived` is done, `error`
    is an errno or 0, or `failure` is raised."""

    slot: int
    runs: list[tuple[int, int]]
    count: int
    arrived: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    error: int = 0
    failure: BaseException | None = None

    @property
    def pages(self) -> Iterator[tuple[int, int]]:
        """Each page, with its file's slot."""
        return ((self.slot, page) for first, count in self.runs for page in range(first, first + count))


class Fetcher:
    """Fetches pages for one region. A page on its way is not asked for twice."""

    def __init__(
        self, source: PageSource, region: Region, local: LocalFiles, make_room: Callable[[], int] = lambda: 0
    ) -> None:
        """`make_room`: evicts something and returns the pages freed; called when the local disk is full."""
        self._make_room = make_room
        self._source = source
        self._region = region
        self._local = local
        self._extents: dict[int, array[int]] = {}
        self._streams: dict[int, Stream] = {}
        self._coming: dict[tuple[int, int], _Wanted] = {}  # by slot and page
        self._queue: deque[_Wanted] = deque()
        self._queued_pages = 0
        self._reading = 0
        self._start_is_due = False
        self._background: set[asyncio.Task[None]] = set()
        self.pages_fetched = 0
        self._superseded = False

    def supersede(self) -> None:
        """Another one fetches from now on, of what the volume is then: nothing that is on its way is filled in, and who
        waits for it does so no longer: what is read as of before may never come, as nobody reads there any more."""
        self._superseded = True
        self._queue.clear()
        for wanted in set(self._coming.values()):
            self._over(wanted, errno.EBUSY)
        for task in self._background:
            task.cancel()

    async def stop(self) -> None:
        """Ends all reads; whoever waits for one is not answered any more."""
        self._queue.clear()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def know(self, slot: int, extents: array[int]) -> None:
        """The protection groups of a mounted file's extents; the region is told when it asks."""
        if extents:
            self._extents[slot] = extents

    async def tell_extents(self, slot: int, first: int, count: int) -> int:
        """Tells the region where extents [first, first + count) lie. Returns 0 or an errno."""
        while True:
            if self._superseded:
                return errno.EBUSY  # whoever asked asks again
            view = self._region.slot(slot)
            extents = self._extents.get(slot, _NO_EXTENTS)[first : min(first + count, view.mounted_extents)]
            error = self._region.tell_extents(slot, first, extents) if extents else 0
            if error != errno.EBUSY:
                return error
            await asyncio.sleep(_BUSY_S)

    # ---- what is asked for

    async def demand(self, request: native.Request) -> int:
        """Serves a miss or a prefetch; returns 0 or an errno. Reads on, behind the answer, if the file is read in
        sequence."""
        slot, first, end = request.slot, request.first, request.first + request.count
        if await self._local.find(slot, pid=request.pid, fd=request.fd) is None:
            return errno.EIO
        missed = request.want == native.WANT_PAGES
        if missed:
            self._look_ahead(slot, first, end)
        return await self._bring(slot, first, end, hurried=missed)

    async def fetch_part(self, slot: int, first: int, end: int) -> int:
        """What is absent of pages [first, end) of a file; 0 or an errno."""
        return await self._bring(slot, first, end)

    async def fetch_files(self, slots: Sequence[int]) -> None:
        """All absent pages of whole files."""
        page_bytes = self._source.spec.page_size
        ends = [(slot, -(-self._region.slot(slot).size // page_bytes)) for slot in slots]
        await asyncio.gather(*(self._bring(slot, 0, end) for slot, end in ends))

    async def fetch_quietly(self, slots: Sequence[int]) -> None:
        """As `fetch_files`, one message's worth after the other, up to _QUIET_PAGES; errors are the next reader's."""
        page_bytes = self._source.spec.page_size
        left = _QUIET_PAGES
        together: list[int] = []
        pages = 0
        for slot in slots:
            count = -(-self._region.slot(slot).size // page_bytes)
            left -= count
            if left < 0:
                break
            together.append(slot)
            pages += count
            if pages >= _PAGES_A_READ:
                await self._fetch_or_leave(together)
                together, pages = [], 0
        await self._fetch_or_leave(together)

    async def _fetch_or_leave(self, slots: Sequence[int]) -> None:
        with contextlib.suppress(AuroraError):
            await self.fetch_files(slots)

    def _look_ahead(self, slot: int, first: int, end: int) -> None:
        due = self._streams.setdefault(slot, Stream()).follow(first, end)
        if due:
            self._spawn(self._ahead(slot, due.start, due.stop))

    async def _ahead(self, slot: int, first: int, end: int) -> None:
        await self._bring(slot, first, end)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ---- how it comes

    async def _bring(self, slot: int, first: int, end: int, *, hurried: bool = False) -> int:
        """Fetches what is absent of these pages; 0 or an errno. `hurried`: before all that nobody misses yet."""
        others: dict[_Wanted, None] = {}
        mine = [
            _Wanted(slot, [(at, n)], n)
            for start, count in self._runs(slot, first, end, others)
            for at, n in _split(start, count)
        ]
        return await self._arrival(mine, others, hurried=hurried)

    async def fetch_parts(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """What is absent of many stretches of pages, each (slot, first, end) and no two with a page in common. Those of
        a file that follow each other are asked for together. Raises what reading raises."""
        others: dict[_Wanted, None] = {}
        mine: list[_Wanted] = []
        for slot, first, end in parts:
            for start, count in self._runs(slot, first, end, others):
                for at, n in _split(start, count):
                    if mine and mine[-1].slot == slot and mine[-1].count + n <= _PAGES_A_READ:
                        mine[-1].runs.append((at, n))
                        mine[-1].count += n
                    else:
                        mine.append(_Wanted(slot, [(at, n)], n))
        await self._arrival(mine, others)

    async def _arrival(self, mine: list[_Wanted], others: Iterable[_Wanted], *, hurried: bool = False) -> int:
        """Asks for `mine`, and waits for these and for `others`; 0 or an errno."""
        for wanted in mine:
            self._coming.update(dict.fromkeys(wanted.pages, wanted))
            self._queued_pages += wanted.count
        if hurried:
            self._queue.extendleft(reversed(mine))
        else:
            self._queue.extend(mine)
        if mine and not self._start_is_due:
            self._start_is_due = True
            asyncio.get_running_loop().call_soon(self._start)  # others may be about to ask for something as well
        waits = {wanted.arrived for wanted in (*others, *mine)}
        if waits:
            await asyncio.wait(waits)
        for wanted in mine:
            if wanted.failure is not None:
                raise wanted.failure
        return next((wanted.error for wanted in mine if wanted.error), 0)

    def _start(self) -> None:
        """Sends what waits, as far as it shall go now."""
        self._start_is_due = False
        while self._queue and self._reading < _READS_AT_ONCE:
            if self._reading >= _READS_HURRIED and self._queued_pages < _PAGES_WORTH_IT:
                return
            self._reading += 1
            self._spawn(self._read(self._gather()))

    def _gather(self) -> list[_Wanted]:
        """What goes out together."""
        queue = self._queue
        together = [queue.popleft()]
        pages = together[0].count
        while queue and pages + queue[0].count <= _PAGES_A_READ:
            together.append(queue.popleft())
            pages += together[-1].count
        self._queued_pages -= pages
        return together

    def _runs(self, slot: int, first: int, end: int, others: dict[_Wanted, None]) -> Iterator[tuple[int, int]]:
        """Runs of absent pages that nobody fetches yet; what is on its way already goes into `others`."""
        while True:
            start, count = self._region.absent_run(slot, first, end)
            if not count:
                return
            first = start + count
            run = start
            for page in range(start, first):
                coming = self._coming.get((slot, page))
                if coming is None:
                    continue
                others[coming] = None
                if page > run:
                    yield run, page - run
                run = page + 1
            if first > run:
                yield run, first - run

    async def _read(self, together: list[_Wanted]) -> None:
        try:
            await self._read_in_time(together)
        except BaseException as error:
            for wanted in together:
                wanted.failure = None if wanted.arrived.done() else error
            if not isinstance(error, Exception):
                raise
        finally:
            self._reading -= 1
            for wanted in together:
                self._over(wanted, wanted.error)
            self._start()

    def _over(self, wanted: _Wanted, error: int) -> None:
        if wanted.arrived.done():  # when this one was superseded
            return
        wanted.error = error
        for page in wanted.pages:
            del self._coming[page]
        wanted.arrived.set_result(None)

    async def _read_in_time(self, together: list[_Wanted]) -> None:
        """Storage nodes may let go of history while a read waits for them. Pages as of a newer LSN do as well: what was
        changed since then is here already."""
        for left in reversed(range(_TOO_LATE_TRIES)):
            newest = self._source.read_lsn
            try:
                return await self._read_now(together, newest)
            except OutOfRangeError:
                if not left or self._source.read_lsn == newest:
                    raise
        return None

    async def _read_now(self, together: list[_Wanted], newest: int) -> None:
        by_lsn: dict[int, list[tuple[_Wanted, PageRange]]] = {}
        for wanted in together:
            view = self._region.slot(wanted.slot)
            # An unlinked file that is still open is read as it was before its DROP, once that is durable itself. One
            # that is unlinked after this look has a DROP above `newest`.
            lsn = min(view.drop_lsn, newest) if view.drop_lsn else newest
            wanted.error = await self._learn_extents(wanted)
            if wanted.error:
                continue
            for group, at, n in self._by_group(wanted):
                if group is None:
                    run = PageRun(bytes(n), b"")
                    wanted.error = wanted.error or await self._fill(wanted.slot, view.file_id, at, run, lsn)
                else:
                    by_lsn.setdefault(lsn, []).append((wanted, PageRange(group, view.file_id, at, n)))
        for lsn, placed in by_lsn.items():  # nearly always one
            answers = await self._source.read_pages([place for _, place in placed], lsn)
            for (wanted, place), answer in zip(placed, answers, strict=True):
                wanted.error = wanted.error or await self._fill(
                    wanted.slot, place.file_id, place.first_page, answer, lsn
                )
        self.pages_fetched += sum(wanted.count for wanted in together)

    async def _learn_extents(self, wanted: _Wanted) -> int:
        first, last = wanted.runs[0][0] // EXTENT_PAGES, (sum(wanted.runs[-1]) - 1) // EXTENT_PAGES
        end = last + 1
        leaf = first - first % _LEAF_EXTENTS
        return await self.tell_extents(wanted.slot, leaf, -(-(end - leaf) // _LEAF_EXTENTS) * _LEAF_EXTENTS)

    async def _fill(self, slot: int, file_id: int, first: int, run: PageRun, lsn: int) -> int:
        """Puts what was read as of `lsn` into the local file; returns 0 or an errno."""
        tries = _ROOM_TRIES
        while True:
            if self._superseded:
                return errno.EBUSY
            view = self._region.slot(slot)
            if view.file_id != file_id:
                return 0  # the file was dropped and its slot given to another one meanwhile; nobody reads it any more
            fd = self._local.known(slot, view.ino)  # most often, and a recovery has tens of thousands of these
            fd = fd if fd is not None else await self._local.find(slot)
            if fd is None:
                return errno.EIO
            if self._superseded:  # while it was looked for
                return errno.EBUSY
            error = self._region.fill(slot, fd, first, run.kinds, run.pages, lsn=lsn)
            if error == errno.EBUSY:
                await asyncio.sleep(_BUSY_S)
            elif error == errno.ENOSPC and tries:
                tries -= 1
                if not self._make_room():
                    await asyncio.sleep(_BUSY_S)
            else:
                return error

    def _by_group(self, wanted: _Wanted) -> Iterator[tuple[int | None, int, int]]:
        """(group, first page, pages) of each stretch in one group; group None: never written, zeros."""
        for first, count in wanted.runs:
            end = first + count
            while first < end:
                group = self._region.extent_group(wanted.slot, first // EXTENT_PAGES)
                stop = min(end, (first // EXTENT_PAGES + 1) * EXTENT_PAGES)
                while stop < end and self._region.extent_group(wanted.slot, stop // EXTENT_PAGES) == group:
                    stop = min(end, (stop // EXTENT_PAGES + 1) * EXTENT_PAGES)
                yield group, first, stop - first
                first = stop  # noqa: PLW2901


def _split(first: int, count: int) -> Iterator[tuple[int, int]]:
    """A run in pieces (first, count) that one read can take."""
    for at in range(first, first + count, _PAGES_A_READ):
        yield at, min(_PAGES_A_READ, first + count - at)
