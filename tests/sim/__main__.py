"""`python -m tests.sim --seeds N --start S`: runs seeds, on every core; prints what failed and how to run it again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.sim.oracle import InvariantError
from tests.sim.simulation import run_seed

BATCH = 25


def run_seeds(start: int, stop: int) -> tuple[int, int, int, list[str]]:
    """Runs seeds start … stop-1: events, flushes made durable, epochs opened, and the stories of those that failed."""
    events, flushes, epochs = 0, 0, 0
    failures = []
    for seed in range(start, stop):
        try:
            simulation = run_seed(seed)
        except InvariantError as error:
            failures.append(str(error))
        else:
            events += simulation.world.steps
            flushes += simulation.oracle.flush_count
            epochs += len(simulation.oracle.epochs)
    return events, flushes, epochs, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    stop = options.start + options.seeds
    begun_s = time.monotonic()
    totals, failures = [0, 0, 0], []
    with ProcessPoolExecutor(min(options.jobs, -(-options.seeds // BATCH))) as pool:
        starts = range(options.start, stop, BATCH)
        for *counts, failed in pool.map(run_seeds, starts, [min(start + BATCH, stop) for start in starts]):
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            failures += failed
            for story in failed:
                seed = story.split()[1]
                sys.stdout.write(f"{story}\nAgain: python -m tests.sim --start {seed} --seeds 1\n\n")
                sys.stdout.flush()
    events, flushes, epochs = totals
    sys.stdout.write(
        f"{options.seeds} seeds from {options.start}: {len(failures)} failed; {events} events,"
        f" {flushes} durable flushes, {epochs} epochs in {time.monotonic() - begun_s:.1f} s\n"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
