"""Which pages the recovery of a server is going to read, found in its WAL and brought ahead of it.

A recovery on a new mount finds nothing there. It looks ahead in the WAL itself and asks for pages early, but one by
one, each through the region and the driver's event loop, and that is most of what a recovery takes. Here the same WAL
is read a stretch at a time, from the last checkpoint's redo point on, and what its records change is brought by the
hundred.

It is a hint and nothing else. What is brought is what a miss would bring, pages that come late or never are missed and
read as ever, and whatever cannot be read here, the recovery will complain of.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import struct
from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aurora_ray.engine._wal import blocks
from aurora_ray.engine.base import PagesOf
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, Recovery
from aurora_ray.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator
    from pathlib import Path

    from aurora_ray.engine.base import Bring

PAGE_BYTES: Final = 8192
STRETCH_PAGES: Final = (32, 512)  # of WAL: the first stretch, and the longest
STRETCHES_AT_ONCE: Final = 2  # of which pages are on their way
SEGMENT_PAGES: Final = 1 << 17  # of a relation's file, of 1 GiB
TIMELINES_MAX: Final = 16  # how far back names are tried; between two checkpoints there are hardly two
_RELATIVE: Final = {1663: "base/{1}/{2}", 1664: "global/{2}"}  # by tablespace; others lie elsewhere, and are missed
_FORKS: Final = ("", "_fsm", "_vm", "_init")
_BLOCK: Final = struct.Struct("=5I")


class _File(NamedTuple):
    tablespace: int
    database: int
    relation: int
    fork: int
    segment: int

    @property
    def path(self) -> bytes:
        """Relative to the data directory."""
        path = _RELATIVE[self.tablespace].format(*self) + _FORKS[self.fork]
        return f"{path}.{self.segment}".encode() if self.segment else path.encode()


async def foresee(data_dir: Path, bring: Bring, pages_max: int) -> None:
    """Brings what the recovery on `data_dir` will read, `pages_max` pages at most. Raises what `bring` raises."""
    control = await asyncio.to_thread(_read, data_dir / os.fsdecode(CONTROL_PATH), 0, PAGE_BYTES)
    try:
        recovery = Recovery.read(control)
    except MalformedError:
        return
    seen: set[tuple[_File, int]] = set()
    coming: deque[asyncio.Task[None]] = deque()
    try:
        async with contextlib.aclosing(_stretches(data_dir, bring, recovery)) as stretches:
            async for refs in stretches:
                wanted = [ref for ref in _places(refs) if ref not in seen]
                seen.update(wanted)
                if len(seen) > pages_max:
                    break
                if len(coming) == STRETCHES_AT_ONCE:
                    await coming.popleft()
                coming.append(asyncio.create_task(bring(list(_runs(wanted)))))
        while coming:
            await coming.popleft()
    finally:
        await _end(*coming)


async def _stretches(data_dir: Path, bring: Bring, recovery: Recovery) -> AsyncGenerator[bytes, None]:
    """What `blocks` finds in the WAL, a stretch after the other. The next one is asked for before pages of this one
    are: it would come behind them."""
    base = recovery.redo - recovery.redo % PAGE_BYTES
    content, at, prev, more = bytearray(), recovery.redo, 0, not recovery.needless
    lengths = (min(STRETCH_PAGES[0] << number, STRETCH_PAGES[1]) for number in itertools.count())

    def ask(start: int) -> asyncio.Task[bytes]:
        return asyncio.create_task(_wal(data_dir, bring, recovery, start, next(lengths)))

    ahead = ask(base)
    try:
        while more:
            start = base + len(content)
            content += await ahead
            if base + len(content) == start:
                return
            ahead = ask(base + len(content))
            await asyncio.sleep(0)  # so that it has been asked for
            at, prev, more, refs = blocks(content, base, at, prev, recovery.wal_segment_bytes, False)
            keep = at - at % PAGE_BYTES
            del content[: keep - base]
            base = keep
            yield refs
    finally:
        await _end(ahead)


async def _wal(data_dir: Path, bring: Bring, recovery: Recovery, start: int, pages_max: int) -> bytes:
    """Pages of WAL from a position on, at most to the end of its segment; none where there is no such segment."""
    number, offset = divmod(start, recovery.wal_segment_bytes)
    high, low = divmod(number, (1 << 32) // recovery.wal_segment_bytes)
    names = [f"pg_wal/{timeline:08X}{high:08X}{low:08X}" for timeline in _timelines(recovery)]
    path = next((name for name in names if (data_dir / name).exists()), names[-1])
    pages = min(pages_max, (recovery.wal_segment_bytes - offset) // PAGE_BYTES)
    await bring([PagesOf(path.encode(), offset // PAGE_BYTES, pages)])

    content = await asyncio.to_thread(_read, data_dir / path, offset, pages * PAGE_BYTES)
    return content[: len(content) - len(content) % PAGE_BYTES]


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _timelines(recovery: Recovery) -> range:
    """The newest first: what it has of a segment of an older one is a copy. Which of them count is not asked."""
    return range(recovery.newest, max(recovery.timeline, recovery.newest - TIMELINES_MAX) - 1, -1)


def _read(path: Path, offset: int, nbytes: int) -> bytes:
    """Nothing of what is no file: its name may lead anywhere."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, nbytes, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _places(refs: bytes) -> Iterator[tuple[_File, int]]:
    """File and page of each block, in order."""
    for tablespace, database, relation, fork, number in _BLOCK.iter_unpack(refs):
        if tablespace in _RELATIVE and fork < len(_FORKS):
            segment, page = divmod(number, SEGMENT_PAGES)
            yield _File(tablespace, database, relation, fork, segment), page


def _runs(places: Iterable[tuple[_File, int]]) -> Iterator[PagesOf]:
    """Neighbours together."""
    for file, of_file in groupby(places, lambda place: place[0]):
        path = file.path
        for _, run in groupby(enumerate(of_file), lambda each: each[1][1] - each[0]):
            pages = [page for _, (_, page) in run]
            yield PagesOf(path, pages[0], len(pages))
