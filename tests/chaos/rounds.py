"""Rounds: load, a fault under it, an end, a new beginning, and the question whether everything is still true.

A round's choices come from the seed and the round's number alone, so `--seed S --first-round N` repeats round N's
schedule (not its exact timing, which is the machine's).
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from tests.chaos.agreement import check_agreement
from tests.chaos.checks import check_indexes, check_tables, check_transfers
from tests.chaos.clients import SCHEMA, Load, Tables
from tests.chaos.faults import FAULTS, Arena, choose_fault
from tests.chaos.ledger import Ledger, Outcome
from tests.support.stack import Stack

# Small layers and a short memory, so that coalescing, collecting and copying segments all happen within a few rounds.
NODE_OPTIONS = {
    "layer-bytes": 2 << 20,
    "idle-layer-bytes": 64 << 10,
    "idle-s": 0.5,
    "retention-s": 8,
    "retention-bytes": 8 << 20,
    "lease-s-max": 1,
}
AGREEMENT_TIMEOUT_S = 60.0
SETTLED_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round that passed."""

    number: int
    fault: str
    ending: str
    acked: int
    unknown: int
    open_s: float
    converge_s: float
    pages_compared: int
    seconds: float


@dataclass(slots=True)
class Summary:
    """All rounds; `failure` is empty if all passed."""

    seed: int
    version: str
    rounds: list[RoundResult] = field(default_factory=list)
    failure: str = ""
    failed_round: int | None = None
    seconds: float = 0.0

    def to_json(self) -> str:
        """Totals first, then the rounds."""
        totals = {
            "seed": self.seed,
            "postgres": self.version,
            "rounds": len(self.rounds),
            "failure": self.failure,
            "failed_round": self.failed_round,
            "acked": sum(result.acked for result in self.rounds),
            "unknown": sum(result.unknown for result in self.rounds),
            "pages_compared": sum(result.pages_compared for result in self.rounds),
            "open_s_max": max((result.open_s for result in self.rounds), default=0),
            "converge_s_max": max((result.converge_s for result in self.rounds), default=0),
            "faults": dict(Counter(result.fault for result in self.rounds)),
            "seconds": round(self.seconds, 1),
        }
        return json.dumps(totals | {"each": [asdict(result) for result in self.rounds]}, indent=1)


class Chaos:
    """A stack that goes through rounds. `pause` lets time pass under load."""

    def __init__(self, stack: Stack, seed: int, *, clients: int, pause: Callable[[float], None]) -> None:
        self.stack = stack
        self.seed = seed
        self._clients = clients
        self._pause = pause
        self._ledger = Ledger(stack.directory / "ledger", accounts=100)
        self._tables = Tables()

    def prepare(self) -> None:
        """Starts the stack and makes the schema."""
        self.stack.start()
        self.stack.writer.open()
        with self.stack.connect() as session:
            session.execute(SCHEMA.encode())

    def run_round(self, number: int, fault: str | None = None) -> RoundResult:
        """One round. Raises AssertionError when something that must hold does not."""
        started_s = time.monotonic()
        choose = random.Random(f"{self.seed}:{number}")
        fault = fault or choose_fault(choose)
        load = Load(self._connect, f"{self.seed}:{number}", self._ledger, self._tables, self._clients)
        arena = Arena(self.stack, load, choose, self._pause)
        before = self._ledger.acked_count
        load.start()
        try:
            arena.progress("before the fault")
            self._pause(choose.uniform(0.1, 1.0))
            FAULTS[fault][0](arena)
            self._pause(choose.uniform(0, 0.4))
            ending = choose.choice(("kill the writer", "kill the writer", "power cut", "close", "as it is"))
            if not self.stack.writer.alive:
                ending = "as it is"
            elif ending == "close":
                self.stack.revive_nodes()
                self.stack.writer.close()
            elif ending != "as it is":
                self.stack.power_cut() if ending == "power cut" else self.stack.writer.kill()
        finally:
            # With nobody to answer, clients see their connections end; a writer that lives on answers in time.
            load.stop(SETTLED_PATIENCE_S)
        unknown = len(self._ledger.new(Outcome.UNKNOWN))
        open_s = self._reopen(ending)
        agreement = asyncio.run(
            check_agreement(self.stack.spec, self.stack.addresses, choose, timeout_s=AGREEMENT_TIMEOUT_S)
        )
        with self.stack.connect() as session:
            check_transfers(session, self._ledger)
            check_tables(session, self._tables)
            check_indexes(session)
        return RoundResult(
            number=number,
            fault=fault,
            ending=ending,
            acked=self._ledger.acked_count - before,
            unknown=unknown,
            open_s=round(open_s, 3),
            converge_s=agreement.seconds_to_converge,
            pages_compared=agreement.pages,
            seconds=round(time.monotonic() - started_s, 2),
        )

    def _reopen(self, ending: str) -> float:
        """Everything back up; a writer that the round left alive stays as it is. Seconds that opening took."""
        self.stack.revive_nodes()
        writer = self.stack.writer
        if writer.alive and ending == "as it is" and writer.accepts(self.stack):
            return 0.0
        if writer.alive:
            writer.kill()
        writer.wait_engine_gone()
        started_s = time.monotonic()
        writer.open()
        return time.monotonic() - started_s

    def _connect(self) -> psycopg.Connection:
        return self.stack.connect(timeout_s=2)

    def close(self) -> None:
        """Ends everything."""
        self._ledger.close()
        self.stack.close()


def run(
    chaos: Chaos,
    summary: Summary,
    rounds: range,
    *,
    deadline_s: float,
    tell: Callable[[str], None],
    fault: str | None = None,
) -> None:
    """Runs rounds until one fails or the time is up; fills in the summary."""
    started_s = time.monotonic()
    number = rounds.start
    try:
        chaos.prepare()
        for number in rounds:
            result = chaos.run_round(number, fault)
            summary.rounds.append(result)
            tell(
                f"round {number:4d}  {result.fault:27s} {result.ending:16s} {result.acked:6d} acked "
                f"{result.unknown:3d} unknown {result.seconds:5.1f} s "
                f"(open {result.open_s:.2f}, agree {result.converge_s:.2f})"
            )
            if time.monotonic() > deadline_s:
                tell(f"the time is up after {len(summary.rounds)} of {len(rounds)} rounds")
                break
    except Exception as error:  # reported with the seed
        summary.failure = f"{type(error).__name__}: {error}"
        summary.failed_round = number
    finally:
        summary.seconds = time.monotonic() - started_s


def keep_evidence(directory: Path) -> str:
    """Where to look after a failure."""
    return f"logs, the ledger and all data are kept in {directory}"
