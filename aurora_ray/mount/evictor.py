"""Keeps the local cache within its budget by giving back chunks that are clean and not in use.

CLOCK with a little memory (see ar_evictable): what is used again and again outlives what a scan has touched once. The
budget gives way to others: when its disk runs full, the cache is the one thing on it that can be had again.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from aurora_ray.interposer import native

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.interposer.region import Region
    from aurora_ray.mount.localfiles import LocalFiles
    from aurora_ray.volume.read.source import PageSource

_INTERVAL_S = 0.25
_AT_ONCE = 64  # chunks a turn: each is a hole punched, half a millisecond at most
_STEPS = 4096
_LOW_WATER = 0.9
_DISK_EVERY = 8  # looks at the cache for one at its disk
_BUDGET_MIN_BYTES = 16 << 20
_MIB, _GIB = 1 << 20, 1 << 30


def default_cache_bytes(mount_dir: Path) -> int:
    """A quarter of what is free on the disk where a mount is to be made, from 256 MiB to 64 GiB."""
    return min(max(_free_bytes(mount_dir)[0] // 4, 256 * _MIB), 64 * _GIB)


def within_disk(budget_bytes: int, cached_bytes: int, free_bytes: int, disk_bytes: int) -> int:
    """What of a budget the cache may have while so much is free: a fiftieth of the disk, at most 2 GiB, stays free."""
    room = free_bytes - min(disk_bytes // 50, 2 * _GIB)
    return min(budget_bytes, max(cached_bytes + room, _BUDGET_MIN_BYTES))


def _free_bytes(directory: Path) -> tuple[int, int]:
    """What is free on the disk of a directory, which may not be there yet, and how large that disk is."""
    while not directory.exists():
        directory = directory.parent
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


class Evictor:
    """Evicts down to 90 % of the budget whenever the cache under `root` exceeds it."""

    def __init__(self, source: PageSource, region: Region, local: LocalFiles, root: Path, cache_bytes: int) -> None:
        self._root = root
        self._cache_bytes = cache_bytes
        self._source = source
        self._region = region
        self._local = local
        self._pages_max = cache_bytes // source.spec.page_size
        self._hand = native.Candidate()

    def set_budget(self, cache_bytes: int) -> None:
        """From now on; what is above it goes soon."""
        self._cache_bytes = cache_bytes
        self._fit_disk()

    @property
    def cache_bytes(self) -> int:
        """The budget, whatever the disk has."""
        return self._cache_bytes

    def read_from(self, source: PageSource) -> None:
        """What is evicted comes from there from now on."""
        self._source = source

    @property
    def budget_bytes(self) -> int:
        """What the cache may have at the moment."""
        return self._pages_max * self._source.spec.page_size

    async def run(self) -> None:
        """Looks at the cache for ever."""
        looks = 0
        while True:
            await asyncio.sleep(_INTERVAL_S)
            looks += 1
            if looks % _DISK_EVERY == 0:
                self._fit_disk()
            await self._local.refresh()  # the next turn needs files that this one did not find
            present = self._region.peek().present_pages
            if present > self._pages_max:
                await self._evict(present - int(self._pages_max * _LOW_WATER))

    def _fit_disk(self) -> None:
        page_bytes = self._source.spec.page_size
        cached_bytes = self._region.peek().present_pages * page_bytes
        budget = within_disk(self._cache_bytes, cached_bytes, *_free_bytes(self._root))
        self._pages_max = budget // page_bytes

    async def _evict(self, pages: int) -> None:
        idle_turns = 0
        while pages > 0 and idle_turns < 64:
            freed = self.turn()
            pages -= freed
            idle_turns = 0 if freed else idle_turns + 1
            await asyncio.sleep(0)

    def turn(self) -> int:
        """Moves the hand once. Returns the pages freed."""
        freed = 0
        vdl = self._source.read_lsn
        for slot, chunk in self._region.evictable(self._hand, vdl, _AT_ONCE, _STEPS):
            fd = self._local.get(slot)
            if fd is not None:
                freed += self._region.evict(slot, chunk, self._region.slot(slot).ino, fd, vdl)
        return freed
