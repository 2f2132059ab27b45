"""`python -m tests.chaos.fleet --rounds 10 --seed S`: kill rounds against a fleet as `aurora up` starts it, on Ray.

Clients work through the cluster endpoint and try again; nobody but the fleet itself repairs anything. After each fault
commits must go on by themselves, and everything that was acknowledged must be there. Progress goes to stderr, a JSON
summary to stdout; the exit code is 1 if something that must hold did not.
"""

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from tests.chaos.checks import check_indexes, check_tables, check_transfers
from tests.chaos.clients import ACCOUNTS, SCHEMA, Load, Tables
from tests.chaos.fleet_faults import FLEET_FAULTS, FleetArena, choose_fleet_fault
from tests.chaos.ledger import Ledger, Outcome
from tests.cli.fleet import CliFleet
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until_blocking

PROGRESS_COMMITS = 20
PROGRESS_TIMEOUT_S = 90.0
HEALTHY_TIMEOUT_S = 90.0
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class FleetRound:
    """One round that passed. `outage_s` is the longest time without an acknowledgement."""

    number: int
    fault: str
    acked: int
    unknown: int
    outage_s: float
    seconds: float


@dataclass(slots=True)
class FleetSummary:
    """All rounds; `failure` is empty if all passed."""

    seed: int
    rounds: list[FleetRound] = field(default_factory=list)
    failure: str = ""

    def to_dict(self) -> dict[str, object]:
        """Totals first, then the rounds."""
        outages = sorted(each.outage_s for each in self.rounds)
        return {
            "seed": self.seed,
            "rounds": len(self.rounds),
            "failure": self.failure,
            "acked": sum(each.acked for each in self.rounds),
            "unknown": sum(each.unknown for each in self.rounds),
            "outage_s_median": round(statistics.median(outages), 2) if outages else None,
            "outage_s_max": outages[-1] if outages else None,
            "each": [asdict(each) for each in self.rounds],
        }


class FleetChaos:
    """A fleet that goes through rounds."""

    def __init__(self, directory: Path, seed: int, *, clients: int, pause: Callable[[float], None]) -> None:
        self.fleet = CliFleet(directory / "fleet")
        self.seed = seed
        self._clients = clients
        self._pause = pause
        self._dsn = ""
        self._ledger = Ledger(directory / "ledger", ACCOUNTS)
        self._tables = Tables()

    def prepare(self) -> None:
        """`aurora up`, and the schema."""
        self._dsn = self.fleet.up()["endpoints"]["cluster"]["dsn"]
        with self._connect() as session:
            session.execute(SCHEMA.encode())

    def run_round(self, number: int, fault: str | None) -> FleetRound:
        """One round. Raises AssertionError when something that must hold does not."""
        started_s = time.monotonic()
        choose = random.Random(f"fleet {self.seed}:{number}")
        fault = fault or choose_fleet_fault(choose)
        arena = FleetArena(self.fleet, self._settled(), choose, self._pause)
        load = Load(self._connect, f"{self.seed}:{number}", self._ledger, self._tables, self._clients)
        before = self._ledger.acked_count
        load.start()
        try:
            self._progress("before the fault")
            self._pause(choose.uniform(0.1, 1.0))
            FLEET_FAULTS[fault][0](arena)
            self._progress(f"after {fault}")
        finally:
            load.stop(PATIENCE_S)
        times = self._ledger.take_times()
        outage_s = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        unknown = len(self._ledger.new(Outcome.UNKNOWN))
        poll_until_blocking(self._checks_pass, PROGRESS_TIMEOUT_S, interval_s=0.2, what="a session to check with")
        return FleetRound(
            number=number,
            fault=fault,
            acked=self._ledger.acked_count - before,
            unknown=unknown,
            outage_s=round(outage_s, 2),
            seconds=round(time.monotonic() - started_s, 1),
        )

    def _settled(self) -> dict[str, object]:
        """The status once everything is well again, by itself."""
        return self.fleet.until(
            lambda status: (
                status["state"] == "available"
                and [node["state"] for node in status["storage_nodes"]] == ["healthy"] * 6
            ),
            "the fleet is healthy",
            HEALTHY_TIMEOUT_S,
        )

    def _progress(self, what: str) -> None:
        goal = self._ledger.acked_count + PROGRESS_COMMITS
        poll_until_blocking(
            lambda: self._ledger.acked_count >= goal,
            PROGRESS_TIMEOUT_S,
            what=f"commits go on {what}\n{self.fleet.trail()}",
        )

    def _checks_pass(self) -> bool:
        """False if the session was lost (the fleet may still be at work); what is wrong raises LostError."""
        try:
            with self._connect() as session, session.transaction():
                check_transfers(session, self._ledger)
                check_tables(session, self._tables)
                check_indexes(session)
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._dsn, connect_timeout=5, autocommit=True)

    def close(self) -> None:
        """`aurora down --destroy`."""
        self._ledger.close()
        self.fleet.destroy()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fleet", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first-round", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, help="no new round after this long (default: one a round)")
    parser.add_argument("--fault", choices=sorted(FLEET_FAULTS), help="this one every time")
    parser.add_argument("--clients", type=int, default=4)
    return parser.parse_args()


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is ended below
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    _tell(f"seed {seed}")
    directory = Path(tempfile.mkdtemp(prefix="aurora-fleet-"))
    directory.chmod(0o711)
    summary = FleetSummary(seed)
    # not synchronisation: load runs meanwhile
    chaos = FleetChaos(directory, seed, clients=arguments.clients, pause=time.sleep)
    deadline_s = time.monotonic() + 60 * (arguments.minutes or arguments.rounds + 2)
    number = arguments.first_round
    try:
        chaos.prepare()
        for number in range(arguments.first_round, arguments.first_round + arguments.rounds):
            result = chaos.run_round(number, arguments.fault)
            summary.rounds.append(result)
            _tell(
                f"round {number:4d}  {result.fault:24s} {result.acked:6d} acked {result.unknown:3d} unknown  "
                f"outage {result.outage_s:6.2f} s  ({result.seconds} s)"
            )
            if time.monotonic() > deadline_s:
                _tell(f"the time is up after {len(summary.rounds)} of {arguments.rounds} rounds")
                break
    except Exception as error:  # reported with the seed
        summary.failure = f"round {number}: {type(error).__name__}: {error}"
    finally:
        if summary.failure:
            _tell(f"FAILED in {summary.failure}")
            _tell(f"again: python -m tests.chaos.fleet --seed {seed} --first-round {number} --rounds 1")
            _tell(f"logs: {directory}")
        chaos.close()
        if not summary.failure:
            remove_tree(directory)
    sys.stdout.write(json.dumps(summary.to_dict(), indent=1) + "\n")
    return 1 if summary.failure else 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
