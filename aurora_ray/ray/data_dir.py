"""The data directory of a fleet from outside: held by one command at a time, and removed only if nobody serves it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ADDRESS_FILE
from aurora_ray.errors import UsageError
from aurora_ray.ray import local as local_ray
from aurora_ray.rpc import secret_file

LOCK_NAME: Final = "lock"
JOINED_NAME: Final = "ray-address"
REGIONS_NAME: Final = "regions"  # other regions' fleets, or links to them: see ray/regions.py
UNSERVED_TIMEOUT_S: Final = 5.0
OURS: Final = ("nodes", "instances", "images", "engines", "logs", "telemetry", "passfiles")


def our_files() -> tuple[str, ...]:
    """The names of all that a fleet writes beside `OURS`. Whoever knows them is imported here: few commands ask."""
    from aurora_ray.control.faults import record as faults
    from aurora_ray.control.observe import outages
    from aurora_ray.control.report import audit, events, usage

    return (
        bootstrap.FILE_NAME,
        secret_file.FILE_NAME,
        local_ray.FILE_NAME,
        local_ray.TOKEN_NAME,
        JOINED_NAME,
        LOCK_NAME,
        ADDRESS_FILE,
        faults.FILE_NAME,
        outages.FILE_NAME,
        events.FILE_NAME,
        audit.FILE_NAME,
        usage.FILE_NAME,
    )


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """One command at a time starts or stops a fleet. Raises UsageError if another does."""
    descriptor = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another `aurora up` or `aurora down` is at work on {data_dir}; wait for it") from None
        yield
    finally:
        os.close(descriptor)


def end_leftovers(data_dir: Path) -> None:
    """Engines end with their processes; this makes sure of it on this machine, and that nothing of theirs is left."""
    import asyncio

    from aurora_ray.compute import leftovers
    from aurora_ray.compute.config import InstanceDirs
    from aurora_ray.engine.registry import adapters

    async def end_all() -> None:
        for root in sorted((data_dir / "instances").glob("*")):
            dirs = InstanceDirs(root)
            for engine in adapters():
                await leftovers.end_leftovers(dirs.pid_file, dirs.mount, engine.programs)
                engine.forget_run(dirs.run)

    asyncio.run(end_all())


def require_unserved(data_dir: Path) -> None:
    """Raises UsageError if a process still serves a storage node's data here, whoever started it: it belongs to a fleet
    whose control plane runs elsewhere, or does not answer. One that is about to end is waited for."""
    deadline_s = time.monotonic() + UNSERVED_TIMEOUT_S
    for lock in sorted((data_dir / "nodes").glob("*/lock")):
        while _is_held(lock):
            if time.monotonic() > deadline_s:
                raise UsageError(
                    f"a running process serves {lock.parent}, so no engine is ended and nothing is removed: stop that "
                    "fleet with `aurora down` on the machine where its control plane runs, or end its Ray cluster"
                )
            time.sleep(local_ray.POLL_S)


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(data_dir: Path) -> None:
    """Removes what is ours, and the directory if nothing else is in it."""
    for name in OURS:
        shutil.rmtree(data_dir / name, ignore_errors=True)
    for name in our_files():
        (data_dir / name).unlink(missing_ok=True)
    for kept in (*data_dir.glob(f"{bootstrap.FILE_NAME}.damaged-*"), *data_dir.glob(".*.new")):
        kept.unlink()
    for link in (data_dir / REGIONS_NAME).glob("*"):
        if link.is_symlink() and not bootstrap.exists(link):  # that one is no more
            link.unlink()
    with contextlib.suppress(OSError):  # other regions, or somebody else's files, are still there
        (data_dir / REGIONS_NAME).rmdir()
    with contextlib.suppress(OSError):
        data_dir.rmdir()
