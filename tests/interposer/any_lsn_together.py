"""Several processes with several threads change a mount in all ways; the tree at any LSN is what their models say.

    python -m tests.interposer.any_lsn_together DIRECTORY SEED COUNT [KILL_AFTER_RECORDS]

A program of its own, so that it can run under a sanitizer, with a library that was built with one: `sanitized`.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_ray.interposer import native
from tests.interposer.model import operations_of
from tests.interposer.recorder import Recorder, Replay

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable

PROCESSES, THREADS = 2, 2
POISONED = 70  # what processes end with when another one died while it held the lock


def serve(recorder: Recorder, children: list[subprocess.Popen[bytes]], kill_after: int | None) -> list[int]:
    """Serves them until all have ended; kills the first once so many records were logged. Returns their exit codes."""
    while any(child.poll() is None for child in children):
        readable, _, _ = select.select([recorder.region.bell_fd], [], [], 0.01)
        if readable:
            os.eventfd_read(recorder.region.bell_fd)
        recorder.turn()
        if kill_after is not None and len(recorder.records) >= kill_after:
            children[0].kill()
    recorder.turn()
    return [child.returncode for child in children]


def check(recorder: Recorder, seed: int, journal: Iterable[str]) -> int:
    """Compares each worker's directory with its model after each operation; how many times. Raises AssertionError."""
    ends: dict[int, list[tuple[int, int]]] = {}
    for line in journal:
        worker, number, lsn = map(int, line.split())
        ends.setdefault(lsn, []).append((worker, number))
    models = {worker: operations_of(seed, worker) for worker in range(PROCESSES * THREADS)}
    done = dict.fromkeys(models, -1)
    replay, records, checked = Replay(), iter(recorder.records), 0
    upcoming = next(records, None)
    for lsn in sorted(ends):
        while upcoming is not None and upcoming.lsn <= lsn:
            replay.apply(upcoming)
            upcoming = next(records, None)
        for worker, number in ends[lsn]:
            while done[worker] < number:
                models[worker].next()
                done[worker] += 1
            expected = models[worker].tree.snapshot()
            found = replay.snapshot(below=f"w{worker}/")
            wrong = sorted(path for path in expected | found if expected.get(path) != found.get(path))
            assert found == expected, f"{wrong} of worker {worker} after operation {number}, at LSN {lsn}"
            checked += 1
    return checked


def run(directory: Path, seed: int, count: int, kill_after: int | None, preload: str | None) -> str:
    """One run; what it did. Raises AssertionError."""
    recorder = Recorder(directory, seed=seed, evict=True, preload=preload)
    outside = directory / "outside"
    outside.mkdir()
    os.environ["AURORA_TEST_OUTSIDE"] = str(outside)
    journal = directory / "journal"
    journal.touch()
    children = []
    for process in range(PROCESSES):
        workers = [str(process * THREADS + thread) for thread in range(THREADS)]
        children.append(recorder.python("tests.interposer.workers", str(seed), str(count), str(journal), *workers))
    codes = serve(recorder, children, kill_after)
    errors = b"".join(child.communicate()[1] for child in children).decode()
    allowed = {0} if kill_after is None else {0, -9, POISONED}
    assert set(codes) <= allowed, f"exit codes {codes}: {errors}"
    checked = check(recorder, seed, journal.read_text().splitlines())
    assert checked == PROCESSES * THREADS * count or kill_after is not None
    recorder.close()
    return f"{checked} states of {len(recorder.records)} records, {recorder.evicted_pages} pages evicted, exits {codes}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--kill-after", type=int)
    parser.add_argument("--library", help="instead of the one that is built")
    parser.add_argument("--preload", help="what workers get, if not the library alone")
    given = parser.parse_args()
    if given.library:
        native.library_path = lambda: str(given.library)
    sys.stdout.write(run(given.directory, given.seed, given.count, given.kill_after, given.preload) + "\n")


if __name__ == "__main__":
    main()
