"""Background work in small steps, so that the foreground never waits long for the event loop, nor for a CPU."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

STEP_S: Final = 0.001
BUSY_REST: Final = 9  # times a step's length, while commits come in
OTHERS_REST: Final = 4  # ... of another volume, for one that has reason to go on: what shares its CPU waits for it
OPENING_REST: Final = 49  # while an engine starts
OPENING_S: Final = 15.0  # at most, for the background's sake
STEP_COUNTS_S: Final = 0.05  # at most, however long a step took: it may have waited for a disk
READS_GO_ON_S: Final = 0.5  # after one: they come by the dozen, in turns to the copies


class Openings:
    """Whether an engine that starts reads from this node just now, or is about to.

    Of its recovery, clients wait for the end. It comes when commits have ended, which is when all copies would find the
    time to merge what they have put off: on the same CPUs, that took longer than all that was read.
    """

    def __init__(self) -> None:
        self._since_s = self._read_s = float("-inf")

    def begin(self) -> None:
        """Somebody opens a volume."""
        self._since_s = self._read_s = time.monotonic()

    def note_read(self) -> None:
        """Somebody reads pages."""
        self._read_s = time.monotonic()

    @property
    def go_on(self) -> bool:
        """Whether more is to be read for one."""
        now_s = time.monotonic()
        return now_s - self._read_s < READS_GO_ON_S and now_s - self._since_s < OPENING_S


class Traffic:
    """When redo of writers came in to a node, by volume as far as it matters: whose came last, and when another's."""

    def __init__(self) -> None:
        self._volume, self._at_s = b"", -math.inf
        self._other_s = -math.inf

    def note(self, volume: bytes, now_s: float) -> None:
        """Redo of that volume was stored."""
        if volume != self._volume:
            self._other_s, self._volume = self._at_s, volume
        self._at_s = now_s

    def of_others_s(self, volume: bytes) -> float:
        """When redo of any other volume came last, on the same clock."""
        return self._at_s if volume != self._volume else self._other_s


class Pacer:
    """`if pacer.due: await pacer.rest()` between steps; work goes on after everything that was ready has run.

    `rest_s` says for how long somebody else shall have the time after it worked for so long: six nodes that coalesce at
    once on one machine would otherwise take what commits need.
    """

    def __init__(self, step_s: float = STEP_S, *, rest_s: Callable[[float], float] = lambda _: 0.0) -> None:
        self._step_s = step_s
        self._rest_s = rest_s
        self._until_s = time.perf_counter() + step_s

    @property
    def due(self) -> bool:
        """Whether the step has used up its time."""
        return time.perf_counter() >= self._until_s

    async def rest(self) -> None:
        """Lets others run."""
        worked_s = time.perf_counter() - self._until_s + self._step_s
        await asyncio.sleep(self._rest_s(worked_s))
        self._until_s = time.perf_counter() + self._step_s
