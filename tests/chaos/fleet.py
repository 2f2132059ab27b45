"""`python -m tests.chaos.fleet --rounds 10 --seed S`: fault rounds against a fleet as `aurora up --readers 1` starts
it, on Ray.

Clients work through the cluster endpoint and try again; nobody but the fleet itself repairs anything. What they saw is
written down as a history of each round, and some serial order that agrees with the clock must explain it; what earlier
rounds left must stay. Others watch through the reader endpoint: they must see snapshots of that history, and nothing
that it does not come to. After each fault writes must go on by themselves.

Progress goes to stderr, a JSON summary to stdout; the exit code is 1 if something that must hold did not. The faults of
a round and what clients do come from the seed and the round's number alone, so `--seed S --first-round N --rounds 1`
repeats round N (not its exact timing, which is the machine's); the history of a round that failed is kept.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg

from tests.chaos import mysql_session
from tests.chaos.checks import check_tables
from tests.chaos.clients import ChurnClient, Tables
from tests.chaos.fleet_faults import FleetArena, instances_of
from tests.chaos.fleet_rota import FLEET_FAULTS, fault_of_round
from tests.chaos.history_round import HistoryRound, Memory, Verdict
from tests.chaos.mysql_session import MysqlSession
from tests.chaos.workload import SCHEMA, SESSION_OPTIONS, UPKEEP
from tests.cli.fleet import CliFleet
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until_blocking

POSTGRES, MYSQL = "postgres", "mysql"
PROGRESS_TIMEOUT_S = 90.0
HEALTHY_TIMEOUT_S = 120.0
PATIENCE_S = 20.0
UNKNOWN_ROUNDS_MIN = 20


@dataclass(frozen=True, slots=True)
class FleetRound:
    """One round that passed. `outage_s` in it is the longest time without an acknowledged write."""

    number: int
    fault: str
    verdict: Verdict
    seconds: float


@dataclass(slots=True)
class FleetSummary:
    """All rounds; `failure` is empty if all passed."""

    seed: int
    rounds: list[FleetRound] = field(default_factory=list)
    failure: str = ""
    failed_round: int | None = None

    @property
    def unknown(self) -> tuple[int, int]:
        """Of the transactions whose outcome nobody told: how many turned out to have happened, and how many not."""
        unknown = [each.verdict.unknown for each in self.rounds]
        return sum(each.happened for each in unknown), sum(each.absent for each in unknown)

    def one_sided(self) -> str:
        """A complaint if a long run has seen one outcome of unknown transactions only; else it is empty."""
        if len(self.rounds) < UNKNOWN_ROUNDS_MIN or all(self.unknown):
            return ""
        happened, absent = self.unknown
        return (
            f"of the unknown transactions {happened} happened and {absent} did not: both must occur in so many rounds"
        )

    def to_dict(self) -> dict[str, object]:
        """Totals first, then the rounds."""
        outages = sorted(each.verdict.outage_s for each in self.rounds)
        return {
            "seed": self.seed,
            "rounds": len(self.rounds),
            "failure": self.failure,
            "transactions": sum(each.verdict.ok for each in self.rounds),
            "unknown_happened": self.unknown[0],
            "unknown_did_not_happen": self.unknown[1],
            "outage_s_median": round(statistics.median(outages), 2) if outages else None,
            "outage_s_max": outages[-1] if outages else None,
            "each": [asdict(each) for each in self.rounds],
        }


class FleetChaos:
    """A fleet that goes through rounds."""

    def __init__(self, directory: Path, seed: int, *, pause: Callable[[float], None], engine: str = POSTGRES) -> None:
        self.fleet = CliFleet(directory / "fleet")
        self._engine = engine
        self.seed = seed
        self._directory = directory
        self._pause = pause
        self._dsn = self._reader_dsn = ""
        self._memory = Memory()
        self._tables = Tables()

    def prepare(self) -> None:
        """`aurora up`, and the schema."""
        endpoints = self.fleet.up("--engine", self._engine, "--readers", "1")["endpoints"]
        self._dsn, self._reader_dsn = endpoints["cluster"]["dsn"], endpoints["reader"]["dsn"]
        if self._engine == MYSQL:
            mysql_session.prepare(self._dsn)
            return
        with self._connect() as session:
            session.execute(SCHEMA.encode())

    def run_round(self, number: int, fault: str | None) -> FleetRound:
        """One round. Raises AssertionError when something that must hold does not."""
        started_s = time.monotonic()
        fault = fault or fault_of_round(self.seed, number)
        status = self._settled()
        path = self._directory / f"history-{number}.jsonl"
        history = HistoryRound(
            self._connect,
            path,
            seed=self.seed,
            number=number,
            fault=fault,
            memory=self._memory,
            watch=self._connect_to_reader,
        )
        self._until_works(history.prepare)
        choose = random.Random(f"fleet {self.seed}:{number}")
        self._tables.may_be_taken_back = False
        processes = instances_of(status)
        arena = FleetArena(self.fleet, status, choose, self._pause, history, processes, self._tables)
        churn = ChurnClient("churn", self._connect, f"{self.seed}:{number} churn", self._tables, UPKEEP)
        history.start()
        if self._engine == POSTGRES:
            churn.start()
        try:
            arena.writes_go_on("before the fault", PROGRESS_TIMEOUT_S)
            self._pause(choose.uniform(0.1, 1.0))
            history.recorder.note("fault", name=fault)
            FLEET_FAULTS[fault](arena)
            history.recorder.note("fault is over", name=fault)
            arena.writes_go_on(f"after {fault}", PROGRESS_TIMEOUT_S)
            churn.ask_to_stop()
            history.stop(PATIENCE_S)
            if self._engine == POSTGRES:
                churn.join(PATIENCE_S)
            verdict = history.judge()
        finally:
            churn.ask_to_stop()
            history.close()
        self._until_works(self._check_tables)
        path.unlink()
        return FleetRound(number, fault, verdict, round(time.monotonic() - started_s, 1))

    def _check_tables(self, session: psycopg.Connection) -> None:
        if self._engine == MYSQL:
            mysql_session.check_tables_are_whole(self._dsn)
        else:
            check_tables(session, self._tables)

    def finish(self) -> int:
        """What all rounds left is there; how many lists, accounts and registers that are."""
        with self._connect() as session:
            return self._memory.check(session, everything=True)

    def _settled(self) -> dict[str, Any]:
        """The status once everything is well again, by itself: no node lacks anything that any other has had."""
        goal = 0

        def settled(status: dict[str, Any]) -> bool:
            nonlocal goal
            nodes = status["storage_nodes"]
            goal = goal or max(node["scl"] for node in nodes)
            whole = all(node["state"] == "healthy" and node["scl"] >= goal for node in nodes)
            serve = all(instance["state"] == "available" for instance in status["instances"])
            return bool(status["state"] == "available" and whole and serve)

        return self.fleet.until(settled, "the fleet is healthy and all copies are whole", HEALTHY_TIMEOUT_S)

    def _until_works(self, work: Callable[[psycopg.Connection], object]) -> None:
        """In a session of its own, again if that is lost: the fleet may still be at work."""

        def works() -> bool:
            with suppress(psycopg.OperationalError), self._connect() as session:
                work(session)
                return True
            return False

        poll_until_blocking(works, PROGRESS_TIMEOUT_S, interval_s=0.2, what="a session that lasts")

    def _connect(self) -> psycopg.Connection:
        if self._engine == MYSQL:
            return cast("psycopg.Connection", MysqlSession(self._dsn))
        return psycopg.connect(self._dsn, connect_timeout=5, autocommit=True, options=SESSION_OPTIONS)

    def _connect_to_reader(self) -> psycopg.Connection:
        if self._engine == MYSQL:
            return cast("psycopg.Connection", MysqlSession(self._reader_dsn, reads=True))
        options = "-c default_transaction_isolation=repeatable\\ read"
        return psycopg.connect(self._reader_dsn, connect_timeout=5, autocommit=True, options=options)

    def close(self) -> None:
        """`aurora down --destroy`."""
        self.fleet.destroy()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fleet", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=len(FLEET_FAULTS))
    parser.add_argument("--first-round", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", choices=(POSTGRES, MYSQL), default=POSTGRES, help="of the cluster")
    parser.add_argument("--minutes", type=float, help="no new round after this long (default: 25 s a round)")
    parser.add_argument("--fault", choices=sorted(FLEET_FAULTS), help="this one every time")
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
    pause = time.sleep  # not synchronisation: load runs meanwhile
    chaos = FleetChaos(directory, seed, pause=pause, engine=arguments.engine)
    try:
        _run(chaos, summary, arguments)
    finally:
        if summary.failure:
            _tell(f"FAILED in {summary.failure}")
            _tell(f"again: python -m tests.chaos.fleet --seed {seed} {_again(summary, arguments)}")
            with suppress(OSError):  # it may not have come that far
                shutil.copytree(chaos.fleet.data_dir / "logs", directory / "logs")
            _tell(f"the history and the logs: {directory}")
        chaos.close()
        if not summary.failure:
            remove_tree(directory)
    sys.stdout.write(json.dumps(summary.to_dict(), indent=1) + "\n")
    return 1 if summary.failure else 0


def _again(summary: FleetSummary, arguments: argparse.Namespace) -> str:
    """Options that repeat the round that failed; all rounds, if it was none by itself."""
    if summary.failed_round is None:
        return f"--first-round {arguments.first_round} --rounds {arguments.rounds}"
    fault = f" --fault {arguments.fault}" if arguments.fault else ""
    return f"--first-round {summary.failed_round} --rounds 1 --engine {arguments.engine}{fault}"


def _run(chaos: FleetChaos, summary: FleetSummary, arguments: argparse.Namespace) -> None:
    """Rounds until one fails or the time is up; fills in the summary."""
    deadline_s = time.monotonic() + 60 * (arguments.minutes or arguments.rounds * 25 / 60)
    number = arguments.first_round
    try:
        chaos.prepare()
        for number in range(arguments.first_round, arguments.first_round + arguments.rounds):
            result = chaos.run_round(number, arguments.fault)
            summary.rounds.append(result)
            verdict, unknown = result.verdict, result.verdict.unknown
            _tell(
                f"round {number:4d}  {result.fault:30s} {verdict.ok:6d} ok {verdict.failed:5d} failed  unknown: "
                f"{unknown.happened} happened, {unknown.absent} did not, {unknown.open} open  "
                f"outage {verdict.outage_s:5.2f} s  {verdict.snapshots} snapshots  ({result.seconds} s)"
            )
            if time.monotonic() > deadline_s:
                _tell(f"the time is up after {len(summary.rounds)} of {arguments.rounds} rounds")
                break
        _tell(f"{chaos.finish()} lists, accounts and registers of all rounds are as they were left")
        _tell(f"unknown outcomes: {summary.unknown[0]} happened, {summary.unknown[1]} did not")
        summary.failure = "" if arguments.fault else summary.one_sided()
    except Exception as error:  # reported with the seed
        summary.failed_round = number
        summary.failure = f"round {number}: {type(error).__name__}: {error}"


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
