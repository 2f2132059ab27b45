"""A history: transactions, the operations in them, and when each began and ended.

An outcome is what the client knows: OK (the commit was confirmed), FAIL (it certainly did not happen) or INFO (nobody
told: it may have happened, and even after the client stopped waiting). Times are monotonic nanoseconds of one machine.

As a file, a history is JSON lines in the order in which things happened:

    {"type": "begin", "txn": 7, "client": "lists 2", "time_ns": 812, "ops": [["append", "L1", 5, 0], ["list", "L1"]]}
    {"type": "ok", "txn": 7, "time_ns": 901, "ops": [["append", "L1", 5, 0], ["list", "L1", [3, 5], null]]}
    {"type": "info", "txn": 8, "time_ns": 990, "ops": [], "error": "the connection was lost"}

`fail` is like `info`. Without an end, or with empty `ops` at the end, the operations are those of the beginning, and
what they read is not known. Lines of other types say how the history came about (`run`, `fault`, …); the `accounts` of
a `run` are those of the history, all else is no part of it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What the client knows of its transaction."""

    OK = "ok"
    FAIL = "fail"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Append:
    """`value` was put at the end of a list. A list that is an account's has an amount with each entry."""

    key: str
    value: int
    amount: int = 0


@dataclass(frozen=True, slots=True)
class ReadList:
    """A list's content; None if no answer came. `balance` if the list is an account's."""

    key: str
    values: tuple[int, ...] | None = None
    balance: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """A register was set."""

    key: str
    value: int


@dataclass(frozen=True, slots=True)
class Read:
    """A register's value; None before its first write. `answered` is False if no answer came."""

    key: str
    value: int | None = None
    answered: bool = True


Op = Append | ReadList | Write | Read


@dataclass(frozen=True, slots=True)
class Txn:
    """`ended_ns` None: it may take effect at any later time."""

    id: int
    client: str
    outcome: Outcome
    ops: tuple[Op, ...]
    began_ns: int
    ended_ns: int | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """As it is called in sentences."""
        return f"T{self.id}"


@dataclass(slots=True)
class History:
    """Transactions in the order in which they began. `accounts` are the opening balances of lists that are accounts."""

    txns: list[Txn] = field(default_factory=list)
    accounts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that no serial order explains: its class, a sentence, and the transactions that it is about."""

    kind: str
    sentence: str
    txns: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"


class MalformedHistoryError(ValueError):
    """The file is not a history, or its values are not unique."""


def op_to_json(op: Op) -> list[object]:
    """One operation as a JSON array."""
    if isinstance(op, Append):
        return ["append", op.key, op.value, op.amount]
    if isinstance(op, ReadList):
        return ["list", op.key] if op.values is None else ["list", op.key, list(op.values), op.balance]
    if isinstance(op, Write):
        return ["write", op.key, op.value]
    return ["read", op.key, op.value] if op.answered else ["read", op.key]


def op_from_json(fields: Sequence[Any]) -> Op:
    """The inverse. Raises MalformedHistoryError."""
    match fields:
        case ["append", key, value, amount]:
            return Append(key, value, amount)
        case ["list", key]:
            return ReadList(key)
        case ["list", key, values, balance]:
            return ReadList(key, tuple(values), balance)
        case ["write", key, value]:
            return Write(key, value)
        case ["read", key]:
            return Read(key, None, answered=False)
        case ["read", key, value]:
            return Read(key, value)
    raise MalformedHistoryError(f"not an operation: {fields!r}")


def load(path: Path) -> History:
    """Reads a file. Raises MalformedHistoryError, OSError."""
    with path.open(encoding="utf-8") as lines:
        return from_lines(lines)


def from_lines(lines: Iterable[str]) -> History:
    """Pairs beginnings with ends. A transaction without an end, as when its client was killed, is INFO."""
    begun: dict[int, dict[str, Any]] = {}
    ended: dict[int, dict[str, Any]] = {}
    accounts: dict[str, int] = {}
    for event in _events(lines):
        kind = event["type"]
        if kind == "begin":
            _once(begun, event)
        elif kind in (Outcome.OK, Outcome.FAIL, Outcome.INFO):
            _once(ended, event)
        elif kind == "run":
            accounts.update(event.get("accounts", {}))
    if ended.keys() - begun.keys():
        raise MalformedHistoryError(f"transactions end that never began: {sorted(ended.keys() - begun.keys())[:5]}")
    return History([_txn(begin, ended.get(id_)) for id_, begin in begun.items()], accounts)


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise MalformedHistoryError(f"line {number} is no JSON: {error}") from error
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise MalformedHistoryError(f"line {number} is no event: it has no type")
        yield event


def _once(events: dict[int, dict[str, Any]], event: dict[str, Any]) -> None:
    if events.setdefault(event["txn"], event) is not event:
        raise MalformedHistoryError(f"two events of type {event['type']} for transaction {event['txn']}")


def _txn(begin: dict[str, Any], end: dict[str, Any] | None) -> Txn:
    outcome = Outcome(end["type"]) if end is not None else Outcome.INFO
    ops = (end["ops"] if end is not None else []) or begin["ops"]
    return Txn(
        id=begin["txn"],
        client=begin["client"],
        outcome=outcome,
        ops=tuple(op_from_json(op) for op in ops),
        began_ns=begin["time_ns"],
        ended_ns=end["time_ns"] if end is not None and outcome is not Outcome.INFO else None,
        error=end.get("error", "") if end is not None else "its end was not recorded",
    )
