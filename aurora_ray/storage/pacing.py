"""Background work in small steps, so that the foreground never waits long for the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

STEP_S: Final = 0.001
BUSY_REST: Final = 9


class Pacer:
    """`if pacer.due: await pacer.rest()` between steps; work goes on after everything that was ready has run.

    While `busy` says that commits are coming in, work takes only every tenth moment: six nodes that coalesce at once on
    one machine would otherwise take the time that the commits need.
    """

    def __init__(self, step_s: float = STEP_S, *, busy: Callable[[], bool] | None = None) -> None:
        self._step_s = step_s
        self._busy = busy
        self._until_s = time.perf_counter() + step_s

    @property
    def due(self) -> bool:
        """Whether the step has used up its time."""
        return time.perf_counter() >= self._until_s

    async def rest(self) -> None:
        """Lets others run."""
        await asyncio.sleep(self._step_s * BUSY_REST if self._busy is not None and self._busy() else 0)
        self._until_s = time.perf_counter() + self._step_s
