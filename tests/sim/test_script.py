"""Interleavings that once broke the protocol, or would break a simpler one, step by step."""

from __future__ import annotations

import pytest

from aurora_ray.volume.read.copies import current_copies
from aurora_ray.volume.recovery import Phase, Recovery
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.write.change import GroupMembers
from tests.sim import bugs
from tests.sim.oracle import InvariantError
from tests.sim.script import NODES, OTHERS, Script


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
    copies = current_copies(script.placements, script.states("abcdef"))
    assert copies is not None
    assert copies.vdl == first
    assert copies.nodes == frozenset("abcde")


def away_while_truncations_were_dropped() -> Script:
    """ "a" has a flush that never happened, "f" is behind; then the truncation that says so is dropped."""
    script = Script(history_max=1)
    script.open(1, "abcdef")
    end = script.write(1, 0, 0, "abcdef", vdl=0, durable=True)
    script.write(1, end, end, "a", vdl=0, durable=False)
    for epoch in (2, 3, 4):
        core = script.open(epoch, "bcde")
        assert core.end_lsn == end
        for _ in range(2):
            end = script.write(epoch, end, end, "bcde", vdl=end, durable=True)
    assert [cut.epoch for cut in core.history] == [3, 4]
    return script


def a_copy_that_was_away_adopts_the_rest() -> None:
    script = away_while_truncations_were_dropped()
    for _ in range(2):  # a chunk each time
        script.gossip("a", "b")
        script.oracle.check_node(script.nodes["a"])
    assert script.nodes["a"].by_group[0].scl == script.nodes["b"].by_group[0].scl


def a_copy_that_was_away_is_asked() -> None:
    script = away_while_truncations_were_dropped()
    for state in script.nodes["b"].state():
        script.nodes["f"].adopt(state)
    script.gossip("f", "a")
    script.oracle.check_node(script.nodes["f"])


def a_truncation_that_few_have() -> None:
    """Epoch 2 installs its history on one copy and dies; epoch 3 sees that."""
    script = Script(history_max=1)
    script.open(1, "abcdef")
    acked = script.write(1, 0, 0, "abcd", vdl=0, durable=True)
    second = script.recovery(2, "cdef")
    script.step(second, "c")
    third = script.recovery(3, "cdef")
    assert third.end_lsn == acked
    for name in "cdef":
        script.step(third, name)
    script.oracle.check_durability()


def test_a_copy_that_was_away_keeps_nothing_that_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    a_copy_that_was_away_adopts_the_rest()
    bugs.keep_what_is_doubtful(monkeypatch)
    with pytest.raises(InvariantError):
        a_copy_that_was_away_adopts_the_rest()


def test_nobody_fetches_what_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    a_copy_that_was_away_is_asked()
    bugs.fetch_what_is_doubtful(monkeypatch)
    with pytest.raises(InvariantError):
        a_copy_that_was_away_is_asked()


def test_old_truncations_stay_until_the_newest_is_on_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    a_truncation_that_few_have()
    bugs.drop_truncations_too_early(monkeypatch)
    with pytest.raises(AssertionError):  # the rule's own, before the disks would show it
        a_truncation_that_few_have()


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


# ---- membership

BOTH = GroupPlacement(0, NODES, OTHERS)


def moved_away(begun: str = "abcdef") -> None:
    """All members are exchanged; then somebody opens the volume who knows the first ones only."""
    script = Script()
    first = script.open(1, "abcdef")
    kept = script.write(1, 0, 0, "abcd", vdl=0, durable=True)
    members = script.members(first)
    script.change(first, members, BOTH, begun + "uvwxyz", tail=kept)
    for name in "uvwx":
        script.gossip(name, "abcd")
    script.change(first, members, GroupPlacement(0, OTHERS), "uvwx", tail=kept)
    after = script.write(1, kept, kept, "uvwx", vdl=kept, durable=True)
    for epoch, start in ((2, GroupPlacement(0, NODES)), (3, BOTH)):
        again = script.open(epoch, "cdefuvwxyz", start=start)
        assert again.end_lsn == after
        assert again.placements() == [GroupPlacement(0, OTHERS)]


def a_commit_that_old_members_did_not_hear_of(who: str = "abcdefuvwx") -> None:
    """Recovery starts from the placement in between."""
    script = Script()
    first = script.open(1, "abcdef")
    kept = script.write(1, 0, 0, "abcd", vdl=0, durable=True)
    members = script.members(first)
    script.change(first, members, BOTH, "abcdefuvwxyz", tail=kept)
    for name in "uvwx":
        script.gossip(name, "abcd")
    script.change(first, members, GroupPlacement(0, OTHERS), "uvwx", tail=kept)
    after = script.write(1, kept, kept, "uvwx", vdl=kept, durable=True)
    assert script.open(2, who, start=BOTH).end_lsn == after


def steps_of_the_past() -> None:
    """Epoch 1 tries often and leaves a high number on one copy; epoch 2 begins to count anew."""
    script = Script()
    script.open(1, "abcdef")
    first = script.open(2, "abcdef")
    members = script.members(first)
    elsewhere = GroupPlacement(0, NODES, tuple("abcdez"))
    for _ in range(5):
        script.change(first, members, elsewhere, "az", tail=0, done=False)
    second = script.open(3, "bcdef")
    script.tell(second, "a")
    kept = script.write(3, 0, 0, "abcd", vdl=0, durable=True)
    members = script.members(second)
    script.change(second, members, BOTH, "abcdefuvwxyz", tail=kept)
    for name in "uvwx":
        script.gossip(name, "abcd")
    script.change(second, members, GroupPlacement(0, OTHERS), "uvwx", tail=kept)
    after = script.write(3, kept, kept, "uvwx", vdl=kept, durable=True)
    assert script.open(4, "abcdzuvwxy", start=GroupPlacement(0, NODES)).end_lsn == after


def a_commit_that_one_copy_learns(name: str) -> tuple[Script, Recovery, GroupMembers, int]:
    """Epoch 1 has begun a change to other members, which are complete; `name` alone is told that they hold it."""
    script = Script()
    first = script.open(1, "abcdef")
    kept = script.write(1, 0, 0, "abcd", vdl=0, durable=True)
    members = script.members(first)
    script.change(first, members, BOTH, "abcdefuvwxyz", tail=kept)
    for other in "uvwxyz":
        script.gossip(other, "abcd")
    commit = members.start(GroupPlacement(0, OTHERS))
    assert commit is not None
    for asked in "uvwx" + name:
        script._ask_change(first, members, commit, asked, kept)
    return script, first, members, kept


def a_commit_that_failed_and_was_aborted(aborted: str = "abcduvwx") -> None:
    """One copy still tells the commit that never came about."""
    script, first, members, kept = a_commit_that_one_copy_learns("y")
    script.change(first, members, GroupPlacement(0, NODES), aborted, tail=kept)
    after = script.write(1, kept, kept, "abcd", vdl=kept, durable=True)
    assert script.open(2, "yuvwabcd", start=BOTH).end_lsn == after


def a_commit_and_an_abort_that_both_failed(third: str = "abcduvwx") -> None:
    """Of two who open the volume, one finds the commit and one what was begun after it; seed 12265 found it first."""
    script, first, members, kept = a_commit_that_one_copy_learns("u")
    abort = members.start(GroupPlacement(0, NODES))
    assert abort is not None
    script._ask_change(first, members, abort, "a", kept)
    script.open(2, "uvwx", start=BOTH)
    after = script.write(2, kept, kept, "uvwx", vdl=kept, durable=True)
    assert script.open(3, third, start=BOTH).end_lsn == after


def test_whoever_knows_the_first_members_finds_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    moved_away()
    moved_away("abcd")
    bugs.go_by_a_step_at_once(monkeypatch)
    with pytest.raises((InvariantError, AssertionError)):
        moved_away("a")


def test_during_a_change_both_sets_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    a_commit_that_old_members_did_not_hear_of()
    with pytest.raises(AssertionError, match="is in phase ASK"):
        a_commit_that_old_members_did_not_hear_of("abcdef")
    bugs.recover_on_the_old_members_only(monkeypatch)
    with pytest.raises(InvariantError, match=r"lost|durable"):
        a_commit_that_old_members_did_not_hear_of("abcdef")


def test_the_steps_of_an_epoch_that_is_over_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of_the_past()
    bugs.keep_the_members_of_the_past(monkeypatch)
    with pytest.raises((InvariantError, AssertionError)):
        steps_of_the_past()


def test_after_a_step_that_failed_the_next_one_is_told_to_both_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    a_commit_that_failed_and_was_aborted()
    bugs.commit_and_then_abort(monkeypatch)
    bugs.forget_that_a_step_failed(monkeypatch)
    with pytest.raises(InvariantError, match=r"lost|durable"):
        a_commit_that_failed_and_was_aborted("abcd")


def test_between_a_commit_and_an_abort_what_is_in_force_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    a_commit_and_an_abort_that_both_failed()
    with pytest.raises(AssertionError, match="is in phase"):
        a_commit_and_an_abort_that_both_failed("abcd")
    bugs.commit_and_then_abort(monkeypatch)
    with pytest.raises(InvariantError, match=r"lost|durable"):
        a_commit_and_an_abort_that_both_failed("abcd")
