"""`python -m tests.fuzz --seconds 60`: the time is shared by all decoders. A failure prints the input and the seed."""

import argparse
import logging
import random
import sys

from aurora_ray.rpc.admission import OURS, Secret
from tests.fuzz.calls import fuzz_calls
from tests.fuzz.run import FuzzError, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="decoders whose name holds this")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    OURS.set(Secret.new())
    logging.disable()
    targets = [target for target in TARGETS if not arguments.only or arguments.only in target.name]
    calls = not arguments.only or arguments.only in "calls"
    share_s = arguments.seconds / (len(targets) + 2 * calls)
    failed = 0
    for name, work in [
        *((target.name, lambda target=target: fuzz(target, share_s, seed)) for target in targets),
        *([("calls", lambda: fuzz_calls(2 * share_s, seed))] if calls else []),
    ]:
        try:
            fed, taken = work()
            sys.stdout.write(f"{name:32s} {fed:8d} inputs, {taken} taken\n")
        except FuzzError as error:
            failed += 1
            sys.stdout.write(f"{name:32s} FAILED: {error}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
