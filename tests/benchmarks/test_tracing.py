"""What tracing costs: an interval, as wide as the rounds differ."""

import pytest

from benchmarks.span_cost import measured_in_child
from benchmarks.tracing import TracingResult, TracingTurn, counted, interval


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


def test_what_spans_cost_is_a_share_of_a_turns_cpu() -> None:
    turn = {"round": 3, "tps": 1.0, "transactions": 1000, "cpu_ms": 2.0, "spans": 50}
    result = TracingResult(started="", clients=1, scale=1, seconds=1, commit={}, machine={}, span_us=40.0, turns=[])
    result.turns = [TracingTurn(fleet="traced", **turn), TracingTurn(fleet="untraced", **{**turn, "spans": 0})]
    assert counted(result) == pytest.approx({3: 50 * 40e-6 / 2.0})


def test_a_span_costs_microseconds() -> None:
    assert 1 < measured_in_child() < 10_000
