"""Brings absent pages into the local files: on demand, ahead of sequential readers, or whole files at once."""

from __future__ import annotations

import asyncio
import errno
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora_ray.interposer import native
from aurora_ray.log.layout import NO_GROUP
from aurora_ray.volume.spec import EXTENT_PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aurora_ray.interposer.region import Region
    from aurora_ray.volume.client import Volume
    from aurora_ray.volume.localfiles import LocalFiles

_LEAF_EXTENTS = 64  # how many extents the region keeps together
_PAGES_A_READ = 128  # pages asked of one node at once
_AHEAD_MIN, _AHEAD_MAX = 16, 1024
_READS_AT_ONCE = 8
_NO_EXTENTS: array[int] = array("I")


@dataclass(slots=True)
class _Reader:
    """How a file has been read: where the next miss of a sequential reader would be, and how far to read ahead."""

    expected: int = -1
    ahead: int = 0


class Fetcher:
    """Fetches pages for one region. A page on its way is not asked for twice."""

    def __init__(self, volume: Volume, region: Region, local: LocalFiles) -> None:
        self._volume = volume
        self._region = region
        self._local = local
        self._extents: dict[int, array[int]] = {}
        self._readers: dict[int, _Reader] = {}
        self._coming: dict[tuple[int, int], asyncio.Future[None]] = {}  # (slot, page) -> when it has arrived
        self._permits = asyncio.Semaphore(_READS_AT_ONCE)
        self._background: set[asyncio.Task[None]] = set()
        self.pages_fetched = 0

    def know(self, slot: int, extents: array[int]) -> None:
        """The protection groups of a mounted file's extents; the region is told when it asks."""
        if extents:
            self._extents[slot] = extents

    def tell_extents(self, slot: int, first: int, count: int) -> None:
        """Tells the region where extents [first, first + count) lie."""
        view = self._region.slot(slot)
        extents = self._extents.get(slot, _NO_EXTENTS)[first : min(first + count, view.mounted_extents)]
        if extents:
            self._region.tell_extents(slot, first, extents)

    # ---- what is asked for

    async def demand(self, request: native.Request) -> int:
        """Serves a miss or a prefetch; returns 0 or an errno. Reads on, behind the answer, if the file is read in
        sequence."""
        slot, first, end = request.slot, request.first, request.first + request.count
        if self._local.get(slot, pid=request.pid, fd=request.fd) is None:
            return errno.EIO
        if request.want == native.WANT_PAGES:
            self._look_ahead(slot, first, end)
        return await self._bring(slot, first, end)

    async def fetch_files(self, slots: Sequence[int]) -> None:
        """All absent pages of whole files."""
        page_bytes = self._volume.spec.page_size
        ends = [(slot, -(-self._region.slot(slot).size // page_bytes)) for slot in slots]
        await asyncio.gather(*(self._bring(slot, 0, end) for slot, end in ends))

    def _look_ahead(self, slot: int, first: int, end: int) -> None:
        reader = self._readers.setdefault(slot, _Reader())
        sequential = reader.expected - 1 <= first <= reader.expected + 1 and first > 0
        reader.ahead = min(max(_AHEAD_MIN, reader.ahead * 2), _AHEAD_MAX) if sequential else 0
        reader.expected = end + reader.ahead
        if reader.ahead:
            task = asyncio.create_task(self._ahead(slot, end, end + reader.ahead))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _ahead(self, slot: int, first: int, end: int) -> None:
        await self._bring(slot, first, end)

    # ---- how it comes

    async def _bring(self, slot: int, first: int, end: int) -> int:
        waits: list[asyncio.Future[None]] = []
        reads = []
        for start, count in self._runs(slot, first, end, waits):
            for at in range(start, start + count, _PAGES_A_READ):
                n = min(_PAGES_A_READ, start + count - at)
                done = asyncio.get_running_loop().create_future()
                self._coming.update(dict.fromkeys(((slot, page) for page in range(at, at + n)), done))
                reads.append(self._read(slot, at, n, done))
        error = 0
        for result in await asyncio.gather(*reads):
            error = error or result
        for wait in waits:
            await wait
        return error

    def _runs(self, slot: int, first: int, end: int, waits: list[asyncio.Future[None]]) -> Iterator[tuple[int, int]]:
        """Runs of absent pages that nobody fetches yet; the arrival of the others goes into `waits`."""
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
                if not waits or waits[-1] is not coming:
                    waits.append(coming)
                if page > run:
                    yield run, page - run
                run = page + 1
            if first > run:
                yield run, first - run

    async def _read(self, slot: int, first: int, count: int, done: asyncio.Future[None]) -> int:
        try:
            async with self._permits:
                return await self._read_now(slot, first, count)
        finally:
            for page in range(first, first + count):
                del self._coming[slot, page]
            done.set_result(None)

    async def _read_now(self, slot: int, first: int, count: int) -> int:
        view = self._region.slot(slot)
        first_extent, end_extent = first // EXTENT_PAGES, (first + count - 1) // EXTENT_PAGES + 1
        leaf = first_extent - first_extent % _LEAF_EXTENTS
        self.tell_extents(slot, leaf, -(-(end_extent - leaf) // _LEAF_EXTENTS) * _LEAF_EXTENTS)
        placed, error = [], 0
        for group, at, n in self._by_group(slot, first, count):
            if group is None:
                error = error or self._fill(slot, view.file_id, at, bytes(n), b"")
            else:
                placed.append((group, view.file_id, at, n))
        # An unlinked file that is still open is read as it was before its DROP, once that is durable itself.
        lsn = min(view.drop_lsn, self._volume.vdl) if view.drop_lsn else None
        answers = await self._volume.read_pages(placed, lsn) if placed else ()
        for (_, _, at, _), answer in zip(placed, answers, strict=True):
            error = error or self._fill(slot, view.file_id, at, answer.kinds, answer.pages)
        self.pages_fetched += count
        return error

    def _fill(self, slot: int, file_id: int, first: int, kinds: bytes, pages: bytes) -> int:
        if self._region.slot(slot).file_id != file_id:
            return 0  # the file was dropped and its slot given to another one meanwhile; nobody reads it any more
        fd = self._local.get(slot)
        return errno.EIO if fd is None else self._region.fill(slot, fd, first, kinds, pages)

    def _by_group(self, slot: int, first: int, count: int) -> Iterator[tuple[int | None, int, int]]:
        """(group, first page, pages) of each stretch in one group; group None: never written, zeros."""
        end = first + count
        while first < end:
            group = self._region.extent_group(slot, first // EXTENT_PAGES)
            stop = first
            while stop < end and self._region.extent_group(slot, stop // EXTENT_PAGES) == group:
                stop = min(end, (stop // EXTENT_PAGES + 1) * EXTENT_PAGES)
            yield (None if group == NO_GROUP else group), first, stop - first
            first = stop
