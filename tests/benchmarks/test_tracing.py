"""What tracing costs: an interval, as wide as the rounds differ."""

import pytest

from benchmarks.tracing import interval


def test_rounds_that_agree_give_a_narrow_interval() -> None:
    low, middle, high = interval({0: 1.01, 1: 2.02, 2: 0.505}, {0: 1.0, 1: 2.0, 2: 0.5})
    assert (low, middle, high) == pytest.approx((0.01, 0.01, 0.01))


def test_rounds_that_do_not_decide_nothing() -> None:
    low, middle, high = interval({0: 1.2, 1: 0.8}, {0: 1.0, 1: 1.0})
    assert low < 0 < high
    assert low < middle < high


def test_one_round_says_nothing() -> None:
    low, middle, high = interval({0: 1.0}, {0: 1.0})
    assert middle == 0.0
    assert low < -0.99
    assert high > 100
