"""Signs of life that the kernel knows of a process: its state, and the CPU time that it and its children used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STOPPED = "T"


@dataclass(frozen=True, slots=True)
class Progress:
    """`cpu_s` has a resolution of nanoseconds, so that a process that gets almost nothing still shows."""

    state: str
    cpu_s: float

    @property
    def stopped(self) -> bool:
        """Stopped by a signal (a process under a debugger has another state, t)."""
        return self.state == STOPPED


def progress_of(pid: int) -> Progress | None:
    """Of a process, all its threads and its direct children; None if there is no such process."""
    state = state_of(pid)
    if state is None:
        return None
    return Progress(state, sum(_cpu_ns(one) for one in (pid, *children_of(pid))) / 1e9)


def state_of(pid: int) -> str | None:
    """The letter of a process's state; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[0]


def children_of(pid: int) -> Iterable[int]:
    """Process ids of those that the process started and that still run."""
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                yield from (int(word) for word in path.read_text().split())


def _cpu_ns(pid: int) -> int:
    total_ns = 0
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                total_ns += int(path.read_text().split()[0])
    return total_ns
