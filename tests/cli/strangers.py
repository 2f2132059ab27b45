"""What another user of the machine finds at a fleet: the doors, the files, what can be read where."""

import os
from collections.abc import Iterator
from pathlib import Path

from aurora_ray.ray.local import processes, socket_dir
from tests.support.sockets import Door, doors_of, tree_of

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
# Answers that anybody may have, and why.
ALLOWED = {
    ("ray::ControlActor", "http"): "the metrics: names and sizes, nothing of any database, on loopback; for scrapers",
    ("monitor.py", "http"): "the metrics of Ray's autoscaler, on loopback",
    ("", "/grpc.health.v1.Health/Check"): "Ray says whether it serves; storage nodes refuse it like all else",
}


def pids_of(data_dir: Path) -> set[int]:
    return tree_of(processes(data_dir)) - {os.getpid()}


def doors(data_dir: Path) -> list[Door]:
    return doors_of(pids_of(data_dir))


def is_allowed(owner: str, way: str) -> bool:
    return any(part in owner and way == allowed for part, allowed in ALLOWED)


def files_of(data_dir: Path) -> Iterator[Path]:
    """Whatever lies below the data directory and in Ray's."""
    for top in (data_dir, socket_dir(data_dir).parent):
        yield top
        for directory, names, files in os.walk(top):
            yield from (Path(directory, name) for name in (*names, *files))


def is_program(path: Path, data_dir: Path) -> bool:
    """What the engine's account must be able to load: programs, with no data in them."""
    return (data_dir / "engines") in path.parents or path.name.endswith((".interposer.so", ".so"))
