"""`python -m tests.chaos --rounds 50 --seed S`: kill rounds against a real stack.

Progress goes to stderr, a JSON summary to stdout; the exit code is 1 if something that must hold did not.
"""

import argparse
import logging
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import NODE_OPTIONS, Chaos, Summary, keep_evidence, run
from tests.support.leaks import remove_tree
from tests.support.ports import PortAllocator
from tests.support.stack import Stack


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--first-round", type=int, default=1, help="with --seed: begin with this round's schedule")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=60, help="no new round after this long")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="this one every time")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--version", default="18", help="of PostgreSQL")
    parser.add_argument("--keep", action="store_true", help="keep the data even if all is well")
    return parser.parse_args()


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is ended below
    logging.basicConfig(level=logging.WARNING)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    _tell(f"seed {seed}")
    directory = Path(tempfile.mkdtemp(prefix="aurora-chaos-"))
    directory.chmod(0o755)
    summary = Summary(seed, arguments.version)
    stack = Stack(directory, PortAllocator(), version=arguments.version, node_options=NODE_OPTIONS)
    chaos = Chaos(stack, seed, clients=arguments.clients, pause=time.sleep)  # not synchronisation: load runs meanwhile
    rounds = range(arguments.first_round, arguments.first_round + arguments.rounds)
    try:
        run(
            chaos,
            summary,
            rounds,
            deadline_s=time.monotonic() + 60 * arguments.minutes,
            tell=_tell,
            fault=arguments.fault,
        )
    finally:
        chaos.close()
        if summary.failure or arguments.keep:
            _tell(keep_evidence(directory))
        else:
            remove_tree(directory)
    sys.stdout.write(summary.to_json() + "\n")
    if summary.failure:
        _tell(f"FAILED in round {summary.failed_round}: {summary.failure}")
        _tell(f"again: python -m tests.chaos --seed {seed} --first-round {summary.failed_round} --rounds 1")
    return 1 if summary.failure else 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
