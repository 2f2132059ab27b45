"""`python -m tests.chaos --rounds 50 --seed S`: kill rounds against real processes.

Progress goes to stderr, a JSON summary to stdout; the exit code is 1 if something that must hold did not.

Without `--version`, two thirds of the rounds run on the newest PostgreSQL of ours and one third on one that comes with
amcheck, if there is one on this machine.
"""

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from aurora_ray.engine.account import find_account
from aurora_ray.errors import ConfigurationError
from tests.chaos.engine_tools import amcheck_version
from tests.chaos.faults import FAULTS
from tests.chaos.rounds import NODE_OPTIONS, Chaos, Summary, keep_evidence, run
from tests.support.leaks import remove_tree
from tests.support.ports import PortAllocator
from tests.support.stack import Stack
from tests.support.stack_writer import ACCOUNT

NEWEST = "18"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--first-round", type=int, default=1, help="with --seed: begin with this round's schedule")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, help="no new round after this long (default: 20 s a round)")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="this one every time")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--version", help="of PostgreSQL")
    parser.add_argument("--keep", action="store_true", help="keep the data even if all is well")
    return parser.parse_args()


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is ended below
    logging.basicConfig(level=logging.WARNING)
    try:
        find_account(ACCOUNT)
    except ConfigurationError as error:
        _tell(str(error))
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    _tell(f"seed {seed}")
    deadline_s = time.monotonic() + (60 * arguments.minutes if arguments.minutes else 20 * arguments.rounds)
    summaries: list[Summary] = []
    for version, rounds in _plan(arguments):
        _tell(f"PostgreSQL {version}, rounds {rounds.start} to {rounds.stop - 1}")
        summaries.append(_session(arguments, Summary(seed, version), rounds, deadline_s))
        if summaries[-1].failure:
            break
    sys.stdout.write(json.dumps([summary.to_dict() for summary in summaries], indent=1) + "\n")
    return 1 if any(summary.failure for summary in summaries) else 0


def _plan(arguments: argparse.Namespace) -> list[tuple[str, range]]:
    """Versions of PostgreSQL and the rounds that each gets. The numbers tell the rounds apart, whatever the version."""
    first, end = arguments.first_round, arguments.first_round + arguments.rounds
    if arguments.version:
        return [(arguments.version, range(first, end))]
    other = amcheck_version()
    if other is None:
        _tell("no PostgreSQL here comes with amcheck: tables and indexes are compared by queries only")
    if other is None or arguments.rounds < 3:
        return [(NEWEST, range(first, end))]
    middle = first + arguments.rounds * 2 // 3
    return [(NEWEST, range(first, middle)), (other, range(middle, end))]


def _session(arguments: argparse.Namespace, summary: Summary, rounds: range, deadline_s: float) -> Summary:
    """A stack of its own, through these rounds."""
    directory = Path(tempfile.mkdtemp(prefix="aurora-chaos-"))
    directory.chmod(0o755)
    stack = Stack(directory, PortAllocator(), version=summary.version, node_options=NODE_OPTIONS)
    chaos = Chaos(
        stack,
        summary.seed,
        clients=arguments.clients,
        pause=time.sleep,  # not synchronisation: load runs meanwhile
    )
    try:
        run(chaos, summary, rounds, deadline_s=deadline_s, tell=_tell, fault=arguments.fault)
    finally:
        chaos.close()
        if summary.failure or arguments.keep:
            _tell(keep_evidence(directory))
        else:
            remove_tree(directory)
    if summary.failure:
        _tell(f"FAILED in round {summary.failed_round}: {summary.failure}")
        again = f"--seed {summary.seed} --first-round {summary.failed_round} --rounds 1 --version {summary.version}"
        _tell(f"again: python -m tests.chaos {again}")
    return summary


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
