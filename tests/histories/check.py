"""All checks on one history, and how the unknown transactions in it turned out."""

from dataclasses import dataclass

from tests.histories.bank import check_bank
from tests.histories.lists import check_lists, understand
from tests.histories.model import Anomaly, Append, History, Outcome, Read, ReadList, Txn, Write
from tests.histories.registers import check_registers


@dataclass(frozen=True, slots=True)
class Unknown:
    """Transactions without a known outcome: how many turned out to have happened, how many not; of others nobody can
    tell (they changed nothing, or nobody has read it since)."""

    happened: int = 0
    absent: int = 0
    open: int = 0


def check(history: History) -> list[Anomaly]:
    """All anomalies; empty if a serial order explains everything. Raises MalformedHistoryError."""
    return [*check_lists(history), *check_bank(history), *check_registers(history)]


def settle(history: History) -> Unknown:
    """What came of the unknown ones. Absent: a read that began after all of them had, of all that they appended to,
    shows nothing of it."""
    lists = understand(history)
    unknown = [place for place, txn in enumerate(history.txns) if txn.outcome is Outcome.INFO]
    last_ns = max((history.txns[place].began_ns for place in unknown), default=0)
    read_since = {
        op.key
        for txn in history.txns
        if txn.outcome is Outcome.OK and txn.began_ns > last_ns
        for op in txn.ops
        if isinstance(op, ReadList) and op.values is not None
    }
    found = _found_in_registers(history)
    happened = absent = 0
    for place in unknown:
        txn = history.txns[place]
        keys = {op.key for op in txn.ops if isinstance(op, Append)}
        happens = lists.happened[place] or _is_found(txn, found)
        happened += happens
        absent += bool(keys) and not happens and keys <= read_since
    return Unknown(happened, absent, len(unknown) - happened - absent)


def _found_in_registers(history: History) -> set[tuple[str, int | None]]:
    reads = (op for txn in history.txns if txn.outcome is Outcome.OK for op in txn.ops if isinstance(op, Read))
    return {(op.key, op.value) for op in reads}


def _is_found(txn: Txn, found: set[tuple[str, int | None]]) -> bool:
    return any((op.key, op.value) in found for op in txn.ops if isinstance(op, Write))
