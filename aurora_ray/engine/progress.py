"""How far a server that follows has replayed, in the volume's LSNs, and for how long it is behind. Pure: the clock
comes in. A place in what it is fed with (`wal`: PostgreSQL's WAL, MariaDB's binary log) is a number that only grows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

POINTS_MAX: Final = 8192  # a standby that waits for a long query meanwhile; then newer points are joined


@dataclass(slots=True)
class _Point:
    """Up to this position of the WAL replayed, a standby shows the volume as of `lsn`."""

    wal: int
    lsn: int
    came_s: float


class Progress:
    """Points that were given out and are not replayed yet, in order."""

    def __init__(self, lsn: int) -> None:
        self.replayed_lsn = lsn
        self._points: deque[_Point] = deque()
        self._applied = 0
        self._missed_s: float | None = None

    def missed(self, came_s: float) -> None:
        """The log went on while there was no standby to give it to."""
        if self._missed_s is None:
            self._missed_s = came_s

    def given(self, wal: int, lsn: int, came_s: float) -> None:
        """WAL up to `wal` was given out, and that is all that the volume has as of `lsn`."""
        last = self._points[-1] if self._points else None
        came_s, self._missed_s = came_s if self._missed_s is None else self._missed_s, None
        if last is None and wal <= self._applied:
            self.replayed_lsn = lsn
        elif last is not None and (last.wal == wal or len(self._points) >= POINTS_MAX):
            last.wal, last.lsn = wal, lsn
        else:
            self._points.append(_Point(wal, lsn, came_s))

    def applied(self, wal: int) -> None:
        """The standby says that it has replayed up to `wal`."""
        self._applied = max(self._applied, wal)
        while self._points and self._points[0].wal <= wal:
            self.replayed_lsn = self._points.popleft().lsn

    def waits_since(self) -> float | None:
        """Since when the oldest point that is not replayed is known; None if all are."""
        return self._points[0].came_s if self._points else self._missed_s
