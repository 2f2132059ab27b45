"""Serverless v1: powers of two, at safe points."""

from __future__ import annotations

import random

import pytest

from aurora_ray.control.decide.capacity import Sample
from aurora_ray.control.decide.stepwise import DOWN_REST_S, UP_REST_S, Stepwise, power_down, power_up
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.errors import UsageError

RULE = Capacity(1, 64, by_powers=True, safe_timeout_s=60)


def sample(at_s: float, acu: float, cpus: float, busy: int = 0) -> Sample:
    return Sample(at_s, acu, cpus, 0.25, busy=busy)


def test_powers() -> None:
    assert [power_up(acu) for acu in (0.5, 1, 1.5, 2, 5, 200, 300)] == [1, 1, 2, 2, 8, 256, 256]
    assert [power_down(acu) for acu in (0.5, 1, 8.5, 200)] == [1, 1, 8, 128]


@pytest.mark.parametrize("seed", range(20))
def test_it_has_powers_within_its_bounds_and_rests_before_it_goes_down(seed: int) -> None:
    rng, policy, acu, load = random.Random(seed), Stepwise(), 1.0, 0.1
    up_s = down_s = -1e9
    for at_s in range(6000):
        load = min(20.0, max(0.0, load + rng.gauss(0, 0.5))) if rng.random() < 0.05 else load
        before, busy = acu, int(rng.random() < 0.3)
        acu = policy.look(RULE, sample(at_s, acu, min(load, acu * 0.25), busy)).acu
        assert power_up(acu) == acu
        assert 1 <= acu <= 64
        if acu > before:
            up_s = at_s
        elif acu < before:
            assert acu == before / 2
            assert at_s - up_s >= UP_REST_S
            assert at_s - down_s >= DOWN_REST_S
            down_s = at_s
        if acu != before and busy:
            raise AssertionError("that was no safe point, and there are some in a minute")


def test_a_step_waits_for_a_safe_point_and_is_given_up_or_forced() -> None:
    for force in (False, True):
        rule = Capacity(1, 64, by_powers=True, safe_timeout_s=60, force=force)
        policy, taken = Stepwise(), []
        for at_s in range(150):
            decision = policy.look(rule, sample(at_s, 1, 0.25, busy=3))
            taken.append(decision.acu)
            if at_s == 30:
                assert "wait for a safe point: 3 sessions are at work" in decision.why
            if decision.acu > 1:
                assert "no safe point in 60 s" in decision.why
                break
        assert (taken[-1] > 1) is force
    calm = policy.look(RULE, sample(1000, 1, 0.25))
    assert calm.acu == 2


def test_bounds_are_powers() -> None:
    for bounds in ((0.5, 4), (1, 6), (1, 4.5)):
        with pytest.raises(UsageError, match=r"1, 2, 4, 8 … ACU: the (minimum|maximum) cannot be"):
            Capacity(*bounds, by_powers=True)
    with pytest.raises(UsageError, match=r"60 s to 600 s for a safe point, not 5"):
        Capacity(1, 4, by_powers=True, safe_timeout_s=5)
    assert Capacity(0, 4, by_powers=True).least_acu == 1
    assert Capacity.from_plain({"min_acu": 0, "max_acu": 4, "pause_after_s": 30}) == Capacity(0, 4, 30)
