"""A rewind in a history: the one operation that takes acknowledged writes back, and only those that it should.

A rewind goes to a *mark* that was made earlier. Of a transaction that was acknowledged

- before the mark was asked for, nothing changes: it must stay;
- after the mark was made and before the rewind was asked for, it is certain that it did not happen;
- while the mark was being made, or while the rewind was under way, either may be the case: the client cannot know
  which came first, or which of the two volumes its session was on;
- of one that began when the rewind was over, nothing changes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.histories.model import History, Op, Outcome, Read, ReadList, Txn, from_lines
from tests.histories.snapshots import Snapshot

LATE_NS = 1_000_000_000  # a snapshot was read before it was noted


@dataclass(frozen=True, slots=True)
class Rewind:
    """When the mark was asked for and made, and when the rewind to it was asked for and over (monotonic ns)."""

    mark_began_ns: int
    mark_ended_ns: int
    began_ns: int
    ended_ns: int


def load(path: Path) -> History:
    """Reads a file, with the rewinds that it tells of. Raises MalformedHistoryError, OSError."""
    return of_lines(path.read_text(encoding="utf-8").splitlines())


def of_lines(lines: Sequence[str]) -> History:
    """The same of lines."""
    history = from_lines(lines)
    told = [event for event in map(json.loads, lines) if event["type"] == "rewind"]
    return taken_back(history, [Rewind(*event["mark"], *event["rewind"]) for event in told])


def taken_back(history: History, rewinds: Sequence[Rewind]) -> History:
    """The history as it is after these rewinds, which do not overlap."""
    txns = history.txns
    for rewind in rewinds:
        txns = [_after(txn, rewind) for txn in txns]
    return History(txns, history.accounts)


def still_seen(snapshots: Iterable[Snapshot], rewinds: Sequence[Rewind]) -> list[Snapshot]:
    """Without those that may show what was taken back."""
    return [
        one
        for one in snapshots
        if not any(rewind.mark_began_ns <= one.ended_ns <= rewind.ended_ns + LATE_NS for rewind in rewinds)
    ]


def _after(txn: Txn, rewind: Rewind) -> Txn:
    if txn.outcome is not Outcome.OK or txn.ended_ns is None:
        return txn
    if txn.ended_ns <= rewind.mark_began_ns or txn.began_ns >= rewind.ended_ns:
        return txn
    if txn.began_ns >= rewind.mark_ended_ns and txn.ended_ns <= rewind.began_ns:
        return replace(txn, outcome=Outcome.FAIL, error="it was taken back")
    ops = tuple(map(_unanswered, txn.ops))
    return replace(txn, outcome=Outcome.INFO, ended_ns=None, ops=ops, error="it may have been taken back")


def _unanswered(op: Op) -> Op:
    if isinstance(op, ReadList):
        return replace(op, values=None, balance=None)
    return replace(op, value=None, answered=False) if isinstance(op, Read) else op
