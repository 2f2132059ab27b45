"""Rounds: load, a fault under it, an end, a new beginning, and the question whether everything is still true.

A round's choices come from the seed and the round's number alone, so `--seed S --first-round N` repeats round N's
schedule (not its exact timing, which is the machine's).
"""

import asyncio
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
from tests.chaos.engine_tools import check_as_of, check_with_amcheck, newest_lsn
from tests.chaos.faults import FAULTS, Arena, fault_of_round
from tests.chaos.ledger import Ledger, Outcome
from tests.support.stack import Stack

# Small layers and a short memory, so that coalescing, collecting and copying segments all happen within a few rounds.
NODE_OPTIONS = {
    "layer-bytes": 2 << 20,
    "idle-layer-bytes": 64 << 10,
    "idle-s": 0.5,
    "retention-s": 8,
    "retention-bytes": 8 << 20,
    "lease-s-max": 5,
}
AGREEMENT_TIMEOUT_S = 60.0
SETTLED_PATIENCE_S = 10.0
AS_OF_EVERY = 4


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
    amcheck_count: int = 0
    as_of_count: int = 0

    def to_dict(self) -> dict[str, object]:
        """Totals first, then the rounds."""
        totals = {
            "seed": self.seed,
            "postgres": self.version,
            "rounds": len(self.rounds),
            "failure": self.failure,
            "failed_round": self.failed_round,
            "amchecks": self.amcheck_count,
            "opened_as_of_some_lsn": self.as_of_count,
            "acked": sum(result.acked for result in self.rounds),
            "unknown": sum(result.unknown for result in self.rounds),
            "pages_compared": sum(result.pages_compared for result in self.rounds),
            "open_s_max": max((result.open_s for result in self.rounds), default=0),
            "converge_s_max": max((result.converge_s for result in self.rounds), default=0),
            "faults": dict(Counter(result.fault for result in self.rounds)),
            "seconds": round(self.seconds, 1),
        }
        return totals | {"each": [asdict(result) for result in self.rounds]}


class Chaos:
    """A stack that goes through rounds. `pause` lets time pass under load."""

    def __init__(self, stack: Stack, seed: int, *, clients: int, pause: Callable[[float], None]) -> None:
        self.stack = stack
        self.seed = seed
        self._clients = clients
        self._pause = pause
        self.ledger = Ledger(stack.directory / "ledger", accounts=100)
        self.tables = Tables()
        self.amcheck_count = self.as_of_count = 0
        self._prepared_lsn = 0

    def prepare(self) -> None:
        """Starts the stack and makes the schema."""
        self.stack.start()
        self.stack.writer.open()
        with self.stack.connect() as session:
            session.execute(SCHEMA.encode())
        self._prepared_lsn = newest_lsn(self.stack)

    def run_round(self, number: int, fault: str | None = None) -> RoundResult:
        """One round. Raises AssertionError when something that must hold does not."""
        started_s = time.monotonic()
        choose = random.Random(f"{self.seed}:{number}")
        fault = fault or fault_of_round(self.seed, number)
        load = Load(self._connect, f"{self.seed}:{number}", self.ledger, self.tables, self._clients)
        arena = Arena(self.stack, load, choose, self._pause)
        before = self.ledger.acked_count
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
        unknown = len(self.ledger.new(Outcome.UNKNOWN))
        self.stack.revive_nodes()
        if ending == "close" and number % AS_OF_EVERY == 0:
            check_as_of(self.stack, choose, newest=True)
        open_s = self._reopen(ending)
        agreement = asyncio.run(
            check_agreement(self.stack.spec, self.stack.addresses, choose, timeout_s=AGREEMENT_TIMEOUT_S)
        )
        with self.stack.connect() as session:
            check_transfers(session, self.ledger)
            check_tables(session, self.tables)
            check_indexes(session)
        self.amcheck_count += check_with_amcheck(self.stack)
        if number % AS_OF_EVERY == 0:
            check_as_of(self.stack, choose, newest=False, oldest_lsn=self._prepared_lsn)
            self.as_of_count += 1
        return RoundResult(
            number=number,
            fault=fault,
            ending=ending,
            acked=self.ledger.acked_count - before,
            unknown=unknown,
            open_s=round(open_s, 3),
            converge_s=agreement.seconds_to_converge,
            pages_compared=agreement.pages,
            seconds=round(time.monotonic() - started_s, 2),
        )

    def _reopen(self, ending: str) -> float:
        """Opens the writer; one that the round left alive stays as it is. Seconds that opening took."""
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

    def finish(self) -> None:
        """An orderly end, then a look at the checksums of all that is stored."""
        self.stack.writer.close()
        check_as_of(self.stack, random.Random(self.seed), newest=True)

    def close(self) -> None:
        """Ends everything."""
        self.ledger.close()
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
        chaos.finish()
    except Exception as error:  # reported with the seed
        summary.failure = f"{type(error).__name__}: {error}"
        summary.failed_round = number
    finally:
        summary.seconds = time.monotonic() - started_s
        summary.amcheck_count, summary.as_of_count = chaos.amcheck_count, chaos.as_of_count


def keep_evidence(directory: Path) -> str:
    """Where to look after a failure."""
    return f"logs, the ledger and all data are kept in {directory}"
