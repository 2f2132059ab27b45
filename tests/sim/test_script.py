"""Interleavings that once broke the protocol, or would break a simpler one, step by step."""

from __future__ import annotations

import pytest

from aurora_ray.volume.as_of import current_copies
from aurora_ray.volume.recovery import Phase
from tests.sim import bugs
from tests.sim.oracle import InvariantError
from tests.sim.script import Script


def overruled_history() -> None:
    """Epoch 2 cuts at 0 on one node and dies; epoch 3 does not see that, keeps the flush and builds upon it."""
    script = Script()
    script.open(1, "abcdef")
    kept = script.write(1, 0, 0, "ab", vdl=0, durable=False)
    second = script.recovery(2, "cdef")
    assert second.end_lsn == 0
    script.step(second, "c")
    third = script.open(3, "abde")
    assert third.end_lsn == kept
    built = script.write(3, kept, kept, "abde", vdl=0, durable=True)
    fourth = script.open(4, "cdef")
    assert fourth.end_lsn == built
    script.oracle.check_durability()


def late_catch_up() -> None:
    """Copies fetch the tail of epoch 2's recovery only after they have promised epoch 3, which does not see it."""
    script = Script()
    script.open(1, "abcdef")
    script.write(1, 0, 0, "a", vdl=0, durable=False)
    second = script.recovery(2, "abcd")
    assert second.end_lsn > 0
    for name in "abcd":
        script.step(second, name)
    assert second.phase is Phase.CATCH_UP
    third = script.recovery(3, "bcdef")
    for name in "bcd":
        script.gossip(name, "a")
        script.step(second, name)
        script.step(second, name)
    for _ in range(3):
        for name in "bcdef":
            script.step(third, name)
    assert third.outcome is not None


def reading_a_copy_that_was_away() -> None:
    """One copy holds a flush that never happened; the volume went on at the same LSNs without it."""
    script = Script()
    script.open(1, "abcdef")
    script.write(1, 0, 0, "f", vdl=0, durable=False)
    second = script.open(2, "abcde")
    assert second.end_lsn == 0
    first = script.write(2, 0, 0, "abcde", vdl=0, durable=True)
    script.write(2, first, first, "abcde", vdl=first, durable=True)
    copies = current_copies(script.members, script.states("abcdef"))
    assert copies is not None
    assert copies.vdl == first
    assert copies.nodes == frozenset("abcde")


def test_a_history_that_reached_a_minority_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    overruled_history()
    bugs.unite_all_histories(monkeypatch)
    with pytest.raises((InvariantError, AssertionError)):
        overruled_history()


def test_a_copy_that_caught_up_too_late_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    late_catch_up()
    bugs.count_copies_that_promised_elsewhere(monkeypatch)
    with pytest.raises(InvariantError, match=r"is on|opened at"):
        late_catch_up()


def test_a_copy_with_an_older_history_is_not_read() -> None:
    reading_a_copy_that_was_away()
