"""Pass files follow the declared state: each cluster has one, and nobody else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aurora_ray.control.report.status import passfile
from aurora_ray.engine.registry import adapter, adapters
from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aurora_ray.control.model.state import Fleet
    from aurora_ray.engine.base import Adapter


def follow(data_dir: Path, fleet: Fleet, say: Callable[[str], None]) -> None:
    """Makes what is missing or damaged, and removes what a `create` or `delete` that died left.

    The passwords of clusters that can be restored are in the state, which is to be in force. A file that tells another
    password stays: the user has changed it. Says what cannot be done.
    """
    wanted = {passfile(data_dir, cluster.name, cluster.engine): cluster for cluster in fleet.clusters}
    suffixes = {known.passfile_suffix for known in adapters()}
    try:
        for path in (data_dir / "passfiles").glob("*"):
            if path.suffix in suffixes and path not in wanted:
                path.unlink(missing_ok=True)
        for path, cluster in wanted.items():
            if cluster.superuser_password and not _is_whole(path, adapter(cluster.engine)):
                adapter(cluster.engine).write_passfile(path, cluster.superuser_password)
            if path.exists():
                path.chmod(0o600)  # clients pass over one that others may read
    except OSError as error:
        say(f"the pass files do not follow what is declared: {error}")


def _is_whole(path: Path, engine: Adapter) -> bool:
    if not path.exists():
        return False
    try:
        engine.ensure_passfile(path)
    except ConfigurationError:
        return False
    return True


@contextmanager
def following(data_dir: Path, declared: Callable[[], Fleet], say: Callable[[str], None]) -> Iterator[None]:
    """Around the making of a pass file and what declares its cluster: another call may come between, or it may fail."""
    try:
        yield
    except Exception:
        follow(data_dir, declared(), say)
        raise
    follow(data_dir, declared(), say)
