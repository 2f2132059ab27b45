"""How much capacity an instance shall have now. Pure: samples in (each with its time), a decision with its reason out.

| signal | ACUs wanted | why |
|---|---|---|
| CPU used | what keeps it at TARGET of what the capacity gives | the room is for the next second |
| held back | as many again as it has, times the share of the time | at the quota, use does not say what is wanted |
| pages fetched, the cache full | half as many again, one step at least | the working set is larger than the cache |
| sessions | one ACU for SESSIONS_PER_ACU | each has memory of its own |

Commits that wait for storage are no signal: more capacity makes them no faster, and what they use shows in the CPU.

**Up** at once, by as much as is wanted, when the CPU is above UP of what the capacity gives or was held back: a look
that finds the quota used up can double the capacity, so from 0.5 to 16 ACU it takes five looks.

**Down** when for the whole of the last DOWN_WINDOW_S less would have been enough, to the most that was wanted in that
time, an eighth (one step at least) every DOWN_EVERY_S. So a burst that comes back within a minute finds its capacity
there. As what is enough keeps the CPU at TARGET, well below UP, a load that stays the same moves nothing.

What is enough is not always known at a higher capacity: a working set may no longer fit, short bursts may be held back.
A step down that is followed by one up within REGRET_S was wrong: what it had before is kept for HOLD_S, and for twice
as long each time that this happens, up to HOLD_MAX_S. So is, for HOLD_S, what was wanted for the cache.

A follower (a reader that may have to take the writer's place at once) has at least what it follows has. Bounds apply
at once, whatever else is wanted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.sizes import ACU_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.control.model.capacity import Capacity

TARGET: Final = 0.7
UP: Final = 0.85
HELD_BACK: Final = 0.1
DOWN_WINDOW_S: Final = 60.0
DOWN_EVERY_S: Final = 5.0
MISSES_A_SECOND: Final = 100.0
SESSIONS_PER_ACU: Final = 200
REGRET_S: Final = 2 * DOWN_WINDOW_S
HOLD_S: Final = 600.0
HOLD_MAX_S: Final = 86400.0
SAMPLE_EVERY_S: Final = 0.15  # those that come sooner are passed over


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at an instance, at `at_s` of any monotonic clock. Since the look before, it used `cpus` (1.0: one CPU all
    the time) and was held back by its quota for a share `held_back` of the time; `misses` pages a second were fetched.

    `cpus_per_acu` is what one ACU gives; `acu` the capacity that it had. Of its sessions, `busy` are in the middle of
    something (for stepwise.py).
    """

    at_s: float
    acu: float
    cpus: float
    cpus_per_acu: float
    held_back: float = 0.0
    misses: float = 0.0
    cache_full: bool = False
    sessions: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What it shall have, and why, in a sentence."""

    acu: float
    why: str


def steps_up(acu: float) -> float:
    """The next step that is not below."""
    return math.ceil(round(acu / ACU_STEP, 6)) * ACU_STEP


class Autoscaler:
    """Of one instance. `look` is called again and again, with samples in the order of their times."""

    def __init__(self) -> None:
        self._wanted: deque[tuple[float, float]] = deque()  # when, and what was enough then, each above all later ones
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._wanted.clear()
        self._since_s: float | None = None
        self._last_s = -math.inf
        self._down_at_s = -math.inf
        self._down_from = 0.0  # the capacity before the last step down
        self._kept = 0.0  # at least, until ...
        self._kept_until_s = -math.inf
        self._hold_s = HOLD_S

    def look(self, rule: Capacity, sample: Sample, *, follows: float = 0.0) -> Decision:
        """What the instance shall have now; `follows`: what another one has, whose place it may have to take."""
        acu, now_s = sample.acu, sample.at_s
        if now_s < self._last_s:  # that is another machine's clock
            self._begin_anew()
        floor = min(max(rule.least_acu, steps_up(follows)), rule.max_acu)
        if now_s - self._last_s >= SAMPLE_EVERY_S:
            self._last_s = now_s
            wants = self._note(sample)
        else:
            wants = Decision(acu, "nothing is new")
        if acu > rule.max_acu:
            return Decision(rule.max_acu, f"the maximum is {rule.max_acu:g} ACU")
        if acu < floor:
            why = f"the minimum is {floor:g} ACU" if floor == rule.least_acu else f"the writer has {follows:g} ACU"
            if wants.acu <= floor:
                return Decision(floor, why)
        if wants.acu > acu:
            self._regret(now_s)
            return self._within(rule, wants, floor)
        return self._down(rule, sample, floor)

    def _regret(self, now_s: float) -> None:
        """It goes up; if it has just gone down, that was wrong."""
        if now_s - self._down_at_s > REGRET_S:
            return
        if now_s - self._kept_until_s > HOLD_MAX_S:
            self._hold_s = HOLD_S  # the last time is long ago
        self._keep(self._down_from, now_s)
        self._hold_s = min(2 * self._hold_s, HOLD_MAX_S)
        self._down_at_s = -math.inf

    def _keep(self, acu: float, now_s: float) -> None:
        self._kept = max(acu, self._kept if now_s < self._kept_until_s else 0.0)
        self._kept_until_s = max(self._kept_until_s, now_s + self._hold_s)

    def _within(self, rule: Capacity, wants: Decision, floor: float) -> Decision:
        if wants.acu > rule.max_acu:
            return Decision(rule.max_acu, f"{wants.why}; the maximum is {rule.max_acu:g}")
        return Decision(max(wants.acu, floor), wants.why)

    def _note(self, sample: Sample) -> Decision:
        """What it wants more, or the same; what would have been enough is remembered."""
        acu, now_s = sample.acu, sample.at_s
        if self._since_s is None:
            self._since_s = now_s
        enough = steps_up(sample.cpus / sample.cpus_per_acu / TARGET)
        by_sessions = steps_up(sample.sessions / SESSIONS_PER_ACU)
        wants = [self._for_cpu(sample, enough), self._for_cache(sample), Decision(by_sessions, _sessions(sample))]
        most = max(wants, key=lambda decision: decision.acu)
        # Above its quota it cannot use anything: as long as it is held back, nothing less than it has was enough.
        noted = max(enough, by_sessions, most.acu if most.acu > acu else 0.0)
        noted = max(noted, acu) if sample.held_back > HELD_BACK else noted
        while self._wanted and self._wanted[-1][1] <= noted:
            self._wanted.pop()
        self._wanted.append((now_s, noted))
        return most

    def _for_cpu(self, sample: Sample, enough: float) -> Decision:
        acu, given = sample.acu, sample.acu * sample.cpus_per_acu
        busy = sample.cpus > UP * given
        if not busy and sample.held_back <= HELD_BACK:
            return Decision(acu, "")
        more = acu * (1 + sample.held_back) if sample.held_back > HELD_BACK else acu
        wanted = max(steps_up(max(enough, more)), acu + ACU_STEP)
        held = f" and was held back {sample.held_back:.0%} of the time" if sample.held_back > HELD_BACK else ""
        return Decision(
            wanted,
            f"it used {sample.cpus:.2f} CPUs of the {given:.2f} that {acu:g} ACU have{held}: {wanted:g} are wanted",
        )

    def _for_cache(self, sample: Sample) -> Decision:
        acu, now_s = sample.acu, sample.at_s
        if not sample.cache_full or sample.misses < MISSES_A_SECOND:
            return Decision(acu, "")
        wanted = steps_up(acu + max(ACU_STEP, acu / 2))
        self._keep(wanted, now_s)
        found = f"its cache is full and {sample.misses:.0f} pages a second were fetched"
        return Decision(wanted, f"{found}: {wanted:g} ACU are wanted")

    def _down(self, rule: Capacity, sample: Sample, floor: float) -> Decision:
        acu, now_s = sample.acu, sample.at_s
        while self._wanted and self._wanted[0][0] < now_s - DOWN_WINDOW_S:
            self._wanted.popleft()
        held = self._kept if now_s < self._kept_until_s else 0.0
        enough = max([floor, min(held, rule.max_acu), *(wanted for _, wanted in self._wanted)])
        watched = self._since_s is not None and now_s - self._since_s >= DOWN_WINDOW_S
        if enough >= acu or not watched:
            return Decision(acu, f"{acu:g} ACU are enough")
        if now_s - self._down_at_s < DOWN_EVERY_S:
            return Decision(acu, f"it goes down to {enough:g} ACU step by step")
        self._down_at_s, self._down_from = now_s, acu
        lower = max(enough, acu - max(ACU_STEP, acu / 8 // ACU_STEP * ACU_STEP))
        return Decision(lower, f"for {DOWN_WINDOW_S:g} s no more than {enough:g} ACU were wanted")


def _sessions(sample: Sample) -> str:
    return f"it has {sample.sessions} sessions, {SESSIONS_PER_ACU} for an ACU"


class Idleness:
    """For how long nobody has used a cluster. `look` is called again and again, with the same clock."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def look(self, awake: Sequence[str], now_s: float) -> float:
        """Seconds since when nothing keeps it awake; `awake`: what does."""
        if awake or self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s
