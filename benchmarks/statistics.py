"""Medians with their spread, ratios between neighbours in time, and when not to speak of a difference.

A ratio is taken within a round, where both systems were measured within seconds of each other; then the median of the
ratios. Figures of different rounds are never divided: on a machine whose speed drifts, that would compare hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

ROUNDS_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the extremes of some rounds."""

    median: float
    low: float
    high: float
    count: int

    @property
    def noise(self) -> float:
        """Half of what lies between the extremes."""
        return (self.high - self.low) / 2


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1], len(ordered))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one system's figures relate to another's, as ratios; None where they have no round in common."""

    ratio: Spread | None

    @property
    def measurable(self) -> bool:
        """False if the ratios lie on both sides of 1 and differ among themselves by more than their median from 1."""
        ratio = self.ratio
        if ratio is None or ratio.count < ROUNDS_MIN:
            return False
        straddles = ratio.low < 1 < ratio.high
        return not (straddles and ratio.noise > abs(ratio.median - 1))

    @property
    def value(self) -> float | None:
        """The median of the ratios, if it may be spoken of."""
        return self.ratio.median if self.ratio is not None and self.measurable else None

    def __str__(self) -> str:
        if self.ratio is None:
            return "no round in common"
        if self.ratio.count < ROUNDS_MIN:
            return "one round: no comparison"
        limits = f"{self.ratio.low:.2f} to {self.ratio.high:.2f}"
        if not self.measurable:
            return f"no difference measurable ({limits})"
        return f"{self.ratio.median:.2f} ({limits})"


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Comparison:
    """Figures by round; rounds that only one of them has do not count."""
    ratios = [ours[each] / theirs[each] for each in sorted(ours.keys() & theirs.keys()) if theirs[each] > 0]
    return Comparison(spread(ratios) if ratios else None)
