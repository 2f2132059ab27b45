"""How much CPU an engine's processes may use together: a control group of their own, of version 1 or 2.

Sources: the kernel's admin-guide/cgroup-v2 (`cpu.max`, `cpu.stat`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).

Where no group can be made (an ordinary user, a container without its own), nothing holds an engine back: it is told
nothing and stopped by nothing, `is_enforced` says so, and its use alone says what it wants. To stop and continue its
processes in turn would do what a quota does, but not here: a stopped process is what the health checks are made to
find, one that is stopped with a latch holds up all of its server's, and one with the region's lock, its driver. To
bind it to some CPUs holds back by whole CPUs only, of which an ACU is a quarter, and keeps the kernel from using
others that are idle.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from aurora_ray.compute.cgroup import ROOT, Group, places

_log = logging.getLogger(__name__)
PERIOD_US: Final = 100_000
LEAST_US: Final = 1_000  # the kernel's own bound


class CpuQuota:
    """Of one engine; `name` is the same for whatever takes its place, so that nothing is left but one empty group.
    `root`: where proc and sys lie, for tests."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self._name = name
        self._root = root
        self._group: Group | None = None

    @property
    def is_enforced(self) -> bool:
        """Whether anything holds the engine back."""
        return self._group is not None

    def hold(self, pid: int, cpus: float) -> None:
        """From now on: the process, all below it, and all that they start."""
        for group in places("cpu", self._name, self._root):
            try:
                group.make()
                _limit(group, cpus)
                group.take(pid)
            except OSError as error:
                _log.info("no CPU quota at %s: %s", group.directory, error)
                group.remove()
                continue
            self._group = group
            return

    def limit(self, cpus: float) -> None:
        """Another quota; at once."""
        if self._group is not None:
            with contextlib.suppress(FileNotFoundError):  # the engine has ended, and so has this
                _limit(self._group, cpus)

    def held_back_s(self) -> float:
        """Seconds in which it had used its quota up and waited for the next period, since it is held."""
        if self._group is None:
            return 0.0
        try:
            lines = self._group.read("cpu.stat").splitlines()
        except OSError:
            return 0.0
        counts = dict(line.split() for line in lines if line.count(" ") == 1)
        return int(counts.get("nr_throttled", 0)) * PERIOD_US / 1e6

    def close(self) -> None:
        """The engine has ended. The next one takes a group over that is not gone yet."""
        if self._group is not None and self._group.remove():
            self._group = None


def _limit(group: Group, cpus: float) -> None:
    """0: none."""
    quota = max(LEAST_US, round(cpus * PERIOD_US)) if cpus else 0
    if group.version == 2:
        group.write("cpu.max", f"{quota or 'max'} {PERIOD_US}")
        return
    group.write("cpu.cfs_period_us", PERIOD_US)
    group.write("cpu.cfs_quota_us", quota or -1)
