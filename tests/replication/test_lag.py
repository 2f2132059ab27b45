"""What is said of a copy's lag is never better than it is."""

from __future__ import annotations

from aurora_ray.replication import lag as lags
from aurora_ray.replication.lag import SILENT_S, LagMeter


def test_lag_is_the_age_of_what_may_be_missing() -> None:
    meter = LagMeter(100, now_s=1000.0)
    meter.on_heard(100, 1000.0)
    assert meter.lag(1001.0)[:2] == (0.0, 0), "nothing is missing, and that was said a moment ago"
    meter.on_heard(180, 1001.0)
    assert meter.lag(1001.5)[:2] == (1500.0, 80), "all that was durable at 1000.0 is here"
    meter.on_flush(180, written_s=1000.9)
    meter.on_durable(180, 1001.6)
    seen = meter.lag(1001.7)
    assert seen[:2] == (0.0, 0)
    assert round(seen.p50_ms) == round(seen.p99_ms) == 700


def test_silence_of_the_primary_is_lag() -> None:
    meter = LagMeter(100, now_s=1000.0)
    meter.on_heard(100, 1000.0)
    assert meter.lag(1000.0 + SILENT_S).lag_ms == 0
    later = meter.lag(1000.5 + SILENT_S)
    assert later.lag_ms == later.heard_ms == 1e3 * (SILENT_S + 0.5)
    meter.on_heard(100, 1010.0)
    assert meter.lag(1010.1).lag_ms == 0


def test_what_was_written_while_the_copy_was_away_was_not_on_its_way() -> None:
    meter = LagMeter(100, now_s=5000.0)
    meter.on_flush(180, written_s=1000.0)
    meter.on_durable(180, 5001.0)
    assert meter.lag(5001.0)[3:] == (0.0, 0.0)
    meter.on_flush(200, written_s=5001.0)
    meter.on_durable(200, 5001.25)
    assert meter.lag(5001.3)[3:] == (250.0, 250.0)


def test_a_copy_that_falls_behind_bounds_what_it_remembers_and_says_no_less() -> None:
    meter = LagMeter(0, now_s=0.0)
    for number in range(1, 3 * lags._PENDING_MAX):
        meter.on_flush(number, written_s=float(number))
    assert len(meter._pending) == lags._PENDING_MAX
    end = 3 * lags._PENDING_MAX - 1
    meter.on_heard(end, float(end))
    meter.on_durable(end - 1, end + 5.0)
    assert meter.lag(end + 5.0).lag_bytes == 1
    assert meter.lag(end + 5.0).lag_ms >= 5000
    meter.on_durable(end, end + 6.0)
    assert meter.lag(end + 6.0).lag_bytes == 0


def test_clocks_that_disagree_make_no_negative_lag() -> None:
    meter = LagMeter(0, now_s=10.0)
    meter.on_flush(8, written_s=99.0)  # the primary's clock is ahead
    meter.on_durable(8, 10.5)
    seen = meter.lag(10.6)
    assert min(seen) >= 0
