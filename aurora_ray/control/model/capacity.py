"""Between which capacities a cluster's instances scale by themselves, as a user declares it: Aurora Serverless.

Capacity is in ACUs, in steps of half of one; what an ACU is, engine/sizes.py says. With a minimum of 0 the cluster is
paused when nobody has used it for a while: its storage stays, and whoever connects wakes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.engine.sizes import ACU_STEP
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

ACU_MAX: Final = 256.0
PAUSE_AFTER_S: Final = 300.0
PAUSE_AFTER_MIN_S: Final = 10.0
PAUSE_AFTER_MAX_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Each instance has from `min_acu` to `max_acu`; with 0 at least, the cluster is paused after `pause_after_s`
    without use."""

    min_acu: float
    max_acu: float
    pause_after_s: float = PAUSE_AFTER_S

    def __post_init__(self) -> None:
        for name, acu in (("minimum", self.min_acu), ("maximum", self.max_acu)):
            if not 0 <= acu <= ACU_MAX:
                raise UsageError(f"a capacity is from 0 to {ACU_MAX:g} ACU: the {name} cannot be {acu:g}")
            if acu % ACU_STEP:
                raise UsageError(f"capacity comes in steps of {ACU_STEP:g} ACU: the {name} cannot be {acu:g}")
        if self.max_acu < ACU_STEP:
            raise UsageError(f"the maximum is {ACU_STEP:g} ACU at least, not {self.max_acu:g}")
        if self.min_acu > self.max_acu:
            raise UsageError(f"the minimum of {self.min_acu:g} ACU is above the maximum of {self.max_acu:g}")
        if not PAUSE_AFTER_MIN_S <= self.pause_after_s <= PAUSE_AFTER_MAX_S:
            raise UsageError(
                f"a cluster is paused after {PAUSE_AFTER_MIN_S:g} s to {PAUSE_AFTER_MAX_S:g} s without use, not after "
                f"{self.pause_after_s:g}"
            )

    @property
    def pauses(self) -> bool:
        """Whether it is paused when nobody uses it."""
        return self.min_acu == 0

    @property
    def least_acu(self) -> float:
        """What an instance has at least while it runs."""
        return max(self.min_acu, ACU_STEP)

    def report(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"min": self.min_acu, "max": self.max_acu, "pause_after_s": self.pause_after_s if self.pauses else None}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Capacity:
        """Out of the serialised state."""
        return cls(float(plain["min_acu"]), float(plain["max_acu"]), float(plain["pause_after_s"]))
