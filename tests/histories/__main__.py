"""`python -m tests.histories check FILE…`: judges recorded histories. The exit code is 1 if one has anomalies."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.histories.check import check, settle
from tests.histories.model import MalformedHistoryError
from tests.histories.rewinds import load

SHOWN_MAX = 20


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check", help="look for what no serial order explains")
    verb.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return max(_judge(path) for path in parser.parse_args().files)


def _judge(path: Path) -> int:
    begun_s = time.monotonic()
    try:
        history = load(path)
        found = check(history)
    except (OSError, MalformedHistoryError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    counts = Counter(txn.outcome.value for txn in history.txns)
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    unknown = settle(history)
    sys.stdout.write(
        f"{path}: {len(history.txns)} transactions ({outcomes}; of "
        f"the unknown {unknown.happened} happened, {unknown.absent} did not), {len(found)} anomalies, "
        f"{time.monotonic() - begun_s:.1f} s\n"
    )
    for anomaly in found[:SHOWN_MAX]:
        sys.stdout.write(f"  {anomaly}\n")
    if len(found) > SHOWN_MAX:
        sys.stdout.write(f"  … and {len(found) - SHOWN_MAX} more\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
