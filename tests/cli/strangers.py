"""What another user of the machine finds at a fleet: the doors, the files, what can be read where."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from aurora_ray.ray.local import processes, socket_dir
from tests.support.sockets import Door, doors_of, tree_of

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


def walked_in(found: Iterable[Door], told: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str, str]]:
    """Of what the doors told a stranger, what he should not have heard: (door, owner, way of asking, answer)."""
    owners = {f"{door.kind} {door.place}": door.owner for door in found}
    return [
        (place, owners[place], way, answer)
        for place, answers in told.items()
        for way, answer in answers.items()
        if answer.startswith("ok") and not is_allowed(owners[place], way) and not is_ours_alone(place)
    ]


def is_allowed(owner: str, way: str) -> bool:
    return any(part in owner and way == allowed for part, allowed in ALLOWED)


def is_ours_alone(door: str) -> bool:
    """Whether a Unix socket lies where nobody else gets through. Only root can send a stranger who would find that out:
    an ordinary user's is himself."""
    kind, _, place = door.partition(" ")
    return os.geteuid() != 0 and kind == "unix" and any(not (up.stat().st_mode & 0o077) for up in Path(place).parents)


def files_of(data_dir: Path) -> Iterator[Path]:
    """Whatever lies below the data directory and in Ray's."""
    for top in (data_dir, socket_dir(data_dir).parent):
        yield top
        for directory, names, files in os.walk(top):
            yield from (Path(directory, name) for name in (*names, *files))


def is_program(path: Path, data_dir: Path) -> bool:
    """What the engine's account must be able to load: programs, with no data in them."""
    return (data_dir / "engines") in path.parents or path.name.endswith((".interposer.so", ".so"))
