"""Accounts: every balance that anyone saw is the opening one and the entries beside it, and never negative.

An account is a list (see lists.py, which finds what is wrong with the entries themselves), of which each entry has an
amount, and a balance in the same row. A transfer changes two accounts by opposite amounts, so who reads all accounts at
once finds the opening total.
"""

from collections.abc import Iterator

from tests.histories.model import Anomaly, Append, History, Outcome, ReadList, Txn


def check_bank(history: History) -> list[Anomaly]:
    """All that is wrong with balances."""
    amounts = {
        (op.key, op.value): op.amount for txn in history.txns for op in txn.ops if isinstance(op, Append) and op.amount
    }
    found: list[Anomaly] = []
    for txn in history.txns:
        if txn.outcome is Outcome.OK:
            found += _check_balances(history, txn, amounts)
    return found


def _check_balances(history: History, txn: Txn, amounts: dict[tuple[str, int], int]) -> Iterator[Anomaly]:
    balances: dict[str, int] = {}
    for op in txn.ops:
        if not isinstance(op, ReadList) or op.values is None or op.balance is None:
            continue
        balances[op.key] = op.balance
        due = history.accounts[op.key] + sum(amounts.get((op.key, value), 0) for value in op.values)
        if op.balance != due:
            sentence = f"{txn.name} found {op.balance} in {op.key}, whose {len(op.values)} entries make {due}"
            yield Anomaly("wrong balance", sentence, (txn.id,))
        if op.balance < 0:
            yield Anomaly("negative balance", f"{txn.name} found {op.balance} in {op.key}", (txn.id,))
    only_reads = all(isinstance(op, ReadList) for op in txn.ops)
    if only_reads and balances and balances.keys() == history.accounts.keys():
        total, due = sum(balances.values()), sum(history.accounts.values())
        if total != due:
            yield Anomaly("wrong total", f"{txn.name} found {total} in all accounts together, not {due}", (txn.id,))
