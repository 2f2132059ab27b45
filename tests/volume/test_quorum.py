from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_ray.errors import UsageError
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.write.quorum import InFlight, QuorumTracker

NODES = tuple("abcdef")


def tracker(members: dict[int, tuple[str, ...]] = {0: NODES}) -> QuorumTracker:  # noqa: B006 - not changed
    return QuorumTracker({group: GroupPlacement(group, nodes) for group, nodes in members.items()}, 0, {})


def test_durable_at_four_of_six() -> None:
    quorum = tracker()
    quorum.submit(InFlight(100, (0,)))
    assert [quorum.ack(node, 100) for node in NODES] == [False, False, False, True, False, False]
    assert quorum.vdl == 100
    assert quorum.inflight_count == 0


def test_an_acknowledgement_covers_all_before_it() -> None:
    quorum = tracker()
    for end in (10, 20, 30):
        quorum.submit(InFlight(end, (0,)))
    for node in NODES[:3]:
        quorum.ack(node, 30)
    assert quorum.vdl == 0
    assert quorum.ack("f", 20)
    assert quorum.vdl == 20
    assert not quorum.ack("f", 20)
    assert quorum.ack("e", 30)
    assert quorum.vdl == 30


def test_nobody_acknowledges_what_was_not_submitted() -> None:
    """It would count for flushes that come later, and that the node has never seen."""
    quorum = tracker()
    quorum.submit(InFlight(10, (0,)))
    with pytest.raises(AssertionError, match="only what was submitted"):
        quorum.ack("a", 11)


def test_every_group_touched_needs_its_own_quorum() -> None:
    quorum = tracker({0: NODES, 1: tuple("efghij")})
    quorum.submit(InFlight(10, (0,)))
    quorum.submit(InFlight(20, (0, 1)))
    quorum.submit(InFlight(30, (0,)))
    for node in "abcd":
        quorum.ack(node, 30)
    assert quorum.vdl == 10
    for node in "ghi":
        quorum.ack(node, 20)
    assert quorum.vdl == 10
    quorum.ack("j", 20)
    assert quorum.vdl == 30
    assert quorum.group_tails == {0: 30, 1: 20}


def test_a_group_that_comes_later() -> None:
    quorum = tracker()
    with pytest.raises(UsageError, match="group 1"):
        quorum.submit(InFlight(10, (0, 1)))
    quorum.place(GroupPlacement(1, tuple("uvwxyz")))
    quorum.submit(InFlight(10, (1,)))
    for node in "uvwx":
        quorum.ack(node, 10)
    assert quorum.vdl == 10


def test_flushes_go_in_order() -> None:
    quorum = tracker()
    quorum.submit(InFlight(10, (0,)))
    with pytest.raises(UsageError, match="LSN order"):
        quorum.submit(InFlight(10, (0,)))


NEXT = tuple("abcdeg")


def test_while_members_change_both_sets_must_have_a_flush() -> None:
    quorum = tracker()
    assert not quorum.place(GroupPlacement(0, NODES, NEXT))
    quorum.submit(InFlight(10, (0,)))
    for node in "abcg":
        assert not quorum.ack(node, 10)
    assert quorum.ack("f", 10)
    quorum.submit(InFlight(20, (0,)))
    for node in "abcf":
        assert not quorum.ack(node, 20)
    assert quorum.ack("g", 20)


def test_flushes_in_flight_at_the_begin_ask_only_those_who_got_them() -> None:
    quorum = tracker()
    quorum.submit(InFlight(10, (0,)))
    quorum.place(GroupPlacement(0, NODES, tuple("uvwxyz")))
    quorum.submit(InFlight(20, (0,)))
    for node in "uvwx":
        quorum.ack(node, 20)
    assert quorum.vdl == 0
    for node in "abcd":
        quorum.ack(node, 10)
    assert quorum.vdl == 10
    for node in "abcd":
        quorum.ack(node, 20)
    assert quorum.vdl == 20


def test_a_commit_asks_the_new_members_only() -> None:
    quorum = tracker()
    quorum.place(GroupPlacement(0, NODES, NEXT))
    quorum.submit(InFlight(10, (0,)))
    for node in "abcg":
        quorum.ack(node, 10)
    assert quorum.vdl == 0
    assert quorum.place(GroupPlacement(0, NEXT))
    assert quorum.vdl == 10


def test_an_abort_asks_the_old_members_only() -> None:
    quorum = tracker()
    quorum.place(GroupPlacement(0, NODES, tuple("uvwxyz")))
    quorum.submit(InFlight(10, (0,)))
    for node in "abcd":
        quorum.ack(node, 10)
    assert quorum.place(GroupPlacement(0, NODES))
    assert quorum.vdl == 10


def test_a_set_does_not_take_over_before_all_from_before_its_time_is_durable() -> None:
    quorum = tracker()
    quorum.submit(InFlight(10, (0,)))
    quorum.place(GroupPlacement(0, NODES, NEXT))
    with pytest.raises(UsageError, match="cannot take over"):
        quorum.place(GroupPlacement(0, NEXT))
    for node in "abcd":
        quorum.ack(node, 10)
    quorum.place(GroupPlacement(0, NEXT))


@given(
    touched=st.lists(st.sampled_from([(0,), (1,), (0, 1)]), min_size=1, max_size=12),
    acks=st.lists(st.tuples(st.sampled_from("abcdefghi"), st.integers(1, 12)), max_size=60),
)
def test_the_vdl_is_what_the_definition_says(touched: list[tuple[int, ...]], acks: list[tuple[str, int]]) -> None:
    members = {0: NODES, 1: tuple("defghi")}
    quorum = tracker(members)
    for index, groups in enumerate(touched, start=1):
        quorum.submit(InFlight(index * 10, groups))
    acked = dict.fromkeys("abcdefghi", 0)
    for node, flush in acks:
        before, index = quorum.vdl, min(flush, len(touched))
        acked[node] = max(acked[node], index * 10)
        moved = quorum.ack(node, index * 10)
        expected = 0
        for number, groups in enumerate(touched, start=1):
            if any(sum(acked[each] >= number * 10 for each in members[group]) < 4 for group in groups):
                break
            expected = number * 10
        assert quorum.vdl == expected
        assert moved == (quorum.vdl != before)
