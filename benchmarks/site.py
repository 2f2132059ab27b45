"""The ground for a run: a work directory, the engine's binary where the account can reach it, a prepared image."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aurora_ray.config import load_settings
from aurora_ray.engine.account import find_account
from aurora_ray.engine.postgres.image import prepare_image
from aurora_ray.engine.postgres.install import find_install, stage
from aurora_ray.errors import ConfigurationError, UsageError
from benchmarks.data import DataSpec
from benchmarks.systems.base import Site

DISK = Path("/var/tmp")  # noqa: S108 - a fresh private directory is made in it; unlike the other, it is on a disk
# What a system stores in the course of a run, in multiples of the data: copies, WAL, what is not yet compacted.
_COPIES: Final = {"template": 1.0, "aurora": 3.0, "standbys": 12.0, "stock": 2.2, "nosync": 1.5}
_LEAST_BYTES: Final = 1 << 30


@contextmanager
def prepared(
    *,
    memory_bytes: int = 0,
    data: DataSpec | None = None,
    scale: int = 0,
    version: str | None = None,
    work_dir: Path | None = None,
    keep: bool = False,
    keep_in: Path | None = None,
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Site]:
    """Everything below one new directory in `work_dir`, which goes at the end unless `keep`; or below `keep_in`.

    Engines have the size that an instance of the product has by default, or `memory_bytes`. The data is `data`, or
    pgbench's alone at this `scale`. Below `keep_in` it is kept in a form that the next run can go on with; with `keep`,
    files are merely left behind, to be looked at.
    """
    parent = work_dir or (DISK if DISK.is_dir() else Path(tempfile.gettempdir()))
    if keep_in is not None:
        keep_in.mkdir(parents=True, exist_ok=True)
    directory = keep_in.resolve() if keep_in else Path(tempfile.mkdtemp(prefix="aurora-bench-", dir=parent))
    directory.chmod(0o755)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(lock, directory)
        account = find_account(load_settings().engine_user)
        install = stage(find_install(version), account, directory / "engines")
        image = prepare_image(install, account, directory / "images")
        yield Site(
            work_dir=directory,
            install=install,
            account=account,
            image=image,
            data=data or DataSpec(scale=scale),
            keep=keep_in is not None,
            parameters=parameters or {},
            memory_bytes=memory_bytes,
            version=version or "",
        )
    finally:
        os.close(lock)
        if keep_in is None and not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another run is at work in {directory}: wait for it, or use another directory") from None


def require_room(directory: Path, data: DataSpec, systems: Sequence[str]) -> None:
    """Raises ConfigurationError if the disk has no room for all that these systems will store.

    Where an earlier run has kept its data, most of it is there already, and nothing is checked.
    """
    if (directory / "template" / data.name).exists():
        return
    wanted = int(sum(_COPIES[name] for name in ("template", *systems)) * data.nbytes) + _LEAST_BYTES
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise ConfigurationError(
            f"{directory} has {free >> 30} GiB free, and these systems need about {wanted >> 30} GiB at this scale: "
            "choose another place with --work-dir, fewer --systems or a smaller --scale"
        )
