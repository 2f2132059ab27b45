"""The data directory on one machine: what lies where, who may enter, and whether the engine's account can get there.

Whatever a process of ours makes is closed to others unless it is opened by name (`PRIVATE_UMASK`).

<data dir>/            0711 when engines run as another account (they must pass through), else 0700
  fleet.toml           0600  the bootstrap file: region, storage nodes (see control/model/bootstrap.py)
  secret               0600  the fleet's secret: who knows it may do everything (see rpc/admission.py)
  ray.json             0600  the local Ray cluster, if this machine started one
  nodes/<node id>/     0700  a storage node: RocksDB segments
  instances/<id>/      0711  an instance: mount (0700, the engine's), run (sockets, logs)
  images/, engines/    0711  prepared data directories; copies of engine programs that the account can reach
  passfiles/, logs/, telemetry/
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceDirs
    from aurora_ray.engine.account import EngineAccount

SPLITTING = " :,\\\"'"
PASSABLE = 0o711
PRIVATE = 0o700
PRIVATE_UMASK = 0o077


def prepare_data_dir(path: Path, *, passable: bool) -> None:
    """Makes the data directory, or checks that it is ours. Raises ConfigurationError."""
    _check_name(path)
    try:
        path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        if path.stat().st_uid != os.geteuid():
            raise ConfigurationError(f"The data directory {path} belongs to another user; choose one with --data-dir.")
        path.chmod(PASSABLE if passable else PRIVATE)
        for name in ("nodes", "logs", "telemetry", "passfiles"):
            make_dir(path / name, PRIVATE)
        for name in ("instances", "images", "engines"):
            make_dir(path / name, PASSABLE if passable else PRIVATE)
    except OSError as error:
        raise ConfigurationError(f"The data directory {path} cannot be used: {error.strerror}.") from error


def _check_name(path: Path) -> None:
    """The loader splits LD_PRELOAD at blanks and colons, PostgreSQL its directories of sockets at commas; both stand
    below the data directory. Raises ConfigurationError."""
    wrong = sorted({letter for letter in str(path) if letter in SPLITTING or not letter.isprintable()})
    if wrong:
        names = ", ".join("a blank" if letter == " " else repr(letter) for letter in wrong)
        raise ConfigurationError(
            f"The data directory {str(path)!r} has {names} in its name, where programs would split it: choose another "
            "one with --data-dir."
        )


def make_dir(path: Path, mode: int) -> Path:
    """A directory with exactly this mode, whatever the umask."""
    path.mkdir(mode=mode, exist_ok=True)
    path.chmod(mode)
    return path


def prepare_instance_dirs(dirs: InstanceDirs, account: EngineAccount) -> None:
    """Makes the directories of an instance and checks that the engine's account can get to the mount."""
    shared = PASSABLE if account.switch else PRIVATE
    try:
        dirs.root.mkdir(mode=shared, parents=True, exist_ok=True)
        dirs.root.chmod(shared)
        for path in (dirs.mount, dirs.run):
            path.mkdir(mode=PRIVATE, exist_ok=True)
            account.own(path, PRIVATE)
    except OSError as error:
        raise ConfigurationError(f"The instance directory {dirs.root} cannot be used: {error.strerror}.") from error
    account.require_reachable(dirs.mount)
