"""Redo that comes in faster than layers are made of it, for long, is acknowledged later.

What waits for its layers costs room on the disk, and memory when it is read. So a stream that brings redo to a segment
with too much of it is told nothing before a layer has made room. That takes HOLD_S_MAX at most: a writer that heard
nothing for longer would take the node for a dead one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.storage.segment.segment import Segment

HOLD_S_MAX: Final = 3.0
LOOK_S: Final = 0.05


class Hold:
    """The replies that one stream is still owed. `release` is told how many, when they may go."""

    def __init__(self, crowded: Callable[[Segment], bool], release: Callable[[int], object]) -> None:
        self._crowded, self._release = crowded, release
        self._owed = 0
        self._until_s = 0.0
        self._looking: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> bool:
        """Whether replies wait at the moment."""
        return self._looking is not None

    def takes(self, segment: Segment | None) -> bool:
        """Whether a reply has to wait, for layers of this segment or behind others that do; it is owed then."""
        if self._looking is None and segment is not None:
            self._until_s = time.monotonic() + HOLD_S_MAX
            self._look(segment)
        self._owed += self.holds
        return self.holds

    def end(self) -> None:
        """Nobody waits any more."""
        if self._looking is not None:
            self._looking.cancel()
        self._looking, self._owed = None, 0

    def _look(self, segment: Segment) -> None:
        if self._crowded(segment) and time.monotonic() < self._until_s:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look, segment)
            return
        self._looking, owed, self._owed = None, self._owed, 0
        if owed:
            self._release(owed)


async def wait_for_layers(crowded: Callable[[Segment], bool], segment: Segment) -> None:
    """The same for a stream that is served one message after the other."""
    until_s = time.monotonic() + HOLD_S_MAX
    while crowded(segment) and time.monotonic() < until_s:  # noqa: ASYNC110 - many things change it, all of them often
        await asyncio.sleep(LOOK_S)
