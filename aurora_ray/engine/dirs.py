"""Directories of one run of an engine: for its sockets, which must have short names, and its log."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from aurora_ray.engine.account import EngineAccount

# In the directory of sockets: where a server gets clients' sockets from the endpoint.
HAND_OVER_NAME: Final = "hand-over"
SOCKET_NAME_BYTES_MAX: Final = 107  # sockaddr_un


def short_dir(run_dir: Path, name: str, longest: str) -> Path:
    """Below `run_dir`, or in the temporary directory if the name of the socket `longest` in it would be too long."""
    inside = run_dir / name
    if len(os.fsencode(inside / longest)) <= SOCKET_NAME_BYTES_MAX:
        return inside
    digest = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"aurora-ray-{digest}"  # others may write there: see make_private


def make_private(path: Path, run_dir: Path, account: EngineAccount) -> None:
    """Makes one of these directories, for nobody but the account. Raises ConfigurationError."""
    if path.parent == run_dir:
        path.mkdir(mode=0o700, exist_ok=True)
        account.own(path, 0o700)
    else:
        claim_shared_dir(path, account)


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
