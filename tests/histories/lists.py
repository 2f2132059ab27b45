"""Appends and reads of lists: the strongest of the checks, after Elle (Kingsbury and Alvaro, VLDB 2020).

A list tells its own history: who reads [3, 5] knows that 3 was appended before 5, and that nothing else was. All reads
of a key must therefore be prefixes of the longest one, and that one is the order of the key's versions. With it every
dependency between transactions is known, and a serial order exists exactly if they form no cycle (see graph.py).

Found besides cycles, as they say more: a value that is there twice (**duplicate**), that nobody appended
(**garbage**), that a failed transaction appended (**G1a**), that its writer had not left as the last one (**G1b**),
reads that are not prefixes of one another (**incompatible order**), a transaction that does not see its own appends
(**internal**), and an acknowledged append that a later read does not show and none after it (**lost append**).

A transaction of unknown outcome happened if someone saw what it appended; else it is left out, which is always allowed.
An acknowledged append that no read shows comes after all versions that were read.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.histories.graph import JOIN, RW, TIME, WR, WW, Edge, Graph, Step, find_cycles
from tests.histories.model import Anomaly, Append, History, MalformedHistoryError, Outcome, ReadList, Txn


@dataclass(slots=True)
class Lists:
    """What a history says of its lists. Transactions are known by their place in it.

    `order` has the longest read of each key; `reads` (place, values) and `seen` (key, value) are what transactions that
    happened have read.
    """

    txns: list[Txn]
    writer: dict[tuple[str, int], int] = field(default_factory=dict)
    appends: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    happened: list[bool] = field(default_factory=list)
    order: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reads: dict[str, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)
    seen: set[tuple[str, int]] = field(default_factory=set)


def check_lists(history: History) -> list[Anomaly]:
    """All that is wrong with the lists. Raises MalformedHistoryError if two appends to a key have the same value."""
    lists = understand(history)
    found = [*_odd_values(lists), *_odd_orders(lists), *_internal(lists)]
    lost = dict(_lost(lists))
    found += lost.values()
    began = [txn.began_ns for txn in lists.txns]
    ended = [txn.ended_ns if happened else None for txn, happened in zip(lists.txns, lists.happened, strict=True)]
    graph = _dependencies(lists, set(lost))
    graph.add_time(began, ended)
    found += [_tell(lists, name, cycle) for name, cycle in find_cycles(graph, began, ended)]
    return found


def understand(history: History) -> Lists:
    """Who appended what, who happened, and the order of each key's versions."""
    lists = Lists(history.txns)
    for place, txn in enumerate(history.txns):
        for op in txn.ops:
            if isinstance(op, Append):
                if lists.writer.setdefault((op.key, op.value), place) != place:
                    raise MalformedHistoryError(f"{op.value} is appended to {op.key} twice: values must be unique")
                lists.appends.setdefault((place, op.key), []).append(op.value)
    lists.happened = [txn.outcome is Outcome.OK for txn in history.txns]
    waiting = [place for place, happened in enumerate(lists.happened) if happened]
    while waiting:  # who is seen by one that happened has happened too, and what it read counts
        waiting = [unknown for place in waiting for unknown in _note_reads(lists, place)]
    return lists


def _note_reads(lists: Lists, place: int) -> Iterator[int]:
    """Takes in what that transaction read; the unknown ones that it saw."""
    for op in lists.txns[place].ops:
        if not isinstance(op, ReadList) or op.values is None:
            continue
        lists.reads.setdefault(op.key, []).append((place, op.values))
        longest = lists.order.setdefault(op.key, ())
        if len(op.values) > len(longest):
            lists.order[op.key] = op.values
            new = op.values[len(longest) :] if op.values[: len(longest)] == longest else op.values
        elif op.values == longest[: len(op.values)]:
            continue
        else:
            new = op.values
        for value in new:
            lists.seen.add((op.key, value))
            writer = lists.writer.get((op.key, value))
            if writer is not None and lists.txns[writer].outcome is Outcome.INFO and not lists.happened[writer]:
                lists.happened[writer] = True
                yield writer


def _odd_values(lists: Lists) -> Iterator[Anomaly]:
    """Each odd value of a key is told once."""
    for key, reads in lists.reads.items():
        order = lists.order[key]
        told: set[tuple[str, int]] = set()
        # Prefixes of the longest read hold no value that it does not.
        for place, values in [r for r in reads if r[1] == order][:1] + [r for r in reads if r[1] != order[: len(r[1])]]:
            for value, count in Counter(values).items():
                anomaly = _odd_value(lists, place, key, value, count)
                if anomaly is not None and (anomaly.kind, value) not in told:
                    told.add((anomaly.kind, value))
                    yield anomaly


def _odd_value(lists: Lists, place: int, key: str, value: int, count: int) -> Anomaly | None:
    """What is wrong with a value that was read so many times in one list."""
    reader = lists.txns[place]
    writer = lists.writer.get((key, value))
    if count > 1:
        sentence = f"{reader.name} read {value} in {key} {count} times: an append took effect twice"
        return Anomaly("duplicate", sentence, (reader.id,))
    if writer is None:
        return Anomaly("garbage", f"{reader.name} read {value} in {key}, which nobody appended", (reader.id,))
    failed = lists.txns[writer]
    if failed.outcome is Outcome.FAIL and writer != place:
        sentence = f"{reader.name} read {value} in {key}, which {failed.name} appended and which failed"
        return Anomaly("G1a", sentence, (failed.id, reader.id))
    return None


def _odd_orders(lists: Lists) -> Iterator[Anomaly]:
    for key, reads in lists.reads.items():
        order = lists.order[key]
        longest = next(lists.txns[place] for place, values in reads if values == order)
        told = False
        for place, values in reads:
            reader = lists.txns[place]
            if not told and values != order[: len(values)]:
                told = True
                at = next(i for i, (a, b) in enumerate(zip(values, order, strict=False)) if a != b)
                sentence = (
                    f"{reader.name} and {longest.name} disagree about {key}: after {at} values that they share, "
                    f"one read {_few(values[at:])} and the other {_few(order[at:])}"
                )
                yield Anomaly("incompatible order", sentence, (reader.id, longest.id))
            writer = lists.writer.get((key, values[-1])) if values else None
            if writer is not None and writer != place and lists.appends[writer, key][-1] != values[-1]:
                sentence = (
                    f"{reader.name} read {key} up to {values[-1]}, in the middle of what {lists.txns[writer].name} "
                    f"appended: {lists.appends[writer, key]}"
                )
                yield Anomaly("G1b", sentence, (lists.txns[writer].id, reader.id))


def _few(values: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, values[:5]))}{', …' if len(values) > 5 else ''}]"


def _last(values: tuple[int, ...]) -> str:
    return f"[{'…, ' if len(values) > 5 else ''}{', '.join(map(str, values[-5:]))}]"


def _internal(lists: Lists) -> Iterator[Anomaly]:
    """Each transaction on its own: a read shows what the last one showed, and the own appends since."""
    for txn, happened in zip(lists.txns, lists.happened, strict=True):
        if not happened or not any(isinstance(op, ReadList) for op in txn.ops):
            continue
        known: dict[str, tuple[int, ...]] = {}
        own: dict[str, tuple[int, ...]] = {}
        for op in txn.ops:
            if isinstance(op, Append):
                own[op.key] = (*own.get(op.key, ()), op.value)
            elif isinstance(op, ReadList) and op.values is not None:
                mine = own.pop(op.key, ())
                expected = known[op.key] + mine if op.key in known else op.values
                if op.values != expected or op.values[len(op.values) - len(mine) :] != mine:
                    due = known.get(op.key, ()) + mine
                    sentence = (
                        f"{txn.name} read {op.key} with {_last(op.values)} at its end, "
                        f"but had itself read and appended {_last(due)} before"
                    )
                    yield Anomaly("internal", sentence, (txn.id,))
                known[op.key] = op.values


def _lost(lists: Lists) -> Iterator[tuple[int, Anomaly]]:
    """Acknowledged appends that no read shows although one began later: the writer's place, and what to say."""
    newest = {
        key: max((lists.txns[place] for place, _ in reads), key=lambda txn: txn.began_ns)
        for key, reads in lists.reads.items()
    }
    for (key, value), place in lists.writer.items():
        txn, reader = lists.txns[place], newest.get(key)
        if txn.outcome is not Outcome.OK or (key, value) in lists.seen or reader is None or txn.ended_ns is None:
            continue
        if txn.ended_ns < reader.began_ns:
            sentence = (
                f"{txn.name} appended {value} to {key} and was acknowledged; "
                f"{reader.name}, which began later, does not see it, and nobody ever does"
            )
            yield place, Anomaly("lost append", sentence, (txn.id, reader.id))


def _dependencies(lists: Lists, lost: set[int]) -> Graph:
    """Who must precede whom. What is lost has been told already and is left out, or it would explain itself again."""
    graph = Graph(len(lists.txns))
    unseen: dict[str, dict[int, int]] = {}
    for (key, value), place in lists.writer.items():
        if lists.happened[place] and (key, value) not in lists.seen and place not in lost:
            unseen.setdefault(key, {})[place] = value
    for key, reads in lists.reads.items():
        versions = _Versions(graph, lists, key, unseen.get(key, {}))
        for place, values in reads:
            versions.add_reader(place, values)
    return graph


class _Versions:
    """The versions of one key, each by its writer; behind the last one, at a joint, those that nobody read."""

    def __init__(self, graph: Graph, lists: Lists, key: str, unseen: dict[int, int]) -> None:
        self._graph, self._lists, self._key, self._unseen = graph, lists, key, unseen
        self._order = lists.order[key]
        writers = ((at, lists.writer.get((key, value), -1)) for at, value in enumerate(self._order))
        known = [(at, writer) for at, writer in writers if writer >= 0 and lists.happened[writer]]
        self._places = [at for at, _ in known]
        self._writers = [writer for _, writer in known]
        for (_, before), (at, after) in itertools.pairwise(known):
            graph.add(before, Edge(after, WW, key, self._order[at]))
        self._end = graph.joint() if unseen else -1
        for place, value in unseen.items():
            graph.add(self._end, Edge(place, JOIN, key, value))
        if self._writers:
            self._add_to_end(self._writers[-1], WW)

    def add_reader(self, place: int, values: tuple[int, ...]) -> None:
        """The edges from the version that was read, and to the next one. Own appends are neither."""
        if values != self._order[: len(values)]:
            return  # an incompatible order: nothing follows from it
        next_ = bisect.bisect_left(self._places, len(values))
        last = next_ - 1
        while last >= 0 and self._writers[last] == place:
            last -= 1
        if last >= 0:
            self._graph.add(self._writers[last], Edge(place, WR, self._key, self._order[self._places[last]]))
        while next_ < len(self._writers) and self._writers[next_] == place:
            next_ += 1
        if next_ < len(self._writers):
            value = self._order[self._places[next_]]
            self._graph.add(place, Edge(self._writers[next_], RW, self._key, value))
        else:
            self._add_to_end(place, RW)

    def _add_to_end(self, place: int, kind: int) -> None:
        if self._end < 0:
            return
        if place not in self._unseen:
            self._graph.add(place, Edge(self._end, kind, self._key))
            return
        for other, value in self._unseen.items():  # by way of the joint it would precede itself
            self._graph.add(place, Edge(other, kind, self._key, value))


def _tell(lists: Lists, name: str, cycle: list[Step]) -> Anomaly:
    """The cycle in a sentence. Two well-known kinds of G-single have names of their own."""
    kinds, keys = {step.kind for step in cycle}, {step.key for step in cycle if step.kind != TIME}
    if len(cycle) == 2 and kinds == {RW, TIME}:
        name = "stale read"
    elif len(cycle) == 2 and RW in kinds and kinds <= {RW, WW} and len(keys) == 1:
        name = "lost update"
    steps = "; ".join(_clause(lists.txns[step.source].name, lists.txns[step.target].name, step) for step in cycle)
    ids = tuple(lists.txns[step.source].id for step in cycle)
    return Anomaly(name, f"{' -> '.join(f'T{id_}' for id_ in (*ids, ids[0]))}: {steps}", ids)


def _clause(source: str, target: str, step: Step) -> str:
    if step.kind == WW:
        return f"{target} appended {step.value} to {step.key} right after what {source} had appended"
    if step.kind == WR:
        return f"{target} read {step.value} in {step.key}, which {source} had appended"
    if step.kind == RW:
        return f"{source} read {step.key} without {step.value}, which {target} appended"
    return f"{source} had ended before {target} began"
