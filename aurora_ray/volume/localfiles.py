"""The local files behind the region's slots, open for the driver's own use.

A file is found through the descriptor of the process that asked for it, so that it may have been renamed or unlinked;
without such a process, by the path at which it was mounted, and if that is no longer so, by a look through the tree.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.interposer.region import Region

_OPEN_MAX = 512
_FLAGS = os.O_RDWR | os.O_CLOEXEC


class LocalFiles:
    """Slot -> open descriptor; the least recently used are closed."""

    def __init__(self, region: Region, root: Path) -> None:
        self._region = region
        self._root = root
        self._paths: dict[int, str] = {}
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # slot -> (inode, descriptor)

    def know(self, slot: int, path: Path) -> None:
        """Where a file was mounted."""
        self._paths[slot] = str(path)

    def close(self) -> None:
        """Closes all of them."""
        for _, fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def get(self, slot: int, *, pid: int = 0, fd: int = -1) -> int | None:
        """A descriptor for reading and writing; None if the file cannot be found. Valid until the next call."""
        ino = self._region.slot(slot).ino
        known = self._open.get(slot)
        if known is not None:
            if known[0] == ino:
                self._open.move_to_end(slot)
                return known[1]
            os.close(self._open.pop(slot)[1])
        path = f"/proc/{pid}/fd/{fd}" if pid and fd >= 0 else self._paths.get(slot, "")
        found = _open_if(path, ino)
        if found is None:
            path = self._search(ino)
            found = _open_if(path, ino)
            self._paths[slot] = path
        if found is None:
            return None
        self._open[slot] = (ino, found)
        if len(self._open) > _OPEN_MAX:
            os.close(self._open.popitem(last=False)[1][1])
        return found

    def _search(self, ino: int) -> str:
        stack = [str(self._root)]
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.inode() == ino:
                        return entry.path
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
        return ""


def _open_if(path: str, ino: int) -> int | None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    if os.fstat(fd).st_ino == ino:
        return fd
    os.close(fd)
    return None
