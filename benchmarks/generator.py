"""One load generator, wherever it runs: in a thread here, or as a Ray task on any machine of a cluster.

Ray gets this module and those that it uses by value, so the other machines need aurora-ray (for Ray and for pgbench),
but not the benchmarks.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from aurora_ray.engine.postgres.install import find_install
from benchmarks.load import run_load
from benchmarks.loads import Load, LoadResult
from benchmarks.sysbench import password_from_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server. `conninfo` carries no password and no file name: both mean nothing on another machine, or too much."""

    conninfo: str
    password: str

    @classmethod
    def parse(cls, dsn: str) -> Target:
        """From a DSN or connection string, with the password from where it says. Raises psycopg.ProgrammingError."""
        parameters: dict[str, Any] = conninfo_to_dict(dsn)
        password = str(parameters.pop("password", "") or password_from_file(parameters))
        parameters.pop("passfile", None)
        return cls(conninfo=make_conninfo(**parameters), password=password)

    @property
    def place(self) -> str:
        """host:port, for people."""
        parameters = conninfo_to_dict(self.conninfo)
        return f"{parameters.get('host', 'localhost')}:{parameters.get('port', 5432)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What one generator did, and on which machine."""

    number: int
    place: str
    machine: str
    result: LoadResult


def generate(number: int, target: Target, load: Load, arrive: Callable[[], None]) -> Generated:
    """Gets ready, waits in `arrive` until all have, runs the load. Raises LoadError, ConfigurationError."""
    bin_dir = str(find_install(None).bin_dir)
    with tempfile.TemporaryDirectory(prefix="load-") as directory:  # mode 0700
        passfile = Path(directory, "passfile")
        passfile.touch(mode=0o600)
        escaped = target.password.replace("\\", "\\\\").replace(":", "\\:")
        passfile.write_text(f"*:*:*:*:{escaped}\n")
        arrive()
        result = run_load(make_conninfo(target.conninfo, passfile=str(passfile)), load, bin_dir)
    return Generated(number=number, place=target.place, machine=platform.node(), result=result)
