"""Callers without the fleet's secret, as troubles: told while they come, and for a while after the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.troubles import Trouble, TroubleCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUIET_S: Final = 600.0  # without a refusal for so long, it is over: an event at most twice in that time, whoever knocks
_SENTENCE: Final = (
    "somebody who does not know this fleet's secret calls it, and is refused: a process of another fleet with an old "
    "address, or a stranger on this machine; `aurora_storage_refused` in the metrics counts the calls to storage nodes"
)


class Refusals:
    """Of all that count them. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._last_s: dict[str, float] = {}

    def saw(self, subject: str, count: int) -> None:
        """So many were refused by now, as `subject` says. What is told first may be old; with less, it began anew."""
        before = self._counts.get(subject)
        self._counts[subject] = count
        if before is not None and count > before:
            self._last_s[subject] = self._clock()

    def troubles(self) -> Iterator[Trouble]:
        """One for each that refused somebody of late."""
        since_s = self._clock() - QUIET_S
        for subject, last_s in sorted(self._last_s.items()):
            if last_s > since_s:
                yield Trouble(TroubleCode.CALLER_REFUSED, subject, _SENTENCE)
