"""What a reader may show, and each thing that it must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.histories.lists import understand
from tests.histories.model import Append, History, Op, Outcome, ReadList, Txn
from tests.histories.snapshots import Needs, Snapshot, check_each, check_snapshots, places

# T1 appends to a and b; T2 reads a and appends to b; T3 appends to a; the last look reads both.
HISTORY = History(
    [
        Txn(1, "w", Outcome.OK, (Append("a", 1), Append("b", 1)), 10, 20),
        Txn(2, "w", Outcome.OK, (ReadList("a", (1,)), Append("b", 2)), 30, 40),
        Txn(3, "w", Outcome.INFO, (Append("a", 3),), 50, None),
        Txn(4, "w", Outcome.OK, (ReadList("c", (5,)), Append("a", 4)), 60, 70),
        Txn(5, "w", Outcome.OK, (Append("c", 5),), 55, 58),
        Txn(6, "last", Outcome.OK, (ReadList("a", (1, 3, 4)), ReadList("b", (1, 2)), ReadList("c", (5,))), 100, 110),
    ],
    {},
)


def shows(ended_ns: int = 90, session: str = "r", **values: tuple[int, ...]) -> Snapshot:
    return Snapshot(session, ended_ns, values)


@pytest.mark.parametrize(
    "snapshot",
    [
        shows(a=(), b=()),
        shows(a=(1,), b=(1,)),
        shows(a=(1,), b=(1, 2)),  # T3 not yet
        shows(a=(1, 3), b=(1,)),  # T2 not yet: their order is nobody's business
        shows(a=(1, 3, 4), b=(1, 2), c=(5,)),
        shows(b=(1, 2)),
        shows(never=()),
    ],
)
def test_prefixes_of_what_was_committed_are_right(snapshot: Snapshot) -> None:
    assert check_snapshots(HISTORY, [snapshot]) == []


@pytest.mark.parametrize(
    ("kind", "snapshots"),
    [
        ("made up", [shows(a=(3,))]),
        ("made up", [shows(a=(1, 3, 4, 9))]),
        ("fractured", [shows(a=(1,), b=())]),
        ("effect without cause", [shows(a=(1, 3, 4), c=())]),
        ("from the future", [shows(ended_ns=45, a=(1, 3))]),
        ("back in time", [shows(ended_ns=81, a=(1, 3)), shows(ended_ns=82, a=(1,))]),
    ],
)
def test_everything_else_is_told(kind: str, snapshots: list[Snapshot]) -> None:
    assert [anomaly.kind for anomaly in check_snapshots(HISTORY, snapshots)] == [kind]


@given(
    txns=st.lists(
        st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=2), st.booleans(), st.integers(0, 3)),
        max_size=8,
    ),
    lengths=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 300)), max_size=9
    ),
)
def test_lengths_tell_what_each_transaction_shown_would(
    txns: list[tuple[list[str], bool, int]], lengths: list[tuple[int, int, int, int]]
) -> None:
    """Of a serial history whose reads may lag: what `Needs` lets pass has nothing wrong, and nothing else has."""
    seen: dict[str, tuple[int, ...]] = dict.fromkeys("abc", ())
    done: list[Txn] = []
    for number, (keys, reads, lag) in enumerate(txns, 1):
        ops: list[Op] = []
        if reads:
            read = seen[keys[-1]][: max(0, len(seen[keys[-1]]) - lag)]
            ops.append(ReadList(keys[-1], read))
        for nth, key in enumerate(keys):
            ops.append(Append(key, 10 * number + nth))
            seen[key] += (10 * number + nth,)
        done.append(Txn(number, "w", Outcome.OK, tuple(ops), 20 * number, 20 * number + 10))
    last = tuple(ReadList(key, values) for key, values in seen.items())
    history = History([*done, Txn(99, "last", Outcome.OK, last, 400, 410)], {})
    lists = understand(history)
    appended_to = places(lists)
    for a, b, c, ended_ns in lengths:
        one = shows(ended_ns, a=seen["a"][:a], b=seen["b"][:b], c=seen["c"][:c])
        assert Needs(lists, appended_to).hold(one) == (check_each(lists, appended_to, one) == [])


def test_sessions_may_see_different_moments() -> None:
    assert check_snapshots(HISTORY, [shows(81, "r", a=(1, 3)), shows(82, "s", a=(1,))]) == []
