"""What readers show beside a history: snapshots of some moment, in the writer's order, and nothing that is not durable.

A reader replays the log of commits, so what one transaction sees there is what some prefix of them has done. That is
less than serializability (a reader may show a state between two commits whose serial order is another), so snapshots
are no part of the history itself. Of the lists that a snapshot reads must hold:

- each is a prefix of what the list came to in the end (else **made up**: a reader has shown what is not durable);
- a transaction that appended to several of them shows in all or in none (else **fractured**);
- a transaction shows with all that it had read (else **effect without cause**);
- nobody shows who began after the snapshot was read (else **from the future**);
- within a session no list gets shorter (else **back in time**).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.histories.lists import Lists, understand
from tests.histories.model import Anomaly, History, ReadList


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read-only transaction of a session saw of some lists, and when (monotonic ns) it had read."""

    session: str
    ended_ns: int
    values: Mapping[str, tuple[int, ...]]


def check_snapshots(history: History, snapshots: Sequence[Snapshot]) -> list[Anomaly]:
    """All that is wrong with them. The history ends with reads of all lists."""
    lists = understand(history)
    appended_to: dict[int, dict[str, int]] = {}  # place -> key -> index of its last value there
    for key, order in lists.order.items():
        for at, value in enumerate(order):
            if (writer := lists.writer.get((key, value))) is not None:
                appended_to.setdefault(writer, {})[key] = at
    found = [anomaly for one in snapshots for anomaly in _of_one(lists, appended_to, one)]
    return [*found, *_back_in_time(snapshots)]


def _of_one(lists: Lists, appended_to: Mapping[int, Mapping[str, int]], snapshot: Snapshot) -> Iterator[Anomaly]:
    shown: set[int] = set()
    for key, values in snapshot.values.items():
        if values != lists.order.get(key, ())[: len(values)]:
            yield _anomaly("made up", snapshot, f"shows {key} with {values[-5:]} at its end, which never was its order")
            return
        shown |= {lists.writer[key, value] for value in values if (key, value) in lists.writer}
    for place in shown:
        txn = lists.txns[place]
        for key, at in appended_to[place].items():
            if key in snapshot.values and len(snapshot.values[key]) <= at:
                yield _anomaly("fractured", snapshot, f"shows {txn.name}, but not what that appended to {key}", txn.id)
        if txn.began_ns > snapshot.ended_ns:
            yield _anomaly("from the future", snapshot, f"shows {txn.name}, which had not begun", txn.id)
        for op in txn.ops:
            if not isinstance(op, ReadList) or op.values is None or op.key not in snapshot.values:
                continue
            others = [value for value in op.values if lists.writer.get((op.key, value)) != place]
            if others and others[-1] not in snapshot.values[op.key]:
                words = f"shows {txn.name}, but not {others[-1]}, which that had read in {op.key}"
                yield _anomaly("effect without cause", snapshot, words, txn.id)


def _back_in_time(snapshots: Sequence[Snapshot]) -> Iterator[Anomaly]:
    newest: dict[tuple[str, str], int] = {}
    for snapshot in sorted(snapshots, key=lambda each: each.ended_ns):
        for key, values in snapshot.values.items():
            before = newest.get((snapshot.session, key), 0)
            if len(values) < before:
                yield _anomaly("back in time", snapshot, f"shows {len(values)} values of {key}, and showed {before}")
            newest[snapshot.session, key] = max(before, len(values))


def _anomaly(kind: str, snapshot: Snapshot, words: str, *ids: int) -> Anomaly:
    return Anomaly(kind, f"session {snapshot.session} {words}", ids)
