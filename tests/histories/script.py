"""Histories as a few lines of text, for tests.

1   0-10  ok    x+1 y+2         appended 1 to x and 2 to y, from 0 to 10
2  20-30  ok    x[1,3] y[]      read lists
3   5-    info  x+3             nobody knows
4  40-50  ok    a+9@-20 a[9]=80 an entry with an amount, a list with a balance
5  60-70  ok    r:=4            set a register; `r?4` reads it, `r?-` finds it unset
"""

import re

from tests.histories.model import Append, History, Op, Outcome, Read, ReadList, Txn, Write

_OP = re.compile(
    r"(?P<key>\w+)(?:\+(?P<append>\d+)(?:@(?P<amount>-?\d+))?|\[(?P<values>[\d,]*)\](?:=(?P<balance>-?\d+))?"
    r"|:=(?P<write>\d+)|\?(?P<read>\d+|-))"
)


def history(text: str, accounts: dict[str, int] | None = None) -> History:
    """The history that the text tells."""
    return History([_txn(line) for line in text.strip().splitlines()], accounts or {})


def _txn(line: str) -> Txn:
    id_, times, outcome, *ops = line.split()
    began, _, ended = times.partition("-")
    return Txn(
        id=int(id_),
        client=f"client of {id_}",
        outcome=Outcome(outcome),
        ops=tuple(map(_op, ops)),
        began_ns=int(began),
        ended_ns=int(ended) if ended else None,
    )


def _op(word: str) -> Op:
    found = _OP.fullmatch(word)
    assert found, word
    part = found.groupdict()
    key = part["key"]
    if part["append"]:
        return Append(key, int(part["append"]), int(part["amount"] or 0))
    if part["write"]:
        return Write(key, int(part["write"]))
    if part["read"]:
        return Read(key, None if part["read"] == "-" else int(part["read"]))
    values = tuple(int(value) for value in part["values"].split(",") if value)
    return ReadList(key, values, int(part["balance"]) if part["balance"] else None)
