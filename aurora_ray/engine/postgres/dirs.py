"""The directories of a PostgreSQL server: what is checked before a start, its sockets, its log."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.process import processes_in
from aurora_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import EngineInstall

SOCKET_DIR_BYTES_MAX: Final = 107 - len("/.s.PGSQL.65535")  # sockaddr_un


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
    """Below `run_dir`, or, if that makes a name too long for a socket, one in the temporary directory."""
    inside = run_dir / "socket"
    if len(os.fsencode(inside)) <= SOCKET_DIR_BYTES_MAX:
        return inside
    name = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"aurora-ray-{name}"  # others may write there: see claim_shared_dir


def claim_shared_dir(path: Path, account: EngineAccount) -> None:
    """Makes a private directory where everyone may make some. Raises ConfigurationError if someone else's is there."""
    try:
        path.mkdir(mode=0o700)
        account.own(path, 0o700)
    except FileExistsError:
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != account.uid or facts.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} belongs to someone else: remove it, or use a data directory with a shorter name"
            ) from None


def rotate(log_path: Path) -> None:
    """Moves the log's content aside. The server goes on writing: it appends, so it starts at the beginning again."""
    shutil.copyfile(log_path, log_path.with_name(log_path.name + ".1"))
    os.truncate(log_path, 0)
