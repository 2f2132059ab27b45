"""What every system under measurement offers, and the ground that they all stand on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import psycopg

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.postgres_image import PreparedImage
from benchmarks.procfs import Component

LOAD_TIMEOUT_S: Final = 1800.0
_QUIET_POLL_S: Final = 0.02
_GONE_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Memory, the same for the engine of every system."""

    shared_buffers_bytes: int
    standby_buffers_bytes: int
    cache_bytes: int  # aurora-ray's local page files; stock has the operating system's page cache without a limit
    max_connections: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One binary, one account, one disk."""

    work_dir: Path
    install: EngineInstall
    account: EngineAccount
    image: PreparedImage
    sizes: Sizes
    scale: int

    @property
    def bin_dir(self) -> str:
        """Where the programs are, the load's as well as the servers'."""
        return str(self.install.bin_dir)

    def directory(self, *parts: str) -> Path:
        """A directory below the work directory that the engine's account can pass through; made if missing."""
        path = self.work_dir.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        for each in (path, *path.parents):
            if each == self.work_dir:
                break
            each.chmod(0o755)
        return path


class System(ABC):
    """A database to be measured. Made, entered, filled, measured, left; then nothing of it remains."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @abstractmethod
    def start(self) -> None:
        """Starts it on a copy of the template: the same data, page by page, for all."""

    @property
    @abstractmethod
    def dsn(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def components(self) -> list[Component]:
        """Its processes by what they are for."""

    @abstractmethod
    def counters(self) -> dict[str, float]:
        """What the system itself counts; totals that only grow, unless the name says otherwise."""

    @abstractmethod
    def data_dirs(self) -> list[Path]:
        """Where it keeps everything that it must keep."""

    def settings(self) -> dict[str, Any]:
        """Everything that was set, asked from the server itself."""
        rows = query(
            self.dsn,
            "SELECT name, current_setting(name) FROM pg_settings "
            "WHERE source NOT IN ('default', 'override', 'client') ORDER BY 1",
        )
        hidden = ("port", "data_directory", "hba_file", "unix_socket_directories", "primary_conninfo")
        return {name: value for name, value in rows if name not in hidden}

    def warm_up(self) -> None:
        """Brings pgbench's tables and their indexes into the buffers, by way of the index."""
        execute(
            self.dsn,
            "SET enable_seqscan = off; SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0; "
            "SELECT sum(abalance) FROM pgbench_accounts WHERE aid > 0; CHECKPOINT",
        )


def execute(dsn: str, statements: str) -> None:
    """Runs statements, each on its own."""
    with psycopg.connect(dsn, autocommit=True) as session:
        for statement in statements.split(";"):
            if statement.strip():
                session.execute(statement.encode())


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows."""
    with psycopg.connect(dsn, autocommit=True) as session:
        return session.execute(statement.encode()).fetchall()


def wait_sessions_ended(dsn: str) -> None:
    """Waits, not for long, until other clients' backends have ended and their statistics have arrived."""
    deadline_s = time.monotonic() + _GONE_TIMEOUT_S
    with psycopg.connect(dsn, autocommit=True) as session:
        while time.monotonic() < deadline_s:
            row = session.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
            if row is None or row[0] == 0:
                return
            time.sleep(_QUIET_POLL_S)


def touch_pages(dsn: str) -> None:
    """Writes the full image of nearly every page of the largest table and of its index.

    The first change of a page after a checkpoint costs such an image. A short measurement soon after a checkpoint would
    see little else, where one in the long run sees few: this spares stock PostgreSQL what it would not have to bear.
    An update that finds no room in its page puts an entry into the index: one for each leaf, of some 360 entries. Then
    a row is locked in each page of the table.
    """
    execute(
        dsn,
        "UPDATE pgbench_accounts SET abalance = abalance WHERE aid % 300 = 0; "
        "SELECT count(*) FROM (SELECT FROM pgbench_accounts WHERE ctid::text LIKE '%,1)' FOR NO KEY UPDATE) t",
    )


def wal_counters(dsn: str, major: int) -> dict[str, float]:
    """The engine's own WAL: bytes, full page images, and how often it was flushed."""
    syncs = (
        "(SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')" if major >= 18 else "wal_sync"
    )  # moved in PostgreSQL 18
    row = query(dsn, f"SELECT wal_records, wal_fpi, wal_bytes, {syncs} FROM pg_stat_wal")[0]  # noqa: S608
    return dict(zip(("wal_records", "wal_full_images", "wal_bytes", "wal_syncs"), map(float, row), strict=True))


def fill(dsn: str, bin_dir: str, scale: int) -> None:
    """pgbench's tables. Takes the client-side way, which is what everybody uses."""
    command = [f"{bin_dir}/pgbench", "-i", "-q", "-s", str(scale), dsn]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOAD_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench -i failed: {done.stderr.strip()[-800:]}")


def disk_bytes(directories: list[Path]) -> int:
    """What the files below these directories occupy."""
    total = 0
    for directory in directories:
        for parent, _, names in os.walk(directory):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
