"""Until when the engine may be told that its redo is durable: commits after that wait, for as long as it takes.

What is durable on the storage nodes of one region may still be lost with the region, or be overtaken by another one
that was promoted. Where somebody has to be sure of it first (a lease, a bound on the RPO), commits are acknowledged up
to a moment only, which is put off again and again. Whoever is stopped, or is not heard of, lets the moment go by:
nobody has to reach this process for it to acknowledge nothing more. Nothing else stops; what is held is told when the
moment moves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def running_clock_s() -> float:
    """Seconds on a clock that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Gate:
    """Stands before what tells the engine. The moment is one of `clock`; None: there is no limit."""

    def __init__(self, publish: Callable[[int], None], clock: Callable[[], float] = running_clock_s) -> None:
        self._publish, self._clock = publish, clock
        self._until_s: float | None = None
        self._held: int | None = None  # up to here it may be told when the moment moves

    @property
    def holds(self) -> bool:
        """Whether the moment has gone by."""
        return self._until_s is not None and self._clock() >= self._until_s

    def durable(self, vdl: int) -> None:
        """All up to `vdl` is durable: tells it, now or later."""
        if self.holds:
            self._held = vdl
            return
        self._held = None
        self._publish(vdl)

    def lower(self, until_s: float) -> float:
        """Moves the moment, if it is not before that already; what the clock says."""
        known_s = float("inf") if self._until_s is None else self._until_s
        return self.limit(min(known_s, until_s) if min(known_s, until_s) != float("inf") else None)

    def limit(self, until_s: float | None) -> float:
        """Moves the moment; what the clock says."""
        self._until_s = until_s
        if self._held is not None and not self.holds:
            held, self._held = self._held, None
            self._publish(held)
        return self._clock()
