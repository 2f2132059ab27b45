"""How far a copy is behind its primary, in bytes and in time; never out of date without saying so. Pure.

The time is an age: that of the oldest moment from which on the copy may lack something. While nothing is missing of
what the primary's nodes tell, and they tell something every second, there is no lag. When they fall silent, the age
grows from the last moment at which nothing was missing. Flushes carry the primary's clock, so across machines the
figures are as good as their clocks agree.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

SILENT_S: Final = 2.5  # a copy of the primary's tells its VDL every second; longer silence says nothing is known
_PENDING_MAX: Final = 4096
_SAMPLES: Final = 1024


class Lag(NamedTuple):
    """`lag_ms` and `lag_bytes`: how far behind; `heard_ms`: how old that is. The last two: how long the newest flushes
    took from the primary's writing to four of six here, half of them at most and 99 % at most. What was written before
    the copy began to follow, while it was away, was not on its way, and is not among them.
    """

    lag_ms: float
    lag_bytes: int
    heard_ms: float
    p50_ms: float
    p99_ms: float


class LagMeter:
    """Times are in seconds since 1970; LSNs in bytes."""

    def __init__(self, lsn: int, now_s: float) -> None:
        """The copy is durable up to `lsn`; nothing is known yet of the primary."""
        self.lsn = lsn
        self.source_lsn = lsn
        self._heard_s = self._began_s = now_s
        self._current_as_of_s = now_s  # all that was durable then at the primary is durable here
        self._pending: deque[tuple[int, float]] = deque()  # (end, when written) of flushes on their way
        self._took_s: deque[float] = deque(maxlen=_SAMPLES)

    def on_flush(self, end: int, written_s: float) -> None:
        """A flush was handed to the nodes here."""
        if len(self._pending) >= _PENDING_MAX:  # counts as written with the one before it: no later than it was
            written_s = self._pending.pop()[1]
        self._pending.append((end, written_s))
        self.source_lsn = max(self.source_lsn, end)

    def on_durable(self, lsn: int, now_s: float) -> None:
        """It is durable here up to `lsn`."""
        self.lsn = max(self.lsn, lsn)
        while self._pending and self._pending[0][0] <= lsn:
            _, written_s = self._pending.popleft()
            if written_s >= self._began_s:
                self._took_s.append(max(0.0, now_s - written_s))
            self._current_as_of_s = max(self._current_as_of_s, min(written_s, now_s))
        self._settle()

    def on_heard(self, source_lsn: int, heard_s: float) -> None:
        """At `heard_s` a node of the primary's said that at least `source_lsn` is durable there."""
        self.source_lsn = max(self.source_lsn, source_lsn)
        self._heard_s = max(self._heard_s, heard_s)
        self._settle()

    def _settle(self) -> None:
        if self.lsn >= self.source_lsn:
            self._current_as_of_s = max(self._current_as_of_s, self._heard_s)

    def lag(self, now_s: float) -> Lag:
        """As of now."""
        heard_for_s = max(0.0, now_s - self._heard_s)
        behind = self.lsn < self.source_lsn or heard_for_s > SILENT_S
        age_s = max(0.0, now_s - self._current_as_of_s) if behind else 0.0
        took_s = sorted(self._took_s)
        return Lag(
            lag_ms=1e3 * age_s,
            lag_bytes=max(0, self.source_lsn - self.lsn),
            heard_ms=1e3 * heard_for_s,
            p50_ms=1e3 * took_s[len(took_s) // 2] if took_s else 0.0,
            p99_ms=1e3 * took_s[min(len(took_s) - 1, len(took_s) * 99 // 100)] if took_s else 0.0,
        )
