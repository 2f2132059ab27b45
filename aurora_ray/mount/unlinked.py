"""Keeps readable what is open without a name.

A file that has lost its last name is read as of just before that by whoever still has it open, and the storage nodes
collect history as time goes on. So the mount holds their floor: at what was durable when it last looked for such files,
which are found every second, and below while there are any of which pages are absent. A small file is
brought in, and then nobody asks the volume for it again. The history of a large one is held as long as some process has
it open, and for `_HOLD_MAX_S` at most: a descriptor that is never closed must not keep all history.

Who has a file open is seen in /proc. A descriptor that is on its way over a socket at that moment is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError
from aurora_ray.interposer.region import device_of_files

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.interposer.region import Region
    from aurora_ray.mount.fetcher import Fetcher
    from aurora_ray.mount.localfiles import LocalFiles
    from aurora_ray.volume.write.volume import Volume

LOOK_S: Final = 1.0
_RENEWALS: Final = 3  # within the time of a lease
_LEASE_S: Final = 20.0
_HOLD_MAX_S: Final = 3600.0
_PAUSE_FACTOR: Final = 20  # between looks through /proc, so many times the CPU time of the last one
_SMALL_PARTS: Final = 8  # of the cache: a file of so much is brought in,
_PAGES_A_LOOK: Final = 2048  # a little at a time

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Gone:
    """A file without a name, of which pages are absent."""

    file_id: int
    ino: int
    drop_lsn: int
    since_s: float


class Unlinked:
    """Looks for files that have lost their last name and holds, or brings in, what is absent of them."""

    def __init__(
        self, volume: Volume, region: Region, local: LocalFiles, fetcher: Fetcher, *, root: Path, cache_bytes: int
    ) -> None:
        self._volume = volume
        self._region = region
        self._local = local
        self._fetcher = fetcher
        self._root = root
        self._pages_max = cache_bytes // volume.spec.page_size // _SMALL_PARTS
        self._holder = f"mount-{volume.epoch}"
        self._gone: dict[int, _Gone] = {}  # by slot
        self._next_lsn = 0
        self._next_search_s = 0.0

    async def run(self) -> None:
        """Looks for ever."""
        renew_from_s = 0.0
        while True:
            held_lsn = self._volume.vdl  # what goes from now on goes above
            found = self._find_gone()
            if self._gone and time.monotonic() >= self._next_search_s:
                await self._settle()
            if found or time.monotonic() >= renew_from_s:
                lsns = [min(gone.drop_lsn, held_lsn) for gone in self._gone.values()]
                granted_s = await self._volume.hold(self._holder, min([held_lsn, *lsns]), _LEASE_S)
                renew_from_s = time.monotonic() + granted_s / _RENEWALS
            await asyncio.sleep(LOOK_S)

    def _find_gone(self) -> bool:
        """Takes in what was dropped since the last time."""
        known = len(self._gone)
        self._next_lsn, slots = self._region.dropped_since(self._next_lsn)
        for slot in slots:
            view = self._region.slot(slot)
            self._gone[slot] = _Gone(view.file_id, view.ino, view.drop_lsn, time.monotonic())
        return len(self._gone) > known

    async def _settle(self) -> None:
        """Brings in what is small, and forgets what nobody can ask for any more."""
        opened, took_s = await asyncio.to_thread(self._search, {gone.ino for gone in self._gone.values()})
        self._next_search_s = time.monotonic() + _PAUSE_FACTOR * took_s
        left = _PAGES_A_LOOK
        for slot, gone in list(self._gone.items()):
            where = opened.get(gone.ino)
            if where is None or self._region.slot(slot).file_id != gone.file_id:
                del self._gone[slot]
            elif time.monotonic() - gone.since_s > _HOLD_MAX_S:
                _log.error(
                    "process %d has had a file open for long that has no name: parts of it become unreadable", where[0]
                )
                del self._gone[slot]
            elif left > 0:
                left -= await self._bring(slot, where)

    def _search(self, inodes: set[int]) -> tuple[dict[int, tuple[int, int]], float]:
        """Who has these files open, and how long a processor was busy with that."""
        start_s = time.thread_time()
        return who_has_open(device_of_files(self._root), inodes), time.thread_time() - start_s

    async def _bring(self, slot: int, where: tuple[int, int]) -> int:
        """Brings in the next absent pages of a file that a process has open. Returns how many were looked at."""
        pages = -(-self._region.slot(slot).size // self._volume.spec.page_size)
        if pages > self._pages_max:
            return 0
        self._local.get(slot, pid=where[0], fd=where[1])  # where the fetcher finds it
        first, count = self._region.absent_run(slot, 0, pages)
        if count:
            with contextlib.suppress(AuroraError):  # the next look tries again
                await self._fetcher.fetch_part(slot, first, min(pages, first + _PAGES_A_LOOK))
        if not self._region.absent_run(slot, 0, pages)[1]:
            del self._gone[slot]
        return _PAGES_A_LOOK if count else 0


def who_has_open(device: int, inodes: set[int]) -> dict[int, tuple[int, int]]:
    """Of files on a device: inode -> (process, descriptor) of somebody else who has it open."""
    found: dict[int, tuple[int, int]] = {}
    own = str(os.getpid())
    for process in filter(str.isdigit, os.listdir("/proc")):
        if process == own:
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    state = os.stat(f"/proc/{process}/fd/{descriptor}")
                    if state.st_ino in inodes and state.st_dev == device:
                        found[state.st_ino] = int(process), int(descriptor)
    return found
