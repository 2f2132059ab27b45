"""Between which capacities a cluster's instances scale by themselves, as a user declares it: Aurora Serverless.

Capacity is in ACUs, in steps of half of one; what an ACU is, engine/sizes.py says. With a minimum of 0 the cluster is
paused when nobody has used it for a while: its storage stays, and whoever connects wakes it.
"""

from __future__ import annotations

import math
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
SAFE_TIMEOUT_S: Final = 300.0
SAFE_TIMEOUT_MIN_S: Final = 60.0
SAFE_TIMEOUT_MAX_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Each instance has from `min_acu` to `max_acu`; with 0 at least, the cluster is paused after `pause_after_s`
    without use. `by_powers`: in the way of Serverless v1, see decide/stepwise.py; then `safe_timeout_s` is how long a
    step waits for a safe point, and `force` whether it is taken then."""

    min_acu: float
    max_acu: float
    pause_after_s: float = PAUSE_AFTER_S
    by_powers: bool = False
    safe_timeout_s: float = SAFE_TIMEOUT_S
    force: bool = False

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
        if self.by_powers:
            self._check_powers()

    def _check_powers(self) -> None:
        for name, acu in (("minimum", self.min_acu), ("maximum", self.max_acu)):
            if acu and (acu < 1 or math.log2(acu) % 1):
                raise UsageError(f"in the mode v1 capacity is 1, 2, 4, 8 … ACU: the {name} cannot be {acu:g}")
        if not SAFE_TIMEOUT_MIN_S <= self.safe_timeout_s <= SAFE_TIMEOUT_MAX_S:
            raise UsageError(
                f"a step waits {SAFE_TIMEOUT_MIN_S:g} s to {SAFE_TIMEOUT_MAX_S:g} s for a safe point, not "
                f"{self.safe_timeout_s:g}"
            )

    @property
    def pauses(self) -> bool:
        """Whether it is paused when nobody uses it."""
        return self.min_acu == 0

    @property
    def least_acu(self) -> float:
        """What an instance has at least while it runs."""
        return max(self.min_acu, 1.0 if self.by_powers else ACU_STEP)

    def report(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {"min": self.min_acu, "max": self.max_acu, "pause_after_s": self.pause_after_s if self.pauses else None}
        if not self.by_powers:
            return found | {"mode": "v2"}
        return found | {"mode": "v1", "safe_timeout_s": self.safe_timeout_s, "force": self.force}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Capacity:
        """Out of the serialised state."""
        numbers = {name: float(plain[name]) for name in ("min_acu", "max_acu", "pause_after_s")}
        timeout_s = float(plain.get("safe_timeout_s", SAFE_TIMEOUT_S))
        powers, force = bool(plain.get("by_powers", False)), bool(plain.get("force", False))
        return cls(**numbers, by_powers=powers, safe_timeout_s=timeout_s, force=force)
