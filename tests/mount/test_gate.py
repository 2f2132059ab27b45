"""Nothing is acknowledged after the moment until which it may be, and all of it when that moves."""

from __future__ import annotations

from aurora_ray.mount.gate import Gate, running_clock_s


def test_what_becomes_durable_too_late_is_told_when_the_moment_moves() -> None:
    now_s, told = [10.0], list[int]()
    gate = Gate(told.append, clock=lambda: now_s[0])
    gate.durable(8)
    assert gate.limit(12.0) == 10.0
    gate.durable(16)
    assert told == [8, 16]
    now_s[0] = 12.0
    assert gate.holds
    gate.durable(24)
    gate.durable(32)
    assert gate.limit(11.0) == 12.0
    assert told == [8, 16]
    gate.limit(14.0)
    assert told == [8, 16, 32]
    assert not gate.holds
    gate.limit(14.0)
    assert told == [8, 16, 32], "once"


def test_without_a_limit_all_is_told_at_once() -> None:
    told = list[int]()
    gate = Gate(told.append)
    gate.limit(0.0)
    gate.durable(8)
    assert told == []
    assert gate.limit(None) <= running_clock_s()
    assert told == [8]


def test_what_lowers_never_puts_the_moment_off() -> None:
    told = list[int]()
    gate = Gate(told.append, clock=lambda: 10.0)
    assert gate.lower(float("inf")) == 10.0
    gate.durable(8)
    gate.lower(9.0)
    gate.durable(16)
    gate.lower(20.0)
    assert (told, gate.holds) == ([8], True)
    gate.limit(20.0)
    assert told == [8, 16]
