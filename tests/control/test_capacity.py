"""The policy of serverless capacity, over loads made up and traces drawn: within bounds, at once up, slowly down, and
no flapping."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_ray.control.decide import capacity as policy
from aurora_ray.control.decide.capacity import Autoscaler, Idleness, Sample
from aurora_ray.control.model.capacity import ACU_MAX, Capacity
from aurora_ray.engine.sizes import ACU_STEP
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CPUS_PER_ACU = 0.25
EVERY_S = 0.5
RULE = Capacity(0.5, 16)
CACHE_SHARE = 0.75
ACU_GIB = 2.0

bounds = st.tuples(st.integers(0, 32), st.integers(0, 32)).map(
    lambda both: Capacity(min(both) * ACU_STEP, max(*both, 1) * ACU_STEP)
)


@dataclass
class Instance:
    """A plant: an engine that could use `demand(t)` CPUs, in bursts of which only `share` of the time is one."""

    demand: Callable[[float], float]
    acu: float = 0.5
    working_set_gib: float = 0.0
    share: float = 1.0
    now_s: float = 0.0
    history: list[tuple[float, float]] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def sample(self) -> Sample:
        quota = self.acu * CPUS_PER_ACU
        average = self.demand(self.now_s)
        while_busy = average / self.share
        used = min(average, quota) if while_busy > quota else average
        held = max(0.0, 1 - quota / while_busy) * min(1.0, self.share * while_busy / quota) if while_busy else 0.0
        full = self.working_set_gib > self.acu * ACU_GIB * CACHE_SHARE
        return Sample(self.now_s, self.acu, used, CPUS_PER_ACU, held, 2000.0 * full, cache_full=full)

    def run(self, scaler: Autoscaler, rule: Capacity, for_s: float) -> None:
        ends_s = self.now_s + for_s
        while self.now_s < ends_s:
            self.now_s += EVERY_S
            decision = scaler.look(rule, self.sample())
            assert rule.least_acu <= decision.acu <= rule.max_acu
            assert decision.acu % ACU_STEP == 0
            assert decision.why
            if decision.acu != self.acu:
                self.history.append((self.now_s, decision.acu))
                self.why.append(decision.why)
            self.acu = decision.acu

    def changes(self, since_s: float) -> list[float]:
        return [acu for at_s, acu in self.history if at_s >= since_s]


def reversals(steps: Sequence[float], start: float) -> int:
    signs = [math.copysign(1, after - before) for before, after in zip([start, *steps], steps, strict=False)]
    return sum(a != b for a, b in pairwise(signs))


@pytest.mark.parametrize(
    ("least", "most", "pause_s", "says"),
    [
        (2, 1, 300, "minimum of 2 ACU is above the maximum of 1"),
        (0.3, 1, 300, "steps of 0.5 ACU: the minimum cannot be 0.3"),
        (0.5, 1.2, 300, "steps of 0.5 ACU: the maximum cannot be 1.2"),
        (-1, 1, 300, "from 0 to 256 ACU: the minimum cannot be -1"),
        (0, 256.5, 300, "from 0 to 256 ACU: the maximum cannot be 256.5"),
        (0, 0, 300, "maximum is 0.5 ACU at least"),
        (0, 1, 9, "after 10 s to 86400 s"),
        (0, 1, 86401, "after 10 s to 86400 s"),
        (math.nan, 1, 300, "from 0 to 256"),
    ],
)
def test_bad_bounds_are_refused_precisely(least: float, most: float, pause_s: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Capacity(least, most, pause_s)


@given(st.lists(st.floats(0, 40), min_size=1, max_size=80), bounds, st.integers(1, 64).map(lambda n: n * ACU_STEP))
@settings(deadline=None, max_examples=15)
def test_it_stays_within_bounds_whatever_the_load(loads: list[float], rule: Capacity, start: float) -> None:
    there = Instance(lambda now_s: loads[int(now_s) % len(loads)], acu=start)
    there.run(Autoscaler(), rule, 120)


@given(st.floats(0.01, 3.8), st.integers(1, 32).map(lambda n: n * ACU_STEP))
@settings(deadline=None, max_examples=25)
def test_a_load_that_stays_the_same_ends_in_one_capacity(load: float, start: float) -> None:
    there = Instance(lambda _: load, acu=start)
    there.run(Autoscaler(), RULE, 900)
    enough = min(RULE.max_acu, policy.steps_up(load / CPUS_PER_ACU / policy.TARGET))
    assert there.acu <= enough
    assert load <= policy.UP * there.acu * CPUS_PER_ACU or there.acu == RULE.max_acu
    assert reversals(there.changes(0), start) <= 1
    assert there.changes(450) == []


@given(st.floats(0.05, 3.0), st.floats(0, 0.1), st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=15)
def test_noise_makes_it_flap_no_more_than_a_few_times_a_day(load: float, noise: float, seed: int) -> None:
    chance = random.Random(seed)
    there = Instance(lambda _: load * (1 + chance.uniform(-noise, noise)))
    there.run(Autoscaler(), RULE, 3600)
    settled = there.changes(600)
    assert len(settled) <= 6
    assert reversals(settled, settled[0] if settled else 0) <= 4


@given(st.floats(0.02, 0.1), st.floats(0.05, 0.5))
@settings(deadline=None, max_examples=15)
def test_short_bursts_that_come_all_the_time_do_not_make_it_flap(load: float, share: float) -> None:
    there = Instance(lambda _: load, share=share)
    there.run(Autoscaler(), RULE, 7200)
    assert reversals(there.changes(0), 0.5) <= 10
    assert reversals(there.changes(3600), 0.5) <= 3


def test_a_burst_has_its_capacity_within_seconds_and_keeps_it_for_a_minute() -> None:
    there = Instance(lambda now_s: 3.0 if 100 <= now_s < 130 else 0.01)
    scaler = Autoscaler()
    there.run(scaler, RULE, 104)
    assert there.acu * CPUS_PER_ACU >= 3.0, there.history
    assert "were wanted" not in there.why[0]
    assert "are wanted" in there.why[0]
    there.run(scaler, RULE, 80)
    assert there.acu >= 12
    there.run(scaler, RULE, 300)
    assert there.acu == 0.5
    assert "no more than" in there.why[-1]


def test_a_ramp_is_followed_upwards_only() -> None:
    there = Instance(lambda now_s: min(3.0, now_s / 300))
    there.run(Autoscaler(), RULE, 1200)
    assert there.changes(0)[-1] >= 12
    assert reversals(there.changes(0), 0.5) == 0 or max(there.changes(0)) <= 16


def test_days_cost_less_than_the_peak_and_starve_nobody() -> None:
    """A sine of a day between 0.1 and 3 CPUs, a sample each 30 s."""

    def load(now_s: float) -> float:
        return 1.55 - 1.45 * math.cos(2 * math.pi * now_s / 86400)

    scaler, acu, spent, starved = Autoscaler(), 0.5, 0.0, 0
    for at in range(0, 2 * 86400, 10):
        quota = acu * CPUS_PER_ACU
        used = min(load(at), quota)
        starved += used < load(at)
        acu = scaler.look(RULE, Sample(at, acu, used, CPUS_PER_ACU, max(0.0, 1 - quota / load(at)))).acu
        spent += 10 * acu
    assert starved <= 20
    assert spent < 0.75 * 2 * 86400 * 16


@given(st.floats(1.0, 20.0))
@settings(deadline=None, max_examples=10)
def test_a_working_set_gets_its_cache_and_is_not_tried_again_and_again(gib: float) -> None:
    there = Instance(lambda _: 0.05, working_set_gib=gib)
    there.run(Autoscaler(), RULE, 6 * 3600)
    fits = ACU_GIB * CACHE_SHARE * max(acu for _, acu in [*there.history, (0, 0.5)]) >= gib
    assert fits
    assert reversals(there.changes(0), 0.5) <= 14
    assert reversals(there.changes(3 * 3600), 0.5) <= 4


def test_bounds_apply_at_once() -> None:
    scaler = Autoscaler()
    idle = Sample(0, 1.0, 0.0, CPUS_PER_ACU)
    raised = scaler.look(Capacity(4, 8), idle)
    assert (raised.acu, raised.why) == (4, "the minimum is 4 ACU")
    assert scaler.look(Capacity(0, 2), Sample(1, 8, 2.0, CPUS_PER_ACU, 1.0)).acu == 2
    assert Capacity(0, 2).least_acu == ACU_STEP
    assert ACU_MAX == 256


def test_a_follower_has_what_the_writer_has() -> None:
    decision = Autoscaler().look(RULE, Sample(0, 1, 0.0, CPUS_PER_ACU), follows=6)
    assert (decision.acu, decision.why) == (6, "the writer has 6 ACU")


def test_sessions_want_memory() -> None:
    decision = Autoscaler().look(RULE, Sample(0, 0.5, 0.0, CPUS_PER_ACU, sessions=700))
    assert decision.acu == 3.5
    assert "700 sessions" in decision.why


def test_a_cluster_is_idle_since_nothing_kept_it_awake() -> None:
    idle = Idleness()
    assert idle.look([], 100) == 0
    assert idle.look([], 130) == 30
    assert idle.look(["a session is open"], 140) == 0
    assert idle.look([], 145) == 5
