"""What an engine uses at the moment: CPU time of its processes, from /proc, and its clients' sessions.

It is looked at in a thread, now and then: whoever asks gets what was seen last. Only who decides by it waits a moment
for the look that is due (`fresh`), as what was seen last is as old as the question before.

CPU time is the scheduler's own where a process has one thread: ticks of 10 ms would be a good part of what a small
quota gives between two looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 2.0
PROCESSES_A_SECOND: Final = 200  # with more processes it looks less often
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


def processes_below(pid: int) -> list[int]:
    """The processes that `pid` started and that still run; empty if it is gone."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


def cpu_seconds(pid: int, below: Sequence[int]) -> float:
    """CPU time of a process, of those that it started, and of those of them that have ended."""
    return sum(_cpu_seconds(pid)) + sum(_cpu_seconds(each)[0] for each in below)


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """Its own, and that of waited-for children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own_s, ended_s = ((int(fields[n]) + int(fields[n + 1])) / _TICKS_A_SECOND for n in (11, 13))
        if int(fields[17]) == 1:  # threads: of several, the scheduler's file says what the first one used
            with contextlib.suppress(OSError, ValueError, IndexError):  # a kernel without it
                own_s = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0
    return own_s, ended_s


class Usage:
    """Of one engine after the other. `sessions` counts the clients of an engine with these processes; `counters`, asked
    at the same moments, are numbers that grow; `busy` counts those clients that are in the middle of something. Belongs
    to one event loop."""

    def __init__(
        self,
        sessions: Callable[[int, Sequence[int]], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = LOOK_EVERY_S,
        counters: Callable[[], Mapping[str, float]] = dict,
        busy: Callable[[int, Sequence[int]], int] | None = None,
    ) -> None:
        self._sessions = sessions
        self._busy = busy
        self._clock = clock
        self.every_s = every_s
        self._counters = counters
        self._counted: Mapping[str, float] = {}
        self._looking: asyncio.Future[None] | None = None
        self._next_s = 0.0
        self._pid = 0
        self._seen: tuple[float, float] = (0.0, 0.0)  # when, and its CPU time by then
        self._last: dict[str, int | float] = {}

    def of(self, pid: int) -> dict[str, int | float]:
        """`connections`, `busy`, and from the second look on since the look before: `cpu_percent` of this machine's
        CPUs, `cpus`, and how much each counter has grown a second (`NAME_rate`). `looked_at_s`: when, monotonic;
        `looked_at_unix_s`: by the machine's time of day."""
        if pid != self._pid:
            self._pid, self._last, self._next_s = pid, {}, 0.0
        idle = self._looking is None or self._looking.done()
        if pid and idle and self._clock() >= self._next_s:
            self._next_s = self._clock() + self.every_s
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._look, pid)
        return self._last

    async def fresh(self, pid: int, within_s: float) -> dict[str, int | float]:
        """The same, with the look that is due; what was seen last, if that takes longer."""
        self.of(pid)
        if self._looking is not None and not self._looking.done():
            await asyncio.wait({self._looking}, timeout=within_s)
        return self._last

    def begin_anew(self) -> None:
        """What it was given has just changed: the next look shall say nothing of the time before."""
        if self._pid and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().run_in_executor(None, self._count_from_now, self._pid)

    def _count_from_now(self, pid: int) -> None:
        now, counted = (self._clock(), cpu_seconds(pid, processes_below(pid))), self._counters()
        if pid == self._pid:
            self._seen, self._counted, self._next_s = now, counted, now[0] + self.every_s

    def _look(self, pid: int) -> None:
        below = processes_below(pid)
        before, now = self._seen, (self._clock(), cpu_seconds(pid, below))
        counted, grown = self._counters(), self._counted
        found: dict[str, int | float] = {"connections": self._sessions(pid, below)}
        if self._busy is not None:
            found["busy"] = self._busy(pid, below)
        if "connections" in self._last:
            took_s = max(now[0] - before[0], 1e-3)
            cpus = max(0.0, now[1] - before[1]) / took_s
            found["cpu_percent"] = round(100 * cpus / (os.cpu_count() or 1), 1)
            found |= {"cpus": round(cpus, 3), "looked_at_s": round(now[0], 3), "looked_at_unix_s": time.time()}
            found |= {f"{name}_rate": round((counted[name] - grown.get(name, 0)) / took_s, 3) for name in counted}
        if pid == self._pid:  # else there is another engine by now
            self._seen, self._last, self._counted = now, found, counted
            self._next_s = now[0] + max(self.every_s, len(below) / PROCESSES_A_SECOND)
