"""How many readers a cluster shall have, by what they have to do: a rule of target tracking, as a user declares it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aurora_ray.errors import UsageError

READERS_MAX = 15  # of a cluster, as Aurora has them
COOLDOWN_S = 300.0


class ScalingMetric(StrEnum):
    """What is averaged over the readers that serve."""

    CPU = "cpu"  # percent of its machine's CPUs that a reader's engine uses
    CONNECTIONS = "connections"  # sessions of a reader


def scaling_metric(word: str) -> ScalingMetric:
    """The metric of that name. Raises UsageError."""
    if word not in tuple(ScalingMetric):
        raise UsageError(f"{word!r} is no metric of readers: choose {' or '.join(ScalingMetric)}")
    return ScalingMetric(word)


@dataclass(frozen=True, slots=True)
class ReaderScaling:
    """There shall be as many readers, from `min_readers` to `max_readers`, as keep the metric's average at `target`.

    For `cooldown_out_s` after a change none are added, for `cooldown_in_s` none are removed.
    """

    min_readers: int
    max_readers: int
    metric: ScalingMetric
    target: float
    cooldown_out_s: float = COOLDOWN_S
    cooldown_in_s: float = COOLDOWN_S

    def __post_init__(self) -> None:
        if not 0 <= self.min_readers <= self.max_readers <= READERS_MAX or not self.max_readers:
            raise UsageError(
                f"there can be from 0 readers to {READERS_MAX}, and 1 at most at least, "
                f"not from {self.min_readers} to {self.max_readers}"
            )
        if not self.target > 0 or (self.metric is ScalingMetric.CPU and self.target > 100):
            raise UsageError(
                f"{self.target:g} is no target for {self.metric}: it is a positive number (percent for cpu)"
            )
        if min(self.cooldown_in_s, self.cooldown_out_s) < 0:
            raise UsageError("a cool-down is a number of seconds")

    def report(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "min": self.min_readers,
            "max": self.max_readers,
            "metric": str(self.metric),
            "target": self.target,
            "cooldown_out_s": self.cooldown_out_s,
            "cooldown_in_s": self.cooldown_in_s,
        }
