"""What a reader may show, and each thing that it must not."""

import pytest

from tests.histories.model import Append, History, Outcome, ReadList, Txn
from tests.histories.snapshots import Snapshot, check_snapshots

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


def test_sessions_may_see_different_moments() -> None:
    assert check_snapshots(HISTORY, [shows(81, "r", a=(1, 3)), shows(82, "s", a=(1,))]) == []
