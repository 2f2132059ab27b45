"""Control groups of the kernel, of version 1 or 2: where one can be made, and who is in it.

A group is made beside those that this process is in, at the first place where that can be: version 2 needs the
controller there, handed down by `cgroup.subtree_control`. What a process starts later is in its parent's group.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_ray.compute.usage import processes_below

ROOT: Final = Path("/")
MOVES_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Group:
    """A directory of one hierarchy."""

    version: int
    directory: Path

    def make(self) -> None:
        """Raises OSError."""
        self.directory.mkdir(exist_ok=True)

    def read(self, name: str) -> str:
        """Raises OSError."""
        return (self.directory / name).read_text()

    def write(self, name: str, value: object) -> None:
        """Raises OSError."""
        (self.directory / name).write_text(str(value))

    def take(self, pid: int) -> None:
        """Has a process in it and all below: first whoever starts others, then those; again, until nobody is new.
        Raises OSError.
        """
        taken: set[int] = set()
        for _ in range(MOVES_MAX):
            there = {pid, *processes_below(pid)} - taken
            for each in sorted(there, key=lambda each: each != pid):
                with contextlib.suppress(ProcessLookupError):
                    self.write("cgroup.procs", each)
            if not there:
                return
            taken |= there

    def remove(self) -> bool:
        """Whether it is gone: processes that are on their way out keep it."""
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        return not self.directory.exists()


def places(controller: str, name: str, root: Path = ROOT) -> list[Group]:
    """Groups of that name that might be made for a controller. `root`: where proc and sys lie, for tests."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    top, found = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            found += [Group(1, at / name) for at in _upwards([top / controller, top / controllers], path)]
        elif not controllers:
            found += [Group(2, at / name) for at in _upwards([top], path) if _hands_down(at, controller)]
    return found


def _upwards(mounts: list[Path], path: str) -> list[Path]:
    """A group and those above it; in a container its path may be one of the host's that is not seen here."""
    found = []
    for mount in mounts:
        if not (mount / "cgroup.procs").exists():
            continue
        directory = mount / path.lstrip("/")
        while directory != mount and mount in directory.parents:
            if directory.is_dir():
                found.append(directory)
            directory = directory.parent
        found.append(mount)
    return found


def _hands_down(directory: Path, controller: str) -> bool:
    try:
        return controller in (directory / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
