"""Where MariaDB is installed on this machine: a distribution's packages, or any bin directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.version import is_of, version_of
from aurora_ray.errors import ConfigurationError

KIND: Final = "mysql"  # as users call it: what clients speak
SERVER: Final = "mariadbd"
INSTALL_DB: Final = "mariadb-install-db"
CLIENTS: Final = ("mariadb", "mysql")
PACKAGES: Final = "mariadb-server-core mariadb-client-core"
SERIES_MIN: Final = (10, 11)  # the redo log's format, and innodb_log_file_buffering, which the settings rely on
SYSTEM_DIRS: Final = tuple(map(Path, ("/usr/sbin", "/usr/libexec", "/usr/local/mysql/bin", "/usr/local/mariadb/bin")))
_VERSION = re.compile(r"Ver (\d+\.\d+\.\d+)-MariaDB")


def find_install(version: str | None = None, bin_dir: Path | None = None) -> EngineInstall:
    """The installation to use: the one in `bin_dir`, or the first of the system's whose version begins with `version`.

    Raises ConfigurationError if there is none, saying what to install.
    """
    if bin_dir is not None:
        install = install_at(bin_dir)
        if not is_of(install.version, version):
            raise ConfigurationError(f"{bin_dir} holds MariaDB {install.version}, not {version}")
        return install
    found = [install_at(directory) for directory in SYSTEM_DIRS if (directory / SERVER).is_file()]
    for install in found:
        if is_of(install.version, version):
            return install
    have = ", ".join(install.version for install in found) or "none"
    raise ConfigurationError(
        f"no MariaDB {version or ''} on this machine (found: {have}): "
        f"`sudo apt-get install --no-install-recommends {PACKAGES}` gets the distribution's, --bin-dir names another"
    )


def install_at(bin_dir: Path) -> EngineInstall:
    """The installation whose server lies in `bin_dir`. Raises ConfigurationError if missing, broken or too old."""
    server = bin_dir / SERVER
    if not server.is_file():
        raise ConfigurationError(f"{bin_dir} is not MariaDB's: it has no {SERVER}")
    install = EngineInstall(KIND, version_of("MariaDB", server, _VERSION, "--no-defaults"), bin_dir, series_numbers=2)
    if tuple(map(int, install.series.split("."))) < SERIES_MIN:
        oldest = ".".join(map(str, SERIES_MIN))
        raise ConfigurationError(f"MariaDB {install.version} in {bin_dir} is too old: {oldest} is the oldest")
    program(install, INSTALL_DB)
    return install


def program(install: EngineInstall, *names: str) -> Path:
    """The first of these programs that the installation has: beside the server, or where packages put such. Raises
    ConfigurationError."""
    bin_dir = install.bin_dir
    for name in names:
        for directory in (bin_dir, bin_dir.parent / "bin", bin_dir.parent / "scripts"):
            if os.access(directory / name, os.X_OK):
                return directory / name
    raise ConfigurationError(f"MariaDB {install.version} in {bin_dir} has no {names[0]}: install {PACKAGES}")


def basedir(install: EngineInstall) -> Path:
    """What the server and its scripts call so: the directory above."""
    return install.bin_dir.parent


def stage(install: EngineInstall, account: EngineAccount) -> EngineInstall:
    """The installation, which the account can run where it is. Raises ConfigurationError if it cannot."""
    server = install.bin_dir / SERVER
    if not account.can("-x", server):
        raise ConfigurationError(
            f"the account {account.name} cannot run {server}, and that installation only works where it is: "
            "make it readable to others"
        )
    return install
