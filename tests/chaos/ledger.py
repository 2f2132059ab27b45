"""What clients know of their transactions: kept outside the database, so that it cannot be lost with it.

An outcome is ACKED (the commit was confirmed), UNKNOWN (it was asked for and never answered) or NEVER (it was not even
asked for, or rolled back). After a check, what was UNKNOWN has become one of the others: what the database showed once,
it must show for ever.
"""

import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """What a client knows of one transaction."""

    ACKED = "acked"
    UNKNOWN = "unknown"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transaction: a row of its own, and `amount` moved from one account to another."""

    id: int
    source: int
    target: int
    amount: int


class Ledger:
    """Transfers by outcome. Clients of several threads write to it; `settle` and reading are for quiet times.

    Settled transfers are kept as sets of ids and sums, which is all that later checks need.
    """

    def __init__(self, path: Path | None, accounts: int) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a", buffering=1) if path is not None else None
        self._next_id = 0
        self._new: dict[int, tuple[Transfer, Outcome]] = {}
        self.present: set[int] = set()
        self.absent: set[int] = set()
        self.balances = [0] * accounts
        self.acked_count = 0
        self._times: list[float] = []

    def next_id(self) -> int:
        """A transaction's id, never given twice."""
        with self._lock:
            self._next_id += 1
            return self._next_id

    def note(self, transfer: Transfer, outcome: Outcome) -> None:
        """Keeps what came of a transfer."""
        with self._lock:
            self._new[transfer.id] = (transfer, outcome)
            if outcome is Outcome.ACKED:
                self.acked_count += 1
                self._times.append(time.monotonic())
            if self._file is not None:
                line = f"{outcome} {transfer.id} {transfer.source} {transfer.target} {transfer.amount}\n"
                self._file.write(line)

    def new(self, outcome: Outcome) -> list[Transfer]:
        """Those with that outcome since the last `settle`."""
        with self._lock:
            return [transfer for transfer, known in self._new.values() if known is outcome]

    def take_times(self) -> list[float]:
        """When the commits were acknowledged (monotonic, seconds), since the last call; ascending."""
        with self._lock:
            times, self._times = self._times, []
            return times

    def settle(self, seen: set[int]) -> None:
        """Takes what the database shows of the new ones for good. Check it first."""
        with self._lock:
            for transfer, _ in self._new.values():
                if transfer.id in seen:
                    self.present.add(transfer.id)
                    self.balances[transfer.source] -= transfer.amount
                    self.balances[transfer.target] += transfer.amount
                else:
                    self.absent.add(transfer.id)
            self._new.clear()

    def copy(self) -> "Ledger":
        """Another one with the same knowledge, to try something on."""
        other = Ledger(None, len(self.balances))
        other._next_id, other._new = self._next_id, dict(self._new)
        other.present, other.absent, other.balances = set(self.present), set(self.absent), list(self.balances)
        return other

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
