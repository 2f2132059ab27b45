"""In which order the files of a run are handed to its workers, so that none of them ends long after the others.

A file is one worker's: what its tests share (a fleet, an engine, six storage nodes) is made once. The longest begin
first, by what they took in an earlier run (`tests/durations.json`, written by `make test ARGS=--record-durations`), and
never more fleets side by side than the processors carry: so many processes make each other late.

Order is all that this changes. A wrong duration costs time, never a result, so nobody has to keep the file exact.
"""

import heapq
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

RECORDED = Path(__file__).parents[1] / "durations.json"
RECORDED_FROM_S = 1.0  # what is shorter packs well wherever it stands
FLEETS_MAX = 2


class File(NamedTuple):
    """A file of tests: how long it takes, in seconds, and whether its tests start fleets."""

    path: str
    seconds: float
    fleet: bool


def guessed_s(markers: Iterable[str], tests: int) -> float:
    """For a file that nobody has measured yet, by what its tests start: better too early than last."""
    found = set(markers)
    return 60.0 if "ray" in found else 20.0 if found & {"postgres", "mariadb"} else 0.1 * tests


def recorded_s() -> dict[str, float]:
    """The durations of an earlier run: path below the project -> seconds."""
    if not RECORDED.exists():
        return {}
    durations: dict[str, float] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return durations


def record(durations: Mapping[str, float]) -> None:
    """Keep those of this run, for files that took long enough to matter; what did not run stays as it was."""
    root = Path(__file__).parents[2]
    known = {**{path: took_s for path, took_s in recorded_s().items() if (root / path).is_file()}, **durations}
    kept = {path: round(took_s, 1) for path, took_s in sorted(known.items()) if took_s >= RECORDED_FROM_S}
    RECORDED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def packed(files: Iterable[File], workers: int, fleets_max: int = FLEETS_MAX) -> list[File]:
    """`files` in the order in which `workers` shall take them, one after another, each when it is free."""
    waiting = sorted(files, key=lambda file: (-file.seconds, file.path))
    fleets_max = min(fleets_max, workers)
    running: list[tuple[float, bool]] = []  # when it ends, whether it is a fleet
    now_s, order = 0.0, []
    while waiting:
        while len(running) >= workers:
            now_s, _ = heapq.heappop(running)
        carried = sum(fleet for _, fleet in running) < fleets_max
        # With fleets only left, one more goes beside the others: an idle worker helps nobody.
        place = next((place for place, file in enumerate(waiting) if carried or not file.fleet), 0)
        file = waiting.pop(place)
        order.append(file)
        heapq.heappush(running, (now_s + file.seconds, file.fleet))
    return order


def length_s(order: Iterable[File], workers: int) -> float:
    """How long `workers` take for `order`, if each file takes what is said of it."""
    free = [0.0] * workers
    for file in order:
        heapq.heapreplace(free, free[0] + file.seconds)
    return max(free)
