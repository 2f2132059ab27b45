"""Registers that are set and read, one operation at a time: each must be linearizable (Gibbons and Korach, SIAM J.
Comput. 26, 1997).

Every value is written once, so it is known which write a read saw. All operations of one value must happen while it is
the register's value. Of each value take the first end and the last beginning of its operations. If the end comes
first, the register certainly had that value from the one to the other, a *fixed* span; if not, then at some moment
between them, a *loose* one. The register is linearizable exactly if no two fixed spans overlap, no loose span lies
within a fixed one, and nobody read what was not yet written. That takes n log n.

A write of unknown outcome may have happened at any time after its beginning; unless someone read it, it need not have.
"""

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.histories.model import Anomaly, History, MalformedHistoryError, Outcome, Read, Txn, Write

_NEVER: Final = 1 << 62
_ALWAYS: Final = -1 << 62


@dataclass(slots=True)
class _Value:
    """One value of one register: who wrote it (None: nobody, it was there before the beginning) and who read it."""

    value: int | None
    writer: Txn | None = None
    reads: list[Txn] = field(default_factory=list)

    def first_end(self) -> tuple[int, Txn | None]:
        """Of all its operations."""
        ends = [(_end(self.writer), self.writer), *((_end(txn), txn) for txn in self.reads)]
        return min(ends, key=lambda end: end[0])

    def last_begin(self) -> tuple[int, Txn | None]:
        """Of all its operations."""
        begins = [(_begin(self.writer), self.writer), *((_begin(txn), txn) for txn in self.reads)]
        return max(begins, key=lambda begin: begin[0])


def _end(txn: Txn | None) -> int:
    if txn is None:
        return _ALWAYS
    return _NEVER if txn.ended_ns is None else txn.ended_ns


def _begin(txn: Txn | None) -> int:
    return _ALWAYS if txn is None else txn.began_ns


def check_registers(history: History) -> list[Anomaly]:
    """All that is wrong with the registers. Raises MalformedHistoryError if a value is written twice."""
    registers: dict[str, dict[int | None, _Value]] = {}
    reads: list[tuple[Txn, Read]] = []
    for txn in history.txns:
        for op in txn.ops:
            if isinstance(op, Write):
                values = registers.setdefault(op.key, {None: _Value(None)})
                if op.value in values:
                    raise MalformedHistoryError(f"{op.value} is written to {op.key} twice: values must be unique")
                values[op.value] = _Value(op.value, txn)
            elif isinstance(op, Read) and op.answered and txn.outcome is Outcome.OK:
                reads.append((txn, op))
    found: list[Anomaly] = []
    for txn, op in reads:
        values = registers.setdefault(op.key, {None: _Value(None)})
        found += _note_read(values, txn, op)
    for key, values in registers.items():
        found += _check_spans(key, [value for value in values.values() if _counts(value)])
    return found


def _note_read(values: dict[int | None, _Value], txn: Txn, op: Read) -> Iterator[Anomaly]:
    value = values.get(op.value)
    if value is None:
        yield Anomaly("garbage", f"{txn.name} read {op.value} in {op.key}, which nobody wrote", (txn.id,))
        return
    writer = value.writer
    if writer is not None and writer.outcome is Outcome.FAIL:
        sentence = f"{txn.name} read {op.value} in {op.key}, which {writer.name} wrote and which failed"
        yield Anomaly("G1a", sentence, (writer.id, txn.id))
    elif writer is not None and _end(txn) < writer.began_ns:
        sentence = f"{txn.name} read {op.value} in {op.key} before {writer.name}, which wrote it, had begun"
        yield Anomaly("read from the future", sentence, (txn.id, writer.id))
    else:
        value.reads.append(txn)


def _counts(value: _Value) -> bool:
    return value.writer is None or bool(value.reads) or value.writer.outcome is Outcome.OK


def _check_spans(key: str, values: list[_Value]) -> Iterator[Anomaly]:
    fixed: list[tuple[int, int, _Value]] = []
    loose: list[tuple[int, int, _Value]] = []
    for value in values:
        end, begin = value.first_end()[0], value.last_begin()[0]
        if end < begin:
            fixed.append((end, begin, value))
        else:
            loose.append((begin, end, value))
    fixed.sort(key=lambda span: span[:2])
    for before, after in itertools.pairwise(fixed):
        if after[0] < before[1]:
            yield _returned(key, before[2], after[2])
    starts = [start for start, _, _ in fixed]
    for start, end, value in loose:
        at = bisect.bisect_left(starts, start) - 1
        if at >= 0 and end < fixed[at][1]:
            yield _returned(key, fixed[at][2], value)


def _returned(key: str, around: _Value, within: _Value) -> Anomaly:
    """`around` was the register's value before and after a moment at which `within` was."""
    _, early = around.first_end()
    _, late = around.last_begin()
    _, other = within.first_end()
    assert late is not None
    assert other is not None
    since = f"{early.name} had ended" if early is not None else "the beginning"
    sentence = (
        f"{key} was {around.value} since {since}, and still when {late.name} began, "
        f"but in between {other.name} found or made it {within.value}"
    )
    return Anomaly("stale read", sentence, tuple(txn.id for txn in (early, other, late) if txn is not None))
