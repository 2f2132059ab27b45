"""What a machine has for engines: memory and CPUs, as far as this process may use them.

A container's limits count: of the control groups that the process is in, each of version 1 or 2, and of those above
them. Sources: the kernel's admin-guide/cgroup-v2 (`memory.max`, `cpu.max`) and cgroup-v1 (`memory.limit_in_bytes`,
`cpu.cfs_quota_us`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_ray.config import KIB

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory, and CPUs (a container may have a fraction)."""

    memory_bytes: int
    cpus: float


def this_machine(root: Path = _ROOT) -> Machine:
    """The machine or container that this process runs in; `root`: where its proc and sys lie, for tests."""
    memory_bytes, cpus = _total_memory(root), float(len(os.sched_getaffinity(0)))
    for version, directory in _groups(root):
        limit = _number(directory / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        memory_bytes = min(memory_bytes, int(limit or memory_bytes))
        cpus = min(cpus, _quota(version, directory) or cpus)
    return Machine(memory_bytes, cpus)


def _total_memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * KIB
    raise OSError("the kernel does not say how much memory there is")


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """The control groups with limits for this process, as (version, directory), from its own up to the root.

    In a container with a namespace of its own, the path is one of the host's that is not seen here: the mount's root
    holds the limits then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = [name for name in controllers.split(",") if name in ("memory", "cpu")]
        mounts = [(2, top)] if not controllers else [(1, top / name) for name in names]
        for version, mount in mounts:
            directory = mount / path.lstrip("/")
            while directory != mount and mount in directory.parents:
                yield version, directory
                directory = directory.parent
            yield version, mount


def _quota(version: int, directory: Path) -> float | None:
    """CPUs that a control group may use in sum."""
    if version == 2:
        words = _text(directory / "cpu.max").split()
        quota, period = (words[0], words[1]) if len(words) == 2 else ("max", "0")
    else:
        quota, period = _text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
