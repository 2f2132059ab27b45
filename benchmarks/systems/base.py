"""What every system under measurement offers, and the ground that they all stand on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import psycopg

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.postgres.image import PreparedImage
from aurora_ray.engine.sizes import InstanceSize, size_on
from benchmarks.data import DataSpec, fill_pgbench
from benchmarks.procfs import Component
from benchmarks.segments import Connection, connections
from benchmarks.workloads import Checkpoint

_READY: Final = "ready.json"
_QUIET_POLL_S: Final = 0.02
_GONE_TIMEOUT_S: Final = 3.0
# Each user's index: (table, its columns, whether it is the primary key).
_INDEXES: Final = """
    SELECT indrelid::regclass::text,
           (SELECT string_agg(pg_get_indexdef(indexrelid, n, true), ', ' ORDER BY n)
            FROM generate_series(1, indnkeyatts::int) n),
           indisprimary
    FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
    WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace,
                                                 'information_schema'::regnamespace)
    ORDER BY indisprimary DESC, 1"""
_BY_INDEX: Final = "SET enable_seqscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One binary, one account, one disk.

    With `keep`, what the systems have stored stays below `work_dir`, and the next run finds it there. `parameters` are
    settings for engines that come on top of a system's own, by the system's name. `memory_bytes` is the size of every
    engine; 0: the product's own rule, for all alike. `version`: of PostgreSQL, if one was asked for.
    """

    work_dir: Path
    install: EngineInstall
    account: EngineAccount
    image: PreparedImage
    data: DataSpec
    keep: bool = False
    memory_bytes: int = 0
    version: str = ""
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def size(self) -> InstanceSize:
        """Of the engine of every system."""
        return size_on(this_machine(), self.memory_bytes)

    @property
    def scale(self) -> int:
        """pgbench's."""
        return self.data.scale

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
    writes_images: ClassVar[bool] = False  # of whole pages, into the WAL, at a page's first change after a checkpoint

    def __init__(self, site: Site) -> None:
        self.site = site
        self.from_kept_data = False
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
        """Starts it on a copy of the template: the same data, page by page, for all; or on what was kept."""

    def open_directory(self) -> Path:
        """The system's directory: empty, or with what an earlier run has kept of the same data and versions."""
        directory = self.site.directory(self.name)
        try:
            self.from_kept_data = json.loads((directory / _READY).read_text()) == self.identity()
        except (OSError, ValueError):
            self.from_kept_data = False
        if not self.from_kept_data:
            shutil.rmtree(directory)
            self.site.directory(self.name)
        if not self.site.keep:
            self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def data_is_there(self) -> None:
        """To be called when the data is complete: from now on it can be kept."""
        (self.site.directory(self.name) / _READY).write_text(json.dumps(self.identity()))

    def identity(self) -> dict[str, str]:
        """What kept data must agree with."""
        return {"data": self.site.data.name, "postgres": self.site.install.version}

    @property
    def parameters(self) -> dict[str, str]:
        """What was asked for this system's engine beyond its own settings."""
        return dict(self.site.parameters.get(self.name, {}))

    @property
    @abstractmethod
    def dsn(self) -> str:
        """Where clients connect."""

    @property
    def direct_dsn(self) -> str:
        """The same, past whatever stands before the engine."""
        return self.dsn

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

    def begin(self, checkpoint: Checkpoint) -> None:  # noqa: B027  (a system may have nothing to prepare)
        """Prepares for some workloads whose last checkpoint is to be long ago, or that each begin with one."""

    def before_load(self, checkpoint: Checkpoint) -> None:
        """Right before a measured load, after its warm-up."""
        if self.writes_images and checkpoint == Checkpoint.JUST_BEFORE:
            execute(self.dsn, "CHECKPOINT")

    def warm_up(self) -> None:
        """Brings all tables and indexes into the buffers, tables by way of their first index."""
        # With "offset 0" the order must be kept, and an index alone gives it; for xmin it must look into the table.
        scan = "SELECT count(x) FROM (SELECT {what} AS x FROM {table} ORDER BY {columns} OFFSET 0) ordered"
        statements = [
            scan.format(what="xmin" if is_primary else columns.partition(",")[0], table=table, columns=columns)
            for table, columns, is_primary in query(self.dsn, _INDEXES)
        ]
        execute(self.dsn, "; ".join([_BY_INDEX, *statements, "CHECKPOINT"]))


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
    a row is locked in each page of the table. These images are compressed, whatever the server's setting, because their
    WAL stays on the disk for as long as no checkpoint comes.
    """
    execute(
        dsn,
        "SET wal_compression = 'pglz'; UPDATE pgbench_accounts SET abalance = abalance WHERE aid % 300 = 0; "
        "SELECT count(*) FROM (SELECT FROM pgbench_accounts WHERE ctid::text LIKE '%,1)' FOR NO KEY UPDATE) t",
    )


def engine_counters(dsn: str, major: int) -> dict[str, float]:
    """The engine's own WAL (bytes, images of pages, flushes) and its calls that write to files, WAL and pages."""
    wal_io = "(SELECT sum({}) FROM pg_stat_io WHERE object = 'wal')"  # there since PostgreSQL 18, which has no other
    syncs, writes = (wal_io.format("fsyncs"), wal_io.format("writes")) if major >= 18 else ("wal_sync", "wal_write")
    pages = "(SELECT sum(writes) FROM pg_stat_io WHERE object = 'relation')"
    names = ("wal_records", "wal_full_images", "wal_bytes", "wal_syncs", "wal_writes", "page_writes")
    values = f"wal_records, wal_fpi, wal_bytes, {syncs}, {writes}, {pages}"
    row = query(dsn, f"SELECT {values} FROM pg_stat_wal")[0]  # noqa: S608
    return {name: float(value or 0) for name, value in zip(names, row, strict=True)}


def segments_out(chosen: Callable[[Connection], bool]) -> dict[str, float]:
    """TCP segments with data that the chosen connections have sent; nothing where the kernel does not say."""
    try:
        return {"network_writes": float(sum(each.data_segments_out for each in connections() if chosen(each)))}
    except OSError:
        return {}


def segments_between(senders: set[int], receivers: set[int]) -> dict[str, float]:
    """As `segments_out`, of the connections from sockets with the one inodes to those with the others."""
    try:
        # Whatever the ports: each connection of this machine is in the kernel's table once for either end.
        ends = {(each.remote, each.local) for each in connections() if each.inode in receivers}
    except OSError:
        return {}
    return segments_out(lambda each: each.inode in senders and (each.local, each.remote) in ends)


def fill(dsn: str, bin_dir: str, scale: int) -> None:
    """pgbench's tables. Raises RuntimeError."""
    fill_pgbench(dsn, bin_dir, scale)


def disk_bytes(directories: list[Path]) -> int:
    """What the files below these directories occupy."""
    total = 0
    for directory in directories:
        for parent, _, names in os.walk(directory):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
