"""How much CPU an engine's processes may use together: a control group of their own, of version 1 or 2.

Sources: the kernel's admin-guide/cgroup-v2 (`cpu.max`, `cpu.stat`) and scheduler/sched-bwc (`cpu.cfs_quota_us`). It is
made beside the groups that this process is in, at the first place where that can be: version 2 needs the `cpu`
controller there, handed down by `cgroup.subtree_control`. What an engine starts later is in its parent's group.

Where no group can be made (an ordinary user, a container without its own), nothing holds an engine back: it is told
nothing and stopped by nothing, `is_enforced` says so, and its use alone says what it wants.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_ray.compute.usage import processes_below

_log = logging.getLogger(__name__)
_ROOT: Final = Path("/")
PERIOD_US: Final = 100_000
LEAST_US: Final = 1_000  # the kernel's own bound
MOVES_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class _Group:
    version: int
    directory: Path

    def limit(self, cpus: float) -> None:
        """0: none."""
        quota = max(LEAST_US, round(cpus * PERIOD_US)) if cpus else 0
        if self.version == 2:
            (self.directory / "cpu.max").write_text(f"{quota or 'max'} {PERIOD_US}")
            return
        (self.directory / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self.directory / "cpu.cfs_quota_us").write_text(str(quota or -1))


class CpuQuota:
    """Of one engine; `name` is the same for whatever takes its place, so that nothing is left but one empty group.
    `root`: where proc and sys lie, for tests."""

    def __init__(self, name: str, root: Path = _ROOT) -> None:
        self._name = name
        self._root = root
        self._group: _Group | None = None

    @property
    def is_enforced(self) -> bool:
        """Whether anything holds the engine back."""
        return self._group is not None

    def hold(self, pid: int, cpus: float) -> None:
        """From now on: the process, all below it, and all that they start."""
        for version, parent in _places(self._root):
            group = _Group(version, parent / self._name)
            try:
                group.directory.mkdir(exist_ok=True)
                group.limit(cpus)
                self._take(group, pid)
            except OSError as error:
                _log.info("no CPU quota at %s: %s", group.directory, error)
                with contextlib.suppress(OSError):
                    group.directory.rmdir()
                continue
            self._group = group
            return

    def limit(self, cpus: float) -> None:
        """Another quota; at once."""
        if self._group is not None:
            with contextlib.suppress(FileNotFoundError):  # the engine has ended, and so has this
                self._group.limit(cpus)

    def held_back_s(self) -> float:
        """Seconds in which it had used its quota up and waited for the next period, since it is held."""
        if self._group is None:
            return 0.0
        try:
            lines = (self._group.directory / "cpu.stat").read_text().splitlines()
        except OSError:
            return 0.0
        counts = dict(line.split() for line in lines if line.count(" ") == 1)
        return int(counts.get("nr_throttled", 0)) * PERIOD_US / 1e6

    def close(self) -> None:
        """The engine has ended. Processes that are on their way out keep the group; the next one takes it over."""
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.directory.rmdir()
            if not self._group.directory.exists():
                self._group = None

    def _take(self, group: _Group, pid: int) -> None:
        """First whoever starts others, then those; again, until nobody is new."""
        taken: set[int] = set()
        for _ in range(MOVES_MAX):
            there = {pid, *processes_below(pid)} - taken
            for each in sorted(there, key=lambda each: each != pid):
                with contextlib.suppress(ProcessLookupError):
                    (group.directory / "cgroup.procs").write_text(str(each))
            if not there:
                return
            taken |= there


def _places(root: Path) -> list[tuple[int, Path]]:
    """Where a group might be made: (version, directory of the parent)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    top, places = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            mounts = [top / "cpu", top / controllers]
            places += [(1, at) for at in _upwards(mounts, path) if (at / "cpu.cfs_quota_us").parent.is_dir()]
        elif not controllers:
            places += [(2, at) for at in _upwards([top], path) if _hands_down_cpu(at)]
    return places


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


def _hands_down_cpu(directory: Path) -> bool:
    try:
        return "cpu" in (directory / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
