"""Background work in small steps, so that the foreground never waits long for the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Final

STEP_S: Final = 0.001


class Pacer:
    """`if pacer.due: await pacer.rest()` between steps; work goes on after everything that was ready has run."""

    def __init__(self, step_s: float = STEP_S) -> None:
        self._step_s = step_s
        self._until_s = time.perf_counter() + step_s

    @property
    def due(self) -> bool:
        """Whether the step has used up its time."""
        return time.perf_counter() >= self._until_s

    async def rest(self) -> None:
        """Lets others run."""
        await asyncio.sleep(0)
        self._until_s = time.perf_counter() + self._step_s
