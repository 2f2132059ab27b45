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
    appended_to = places(lists)
    needs = Needs(lists, appended_to)
    found = [a for one in snapshots if not needs.hold(one) for a in check_each(lists, appended_to, one)]
    return [*found, *_back_in_time(snapshots)]


def places(lists: Lists) -> dict[int, dict[str, int]]:
    """Of each transaction, by its place: the index of its last value in each list that it appended to."""
    appended_to: dict[int, dict[str, int]] = {}
    for key, order in lists.order.items():
        for at, value in enumerate(order):
            if (writer := lists.writer.get((key, value))) is not None:
                appended_to.setdefault(writer, {})[key] = at
    return appended_to


class Needs:
    """Of each prefix of each list, how long the other lists must be beside it, and when the last of those began that it
    shows. Both only grow with the prefix: the lengths of its lists tell whether a snapshot is right, without a look at
    each transaction that it shows (a round of a minute has ten thousand snapshots of thousands of transactions)."""

    def __init__(self, lists: Lists, appended_to: Mapping[int, Mapping[str, int]]) -> None:
        self._order = lists.order
        self._began_ns: dict[str, list[int]] = {}
        self._lengths: dict[str, dict[str, list[int]]] = {}  # of each list, of each other: by the length of the prefix
        for key, order in lists.order.items():
            began_ns, lengths = [0], dict[str, list[int]]()
            for at, value in enumerate(order):
                place = lists.writer.get((key, value))
                began_ns.append(max(began_ns[-1], 0 if place is None else lists.txns[place].began_ns))
                for other, length in _beside(lists, appended_to, place):
                    known = lengths.setdefault(other, [0])
                    known += [known[-1]] * (at + 1 - len(known))  # prefixes that ask for no more than those before
                    if len(known) == at + 1:
                        known.append(known[-1])
                    known[-1] = max(known[-1], length)
            self._began_ns[key], self._lengths[key] = began_ns, lengths

    def hold(self, snapshot: Snapshot) -> bool:
        """Whether nothing is wrong with it."""
        shown = {key: len(values) for key, values in snapshot.values.items()}
        return all(
            values == self._order.get(key, ())[: len(values)] for key, values in snapshot.values.items()
        ) and all(
            self._began_ns[key][length] <= snapshot.ended_ns
            and all(shown.get(other, least[-1]) >= least[min(length, len(least) - 1)] for other, least in needs.items())
            for key, length in shown.items()
            if length
            for needs in [self._lengths[key]]
        )


def _beside(lists: Lists, appended_to: Mapping[int, Mapping[str, int]], place: int | None) -> Iterator[tuple[str, int]]:
    """How long lists are at least beside one that shows this transaction."""
    if place is None:
        return
    for key, at in appended_to[place].items():
        yield key, at + 1
    for op in lists.txns[place].ops:
        if isinstance(op, ReadList) and op.values is not None:
            others = [value for value in op.values if lists.writer.get((op.key, value)) != place]
            order = lists.order.get(op.key, ())
            if others:
                yield op.key, (order.index(others[-1]) if others[-1] in order else len(order)) + 1


def check_each(lists: Lists, appended_to: Mapping[int, Mapping[str, int]], snapshot: Snapshot) -> list[Anomaly]:
    """All that is wrong with one, by a look at each transaction that it shows."""
    return list(_of_one(lists, appended_to, snapshot))


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
