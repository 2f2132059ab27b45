"""Instances that need more than their machine has: they move to one that has it, by a planned failover.

A move cuts sessions, so it is the last resort: for MOVE_AFTER_S its machine has had no place for what is wanted, since
others hold the rest of it or as it is too small as a whole; another machine has room for all of it; and no move of the
instance has begun within AGAIN_AFTER_S. A machine of its AZ is preferred, then the one with most room. Where it stays,
the sentence says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.control.model.runtime import Room, Short
    from aurora_ray.control.model.state import DBInstance

MOVE_AFTER_S: Final = 15.0
AGAIN_AFTER_S: Final = 120.0
GAP_S: Final = 5.0  # without want of room, from which on it has what it wants: while it asks again, nothing is known


@dataclass(frozen=True, slots=True)
class MoveInstance(reconcile.Action):
    """Have an instance go on on another machine, which has room for so many ACUs."""

    kind: ClassVar = Kind.CAPACITY
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str
    host: str
    az: str
    acu: float


class Moves:
    """What is remembered for it. `now_s` is monotonic."""

    def __init__(self) -> None:
        self._short_s: dict[str, tuple[float, float]] = {}  # by instance: since when, and when last
        self._moved_s: dict[str, float] = {}

    def look(self, instance: DBInstance, short: Short, azs: Sequence[str], now_s: float) -> tuple[Room | None, str]:
        """Where it is to move now, if anywhere; and a sentence's end that says what comes of it."""
        since_s, last_s = self._short_s.get(instance.instance_id, (now_s, now_s))
        since_s = since_s if now_s - last_s < GAP_S else now_s
        self._short_s[instance.instance_id] = since_s, now_s
        others = [room for room in short.others if az_in(room, instance.az, azs)]  # a head of Ray's may be in no AZ
        fitting = [room for room in others if room.acu >= short.asked]
        if not fitting:
            most = max((room.acu for room in others), default=0.0)
            what = f"the most that another one has is {most:g}" if others else "there is no other one"
            return None, f"no machine has room for {short.asked:g} ACU, {what}"
        best = max(fitting, key=lambda room: (instance.az in room.azs, room.acu, room.host))
        if now_s - self._moved_s.get(instance.instance_id, -AGAIN_AFTER_S) < AGAIN_AFTER_S:
            return None, f"a move began less than {AGAIN_AFTER_S:g} s ago"
        if now_s - since_s < MOVE_AFTER_S:
            return None, f"it moves to machine {best.host} if that lasts"
        self._moved_s[instance.instance_id] = now_s
        return best, f"it moves to machine {best.host}, which has {best.acu:g}"

    def forget(self, instance_id: str) -> None:
        """It has no capacity that anybody follows."""
        self._short_s.pop(instance_id, None)
        self._moved_s.pop(instance_id, None)


def az_in(room: Room, preferred: str, azs: Sequence[str]) -> str:
    """The AZ in which an instance would be there: its own, if the machine is in that; empty: in none of the fleet's."""
    return preferred if preferred in room.azs else next((az for az in azs if az in room.azs), "")
