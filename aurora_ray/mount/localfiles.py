"""The local files behind the region's slots, open for the driver's own use.

A file is found through the descriptor of the process that asked for it, so that it may have been renamed or unlinked;
without such a process, by the path at which it was last seen, and if that is no longer so, by a look through the tree.
That look takes a while and is made in a thread, not more often than its length allows: commits wait for the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.interposer.region import Region

_OPEN_MAX = 512
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_PAUSE_MIN_S = 1.0  # between two looks through the tree that nobody waits for,
_PAUSE_FACTOR = 20  # and so many times as long as the last one took


class LocalFiles:
    """Slot -> open descriptor; the least recently used are closed."""

    def __init__(self, region: Region, root: Path) -> None:
        self._region = region
        self._root = root
        self._paths: dict[int, str | bytes] = {}  # below the root, if it is bytes
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # slot -> (inode, descriptor)
        self._seen: dict[int, str] = {}  # inode -> path, at the last look through the tree
        self._look: asyncio.Future[None] | None = None
        self._next_look_s = 0.0
        self._missed = False

    @property
    def root(self) -> Path:
        """Where they lie."""
        return self._root

    def know(self, slot: int, path: bytes) -> None:
        """Where below the root a file was mounted."""
        self._paths[slot] = path

    def mounted(self) -> dict[bytes, int]:
        """The slots of files by where they were mounted, of those that nobody has opened by another name since."""
        return {path: slot for slot, path in self._paths.items() if isinstance(path, bytes)}

    def close(self) -> None:
        """Closes all of them."""
        for _, fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def get(self, slot: int, *, pid: int = 0, fd: int = -1) -> int | None:
        """A descriptor for reading and writing, valid until the next call; None if nobody knows where the file is."""
        ino = self._region.slot(slot).ino
        known = self.known(slot, ino)
        if known is not None:
            return known
        if slot in self._open:
            os.close(self._open.pop(slot)[1])
        found = self._find(slot, ino, pid, fd)
        if found is None:
            self._missed = True
            return None
        self._open[slot] = (ino, found)
        if len(self._open) > _OPEN_MAX:
            os.close(self._open.popitem(last=False)[1][1])
        return found

    def known(self, slot: int, ino: int) -> int | None:
        """As `get`, if the file with this inode number is open."""
        known = self._open.get(slot)
        if known is None or known[0] != ino:
            return None
        self._open.move_to_end(slot)
        return known[1]

    async def find(self, slot: int, *, pid: int = 0, fd: int = -1) -> int | None:
        """As `get`, with a look through the tree before it gives up."""
        found = self.get(slot, pid=pid, fd=fd)
        if found is None:
            await self._look_through()
            found = self.get(slot, pid=pid, fd=fd)
        return found

    async def refresh(self) -> None:
        """A look through the tree, if a file was missed since the last one and that was long enough ago."""
        if self._missed and time.monotonic() >= self._next_look_s:
            await self._look_through()

    def search(self) -> None:
        """Looks through the tree at once, in this thread."""
        self._seen = files_below(os.fspath(self._root))

    def _find(self, slot: int, ino: int, pid: int, fd: int) -> int | None:
        if pid and fd >= 0:
            link = f"/proc/{pid}/fd/{fd}"
            found = _open_if(link, ino)
            if found is not None:
                with contextlib.suppress(OSError):
                    self._paths[slot] = os.readlink(link)
                return found
        mounted = self._paths.get(slot)
        if isinstance(mounted, bytes):
            mounted = os.path.join(self._root, os.fsdecode(mounted))
        for path in (mounted, self._seen.get(ino)):
            found = None if path is None else _open_if(path, ino)
            if found is not None:
                return found
        return None

    async def _look_through(self) -> None:
        """Joins one that is on its way."""
        if self._look is None:
            self._look = asyncio.ensure_future(self._look_in_thread())
        await asyncio.shield(self._look)

    async def _look_in_thread(self) -> None:
        start_s = time.monotonic()
        self._missed = False
        try:
            self._seen = await asyncio.to_thread(files_below, os.fspath(self._root))
        finally:
            self._look = None
            took_s = time.monotonic() - start_s
            self._next_look_s = time.monotonic() + max(_PAUSE_MIN_S, _PAUSE_FACTOR * took_s)


def files_below(root: str) -> dict[int, str]:
    """Inode -> a path of each file below a directory. What goes away meanwhile is left out."""
    found: dict[int, str] = {}
    stack = [root]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    found[entry.inode()] = entry.path
    return found


def _open_if(path: str, ino: int) -> int | None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    if os.fstat(fd).st_ino == ino:
        return fd
    os.close(fd)
    return None
