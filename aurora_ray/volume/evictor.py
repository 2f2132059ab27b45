"""Keeps the local cache within its budget by giving back chunks that are clean and not in use (CLOCK)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aurora_ray.interposer import native

if TYPE_CHECKING:
    from aurora_ray.interposer.region import Region
    from aurora_ray.volume.client import Volume
    from aurora_ray.volume.localfiles import LocalFiles

_INTERVAL_S = 0.25
_AT_ONCE = 64  # chunks a turn: each is a hole punched, half a millisecond at most
_STEPS = 4096
_LOW_WATER = 0.9


class Evictor:
    """Evicts down to 90 % of the budget whenever the cache exceeds it."""

    def __init__(self, volume: Volume, region: Region, local: LocalFiles, cache_bytes: int) -> None:
        self._volume = volume
        self._region = region
        self._local = local
        self._pages_max = cache_bytes // volume.spec.page_size
        self._hand = native.Candidate()

    async def run(self) -> None:
        """Looks at the cache for ever."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self._local.refresh()  # the next turn needs files that this one did not find
            present = self._region.peek().present_pages
            if present > self._pages_max:
                await self._evict(present - int(self._pages_max * _LOW_WATER))

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
        vdl = self._volume.vdl
        for slot, chunk in self._region.evictable(self._hand, vdl, _AT_ONCE, _STEPS):
            fd = self._local.get(slot)
            if fd is not None:
                freed += self._region.evict(slot, chunk, self._region.slot(slot).ino, fd, vdl)
        return freed
