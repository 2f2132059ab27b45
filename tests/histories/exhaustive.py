"""The definition itself: try every order. For small histories only, to check the checkers."""

import itertools
from collections.abc import Iterator, Sequence

from tests.histories.model import Append, History, Op, Outcome, Read, ReadList, Txn, Write

Database = dict[str, int | tuple[int, ...] | None]


def is_explained(history: History) -> bool:
    """Whether some order of what happened, with any of what is unknown, gives every read its answer, in real time."""
    certain = [txn for txn in history.txns if txn.outcome is Outcome.OK]
    unknown = [txn for txn in history.txns if txn.outcome is Outcome.INFO]
    return any(
        _explains(order)
        for count in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, count)
        for order in _orders([*certain, *chosen])
    )


def _orders(txns: Sequence[Txn]) -> Iterator[tuple[Txn, ...]]:
    """All that no clock contradicts: whoever ended before another began comes first."""
    for order in itertools.permutations(txns):
        if not any(
            later.ended_ns is not None and later.ended_ns < earlier.began_ns
            for earlier, later in itertools.combinations(order, 2)
        ):
            yield order


def _explains(order: Sequence[Txn]) -> bool:
    database: Database = {}
    return all(perform(database, op) == op for txn in order for op in txn.ops)


def perform(database: Database, op: Op) -> Op:
    """Does it; what it looks like with the answer that the database gives."""
    if isinstance(op, Append):
        database[op.key] = (*_list(database, op.key), op.value)
    elif isinstance(op, Write):
        database[op.key] = op.value
    elif isinstance(op, ReadList):
        return ReadList(op.key, _list(database, op.key))
    elif isinstance(op, Read):
        value = database.get(op.key)
        assert not isinstance(value, tuple)
        return Read(op.key, value)
    return op


def _list(database: Database, key: str) -> tuple[int, ...]:
    values = database.get(key, ())
    assert isinstance(values, tuple)
    return values
