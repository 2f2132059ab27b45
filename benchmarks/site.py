"""The ground for a run: a work directory, the engine's binary where the account can reach it, a prepared image."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora_ray.config import load_settings
from aurora_ray.engine.account import find_account
from aurora_ray.engine.install import find_install, stage
from aurora_ray.engine.postgres_image import prepare_image
from benchmarks.systems.base import Site, Sizes

DISK = Path("/var/tmp")  # noqa: S108 - a fresh private directory is made in it; unlike the other, it is on a disk


@contextmanager
def prepared(*, scale: int, sizes: Sizes, version: str | None, work_dir: Path | None, keep: bool) -> Iterator[Site]:
    """Everything below one new directory in `work_dir`, which goes at the end unless `keep`."""
    parent = work_dir or (DISK if DISK.is_dir() else Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix="aurora-bench-", dir=parent))
    directory.chmod(0o755)
    try:
        account = find_account(load_settings().engine_user)
        install = stage(find_install(version), account, directory / "engines")
        image = prepare_image(install, account, directory / "images")
        yield Site(work_dir=directory, install=install, account=account, image=image, sizes=sizes, scale=scale)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
