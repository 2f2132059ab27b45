"""Capacity in the way of Aurora Serverless v1: 1, 2, 4, 8 … ACU, changed at a safe point. Pure, as capacity.py is.

What is wanted the policy of capacity.py says; of it this makes the next power of two that is not less. **Up** at once,
**down** by half, when a half has been enough for UP_REST_S since the last step up, and DOWN_REST_S since the last
down.

A **safe point** is a moment at which no session is in the middle of a statement or a transaction. None of them would
come to harm otherwise: an engine's capacity changes under whatever it does. But who chooses this mode is promised that
nothing changes in the middle of his work. Where there is no such moment for the rule's timeout, its action follows:
`force` takes the step all the same, `rollback` gives it up, and it is tried anew when that time has passed once more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aurora_ray.control.decide.capacity import Autoscaler, Decision
from aurora_ray.control.model.capacity import ACU_MAX

if TYPE_CHECKING:
    from aurora_ray.control.decide.capacity import Sample
    from aurora_ray.control.model.capacity import Capacity

UP_REST_S: Final = 900.0
DOWN_REST_S: Final = 310.0


def power_up(acu: float) -> float:
    """The next step of v1 that is not below."""
    return min(2.0 ** max(0, math.ceil(math.log2(max(acu, 1.0)))), ACU_MAX)


def power_down(acu: float) -> float:
    """The step of v1 that is not above, the first at least."""
    return 2.0 ** math.floor(math.log2(max(acu, 1.0)))


class Stepwise:
    """Of one instance; called as Autoscaler is."""

    def __init__(self) -> None:
        self._inner = Autoscaler()
        self._up_at_s = -math.inf
        self._down_at_s = -math.inf
        self._wanted: float | None = None  # that waits for a safe point ...
        self._since_s = 0.0  # ... since then
        self._given_up_until_s = -math.inf

    def look(self, rule: Capacity, sample: Sample, *, follows: float = 0.0) -> Decision:
        """What the instance shall have now."""
        acu, now_s = sample.acu, sample.at_s
        wants = self._inner.look(rule, sample, follows=follows)
        target = min(power_up(wants.acu), rule.max_acu)
        if acu < rule.least_acu or acu > rule.max_acu:
            return Decision(min(max(target, rule.least_acu), rule.max_acu), wants.why)  # bounds apply at once
        if target < acu:
            target = self._down(target, acu, now_s)
        if target == acu:
            self._wanted = None
            return Decision(acu, wants.why if wants.acu == acu else f"{acu:g} ACU stay for a while")
        if self._wanted != target:
            self._wanted, self._since_s = target, now_s
        return self._step(rule, sample, Decision(target, wants.why))

    def _down(self, target: float, acu: float, now_s: float) -> float:
        rests = now_s - self._up_at_s < UP_REST_S or now_s - self._down_at_s < DOWN_REST_S
        return acu if rests else max(target, acu / 2)

    def _step(self, rule: Capacity, sample: Sample, wants: Decision) -> Decision:
        acu, now_s = sample.acu, sample.at_s
        if sample.busy:
            waited_s = now_s - self._since_s
            if now_s < self._given_up_until_s:
                return Decision(acu, f"there was no safe point for {wants.acu:g} ACU; it is tried again later")
            if waited_s < rule.safe_timeout_s:
                return Decision(acu, f"{wants.acu:g} ACU wait for a safe point: {sample.busy} sessions are at work")
            if not rule.force:
                self._given_up_until_s, self._since_s = now_s + rule.safe_timeout_s, now_s + rule.safe_timeout_s
                return Decision(acu, f"there was no safe point for {wants.acu:g} ACU in {rule.safe_timeout_s:g} s")
        if wants.acu > acu:
            self._up_at_s = now_s
        else:
            self._down_at_s = now_s
        self._wanted = None
        why = f"{wants.why}; no safe point in {rule.safe_timeout_s:g} s" if sample.busy else wants.why
        return Decision(wants.acu, why)
