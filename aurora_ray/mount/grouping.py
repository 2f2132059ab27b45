"""When the next flush goes: which commits are waited for so that they can share it.

A flush costs the machine a message to each node whatever it carries. While one is on its way, commits gather for the
next. When it is done there are two wishes: to go at once, for those who wait already, and to let those join who were
just released and will soon commit again. A commit that begins to wait is an *arrival*. Those of the flush that is done
and those since it left are about as many as the sessions that commit at this time. The next flush goes when `SHARE` of
them wait, and at the latest after `WAIT_S`; the others run until then, and while it is on its way. A session that
commits alone never waits: it is all of them.

Only commits that wait outside the engine's WAL flush are arrivals (`interposer/src/intercept_commit.c`); whoever else
waits for durability rings the bell himself.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.interposer.region import Region

SHARE: Final = 0.85
WAIT_S: Final = 0.003
_NOBODY: Final = (1 << 64) - 1


class Grouping:
    """Has the region's bell rung, or calls `go`, when the next flush is due. For one event loop; `close` it at the end.

    It is told of each flush that goes (`sent`), and when none is on its way any more (`done`).
    """

    def __init__(self, region: Region, go: Callable[[], None]) -> None:
        self._region = region
        self._go = go
        self._before = 0  # arrivals before those whose flush was sent last
        self._taken = 0  # arrivals in what was sent
        self._share = 1  # of the sessions: so many arrivals and the next one goes
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Calls `go` no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sent(self, arrivals: int) -> None:
        """A flush goes that has what the first `arrivals` wait for: whoever comes now waits for its end."""
        self.close()
        self._before, self._taken = self._taken, arrivals
        self._region.bell_at(_NOBODY)

    def done(self) -> bool:
        """Nothing is on its way any more. True if the next is due at once; if not, it will be said when it is."""
        self.close()
        sessions = self._region.bell_at(_NOBODY) - self._before
        self._share = max(1, math.ceil(SHARE * sessions))
        if self._has_come(self._share):
            return True
        if self._share > 1:
            self._timer = asyncio.get_running_loop().call_later(WAIT_S, self._waited)
        return False

    def holds(self) -> bool:
        """Whether what was logged shall wait for others, though nothing is on its way."""
        return self._timer is not None and not self._has_come(self._share)

    def _waited(self) -> None:
        """Whoever waits by now goes; if nobody does, the first who comes goes alone."""
        self._timer = None
        if self._has_come(1):
            self._go()

    def _has_come(self, share: int) -> bool:
        """Whether so many have come since the last flush; if not, the one who makes it so many rings."""
        return self._region.bell_at(self._taken + share) >= self._taken + share
