"""The directories of a PostgreSQL server: what is checked before a start, its sockets."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.dirs import HAND_OVER_NAME, make_private, short_dir
from aurora_ray.engine.process import processes_in
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall

_LONGEST: Final = f"{HAND_OVER_NAME}/.s.PGSQL.65535"


def check_data_dir(data_dir: Path, account: EngineAccount, install: EngineInstall) -> None:
    """Raises EngineError with what is wrong, before the server says it in its own words."""
    try:
        facts = data_dir.stat()
        version = (data_dir / "PG_VERSION").read_bytes().strip(b"\0\n ").decode("ascii", "replace")
        control = (data_dir / "global/pg_control").stat()
    except FileNotFoundError as error:
        raise EngineError(f"{data_dir} is not a PostgreSQL data directory: {error.filename} is missing") from error
    except OSError as error:
        raise EngineError(f"{data_dir} cannot be read: {error}") from error
    if not stat.S_ISDIR(facts.st_mode) or control.st_size == 0:
        raise EngineError(f"{data_dir} is not a PostgreSQL data directory: its control file is empty")
    if facts.st_uid != account.uid:
        raise EngineError(f"{data_dir} belongs to uid {facts.st_uid}, but the engine runs as {account.name}: chown it")
    if facts.st_mode & 0o027:
        raise EngineError(f"{data_dir} has mode {stat.S_IMODE(facts.st_mode):04o}: chmod it to 0700")
    if version and version != str(install.major):  # empty: a page of the mount that has not come yet
        raise EngineError(f"{data_dir} holds data of PostgreSQL {version[:16]!r}, not of {install.major}")


def clear_lock(data_dir: Path) -> None:
    """Removes a stale postmaster.pid. Raises EngineError if a server, or what is left of one, works there.

    The server checks this too, but takes any living process with the number in the file for its predecessor.
    """
    running = processes_in(data_dir, "postgres")
    if running:
        raise EngineError(f"PostgreSQL already works on {data_dir}: processes {running}; stop them first")
    (data_dir / "postmaster.pid").unlink(missing_ok=True)


def socket_dir(run_dir: Path) -> Path:
    """See short_dir."""
    return short_dir(run_dir, "socket", _LONGEST)


def feed_dir(run_dir: Path) -> Path:
    """Where a standby finds what feeds it; as `socket_dir`."""
    return short_dir(run_dir, "feed", _LONGEST)


def make_sockets(path: Path, run_dir: Path, account: EngineAccount) -> None:
    """Makes the directories of sockets, without what an earlier run left. Raises ConfigurationError."""
    make_private(path, run_dir, account)
    hand_over = path / HAND_OVER_NAME
    hand_over.mkdir(mode=0o700, exist_ok=True)
    account.own(hand_over, 0o700)
    for leftover in (*path.glob(".s.PGSQL.*"), *hand_over.glob(".s.PGSQL.*")):
        leftover.unlink()
