"""The recovery's decisions, without nodes: answers are made up, requests looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_ray.errors import UsageError
from aurora_ray.log.segment_rules import NO_MEMBERS, Membership, Truncation
from aurora_ray.volume.recovery import (
    AskState,
    BatchInfo,
    CatchUp,
    Overtaken,
    Phase,
    Recovered,
    Recovery,
    Seal,
    SegmentState,
    Truncate,
    find_end,
)
from aurora_ray.volume.spec import GroupPlacement

NODES = tuple("abcdef")
MEMBERS = {0: NODES}
HELD = {0: Membership(0, NODES)}


def state(
    *tail: BatchInfo,
    group: int = 0,
    promised: int | None = None,
    installed: int = 1,
    cuts: tuple[Truncation, ...] = (),
    scl: int = 0,
    vdl: int = 0,
    highest: int = 0,
    held: Membership = NO_MEMBERS,
) -> SegmentState:
    promised = installed if promised is None else promised
    return SegmentState(group, promised, installed, cuts, scl, vdl, highest, tail, held)


def flush(start: int, end: int, *groups: int, epoch: int = 1) -> BatchInfo:
    return BatchInfo(epoch, start, end, groups or (0,))


def recovery(members: dict[int, tuple[str, ...]] = MEMBERS, min_epoch: int = 1) -> Recovery:
    return Recovery({group: GroupPlacement(group, nodes) for group, nodes in members.items()}, min_epoch)


def sealing(members: dict[int, tuple[str, ...]] = MEMBERS, promised: int = 1) -> Recovery:
    core = recovery(members)
    for node in NODES[:4]:
        core.on_state(node, [state(group=group, promised=promised) for group in members])
    assert core.phase is Phase.SEAL
    return core


def promised(core: Recovery, answers: dict[str, list[SegmentState]]) -> None:
    for node, states in answers.items():
        core.on_promised(node, core.epoch, states)


def truncated(core: Recovery, node: str, vdl: int, states: list[SegmentState]) -> None:
    """The answer of a node that carries what it was told."""
    core.on_truncated(node, vdl, [replace(each, truncations=core.history) for each in states])


def test_asks_all_and_goes_above_every_promise() -> None:
    core = recovery()
    assert {core.request(node) for node in NODES} == {AskState()}
    for node, epoch in zip("abc", (3, 7, 2), strict=True):
        core.on_state(node, [state(promised=epoch)])
        assert core.request(node) is None
    core.on_state("d", [state(promised=1)])
    assert {core.request(node) for node in NODES} == {Seal(8)}


def test_the_whole_way_with_a_tail_to_complete() -> None:
    core = sealing()
    a, b = flush(100, 150), flush(150, 180)
    promised(
        core,
        {
            "a": [state(a, b, scl=180, vdl=100, highest=180)],
            "b": [state(a, scl=150, vdl=100, highest=150)],
            "c": [state(scl=100, vdl=100, highest=100)],
            "d": [state(scl=100, vdl=90, highest=100)],
        },
    )
    history = (Truncation(2, 180),)
    assert core.request("a") == Truncate(2, history, 100, {0: 180}, HELD)
    assert core.request("e") == Truncate(2, history, 100, {0: 180}, HELD)
    for node, scl in zip("abcd", (180, 150, 100, 100), strict=True):
        truncated(core, node, 100, [state(installed=2, scl=scl, highest=scl)])
    assert core.request("a") is None
    assert core.request("b") == CatchUp({0: 180})
    for node in "bcd":
        core.on_caught_up(node, {0: 180})
        assert core.request(node) == Truncate(2, history, 100, {0: 180}, HELD)
        truncated(core, node, 100, [state(installed=2, scl=180, highest=180)])
    assert core.request("a") == Truncate(2, history, 180, {0: 180}, HELD)
    for node in "abcd":
        truncated(core, node, 180, [state(installed=2, scl=180, highest=180)])
    assert core.outcome == Recovered(2, history, 180, {0: 180}, frozenset("abcd"), HELD)


def test_nothing_to_complete_saves_two_rounds() -> None:
    core = sealing()
    promised(core, {node: [state(scl=100, vdl=100, highest=100)] for node in "abcd"})
    for node in "abcd":
        truncated(core, node, 100, [state(installed=2, scl=100, highest=100)])
    assert core.outcome == Recovered(2, (Truncation(2, 100),), 100, {0: 100}, frozenset("abcd"), HELD)


def test_a_copy_that_carries_another_history_does_not_count() -> None:
    core = sealing()
    promised(core, {node: [state(scl=100, vdl=100, highest=100)] for node in "abcd"})
    for node in "abc":
        truncated(core, node, 100, [state(installed=2, scl=100, highest=100)])
    core.on_truncated("d", 100, [state(installed=2, scl=100, highest=100, cuts=(Truncation(2, 90),))])
    assert core.phase is Phase.INSTALL
    truncated(core, "d", 100, [state(installed=2, scl=100, highest=100)])
    assert core.outcome is not None


def test_a_copy_that_caught_up_after_promising_elsewhere_does_not_count() -> None:
    core = sealing()
    tail = flush(100, 150)
    promised(core, {node: [state(*[tail] * (node == "a"), scl=100, vdl=100, highest=100)] for node in "abcd"})
    for node, scl in zip("abcd", (150, 100, 100, 100), strict=True):
        truncated(core, node, 100, [state(installed=2, scl=scl, highest=scl)])
    for node in "bcd":
        core.on_caught_up(node, {0: 150})
    truncated(core, "b", 100, [state(promised=5, installed=2, scl=150, highest=150)])
    core.on_refused("c", 5)
    truncated(core, "d", 100, [state(installed=2, scl=150, highest=150)])
    assert core.phase is Phase.CATCH_UP


def test_a_flush_with_a_group_missing_ends_the_log() -> None:
    members = {0: NODES, 1: NODES}
    whole, half = flush(0, 10, 0, 1), flush(10, 20, 0, 1)
    states = [state(whole, half), state(whole, group=1)]
    assert find_end(members, (), 0, states) == (10, {0: 10, 1: 10})


def test_batches_on_different_copies_make_a_flush_whole() -> None:
    members = {0: NODES, 1: NODES}
    both = flush(0, 10, 0, 1)
    assert find_end(members, (), 0, [state(both), state(group=1), state(), state(both, group=1)])[0] == 10


def test_a_gap_ends_the_log() -> None:
    assert find_end(MEMBERS, (), 0, [state(flush(0, 10), flush(20, 30))]) == (10, {0: 10})


def test_an_unknown_group_is_an_error_not_the_end() -> None:
    with pytest.raises(UsageError, match=r"groups \[4\]"):
        find_end(MEMBERS, (), 0, [state(flush(0, 10, 0, 4))])


def test_the_newest_history_rules_not_the_union() -> None:
    """Epoch 2 reached only "a" and cut at 100; epoch 3 did not see it, kept 150 and made it durable."""
    core = sealing(promised=3)
    kept, after = flush(100, 150, epoch=1), flush(150, 170, epoch=3)
    newer = (Truncation(3, 150),)
    promised(
        core,
        {
            "a": [state(installed=2, promised=2, cuts=(Truncation(2, 100),), vdl=100, scl=100, highest=100)],
            **{node: [state(kept, after, installed=3, promised=3, cuts=newer, vdl=100)] for node in "bcd"},
        },
    )
    assert core.request("a") == Truncate(4, (Truncation(3, 150), Truncation(4, 170)), 100, {0: 170}, HELD)


def test_annulled_batches_do_not_count() -> None:
    history = (Truncation(3, 10),)
    old, new = flush(10, 20, epoch=2), flush(10, 15, epoch=3)
    assert find_end(MEMBERS, history, 10, [state(old), state(new)]) == (15, {0: 15})


def test_the_tail_of_an_untouched_group_comes_from_the_installed_copies() -> None:
    members = {0: NODES, 1: NODES}
    core = sealing(members)
    promised(core, {node: [state(vdl=100, scl=100, highest=100), state(group=1, vdl=100)] for node in "abcd"})
    for node, highest in zip("abcd", (0, 0, 0, 70), strict=True):
        truncated(
            core, node, 100, [state(installed=2, scl=100, highest=100), state(group=1, installed=2, highest=highest)]
        )
    assert core.phase is Phase.CATCH_UP
    assert core.request("a") == CatchUp({1: 70})


def test_a_refusal_before_the_decision_starts_again_above_it() -> None:
    core = sealing()
    core.on_refused("f", 9)
    assert core.outcome == Overtaken(9)
    again = recovery(min_epoch=10)
    for node in NODES[:4]:
        again.on_state(node, [state()])
    assert again.request("a") == Seal(10)


def test_after_the_decision_two_refusals_can_be_borne_and_three_cannot() -> None:
    core = sealing()
    promised(core, {node: [state(scl=100, vdl=100, highest=100)] for node in "abcd"})
    core.on_refused("e", 9)
    core.on_refused("f", 9)
    assert core.outcome is None
    assert core.request("e") is None
    core.on_refused("d", 8)
    assert core.outcome == Overtaken(9)


def test_repeated_late_and_foreign_answers_change_nothing() -> None:
    core = sealing()
    core.on_promised("a", 1, [state()])
    truncated(core, "a", 0, [state(installed=2)])
    core.on_caught_up("a", {0: 10})
    core.on_state("e", [state(promised=50)])
    assert core.phase is Phase.SEAL
    for _ in range(4):
        core.on_promised("a", 2, [state()])
    assert core.phase is Phase.SEAL


def test_four_copies_of_each_group_are_needed_not_four_nodes() -> None:
    members = {0: NODES, 1: tuple("efghij")}
    core = recovery(members)
    for node in NODES:
        core.on_state(node, [state(group=0)])
    for node in "efgh":
        assert core.phase is Phase.ASK
        core.on_state(node, [state(group=1)])
    assert core.phase is Phase.SEAL


def test_a_copy_that_is_not_there_has_installed_nothing() -> None:
    """Each node has one of its two copies; "e" and "f" have lost that of group 1."""
    members = {0: NODES, 1: NODES}
    core = sealing(members)
    both = [state(vdl=100, scl=100, highest=100), state(group=1, vdl=100, scl=100, highest=100)]
    promised(core, dict.fromkeys("abcd", both))
    carried = [state(group=group, installed=2, scl=100, highest=100) for group in members]
    for node in "abc":
        truncated(core, node, 100, carried)
    for node in "ef":
        truncated(core, node, 100, carried[:1])
    assert core.outcome is None
    truncated(core, "d", 100, carried)
    assert isinstance(core.outcome, Recovered)


def test_an_end_is_published_where_it_is_held() -> None:
    members = {0: NODES, 1: NODES}
    core = sealing(members)
    tail = flush(100, 150)
    promised(core, {node: [state(tail, vdl=100, scl=150, highest=150), state(group=1, vdl=100)] for node in "abcd"})
    carried = [state(installed=2, scl=150, highest=150), state(group=1, installed=2)]
    for node in "abcd":
        truncated(core, node, 100, carried)
    assert core.phase is Phase.PUBLISH
    for node in "abc":
        truncated(core, node, 150, carried)
    truncated(core, "e", 150, carried[:1])
    assert core.outcome is None
    truncated(core, "f", 150, carried)
    assert isinstance(core.outcome, Recovered)


# ---- membership

NEXT = tuple("abcdeg")
BOTH = GroupPlacement(0, NODES, NEXT)


def sealing_with(placement: GroupPlacement, answers: dict[str, Membership]) -> Recovery:
    core = Recovery({0: placement})
    for node, held in answers.items():
        core.on_state(node, [state(held=held)])
    return core


def test_every_phase_needs_a_quorum_of_both_sets() -> None:
    core = sealing_with(BOTH, dict.fromkeys("abcf", NO_MEMBERS))
    assert core.phase is Phase.ASK
    core.on_state("g", [state()])
    assert core.phase is Phase.SEAL
    sealed = [state(scl=100, vdl=100, highest=100)]
    promised(core, dict.fromkeys("abcg", sealed))
    assert core.phase is Phase.SEAL
    promised(core, {"d": sealed})
    assert core.phase is Phase.INSTALL
    carried = [state(installed=2, scl=100, highest=100)]
    for node in "abcf":
        truncated(core, node, 100, carried)
    assert core.phase is Phase.INSTALL
    truncated(core, "e", 100, carried)
    assert core.phase is Phase.DONE


def test_a_copy_that_tells_a_later_step_is_followed() -> None:
    """Somebody who knows the oldest members only comes to the newest in two steps."""
    both, after = Membership(1, NODES, NEXT), Membership(2, NEXT)
    core = sealing_with(GroupPlacement(0, NODES), dict.fromkeys("abcd", NO_MEMBERS))
    assert core.phase is Phase.SEAL
    promised(core, {node: [state(held=Membership(0, NODES))] for node in "def"})
    promised(core, {"c": [state(held=both)]})
    assert core.phase is Phase.SEAL
    assert core.request("g") == Seal(2)
    promised(core, {"g": [state(held=after)]})
    assert core.phase is Phase.INSTALL
    assert core.request("f") is None, "it is no member any more"
    order = core.request("b")
    assert isinstance(order, Truncate)
    assert order.members == {0: after}


def test_the_membership_of_the_highest_epoch_rules_not_the_highest_number() -> None:
    core = sealing_with(GroupPlacement(0, NODES), dict.fromkeys("abcd", NO_MEMBERS))
    core.on_promised("a", core.epoch, [state(installed=0, held=Membership(7, NODES, NEXT))])
    promised(core, {node: [state(installed=1, held=Membership(1, NODES))] for node in "bcd"})
    assert core.phase is Phase.INSTALL
    order = core.request("b")
    assert isinstance(order, Truncate)
    assert order.members == {0: Membership(1, NODES)}
