"""How long commands take that open a volume, and how fast a cold one answers; all as a user sees it.

A new cluster: `aurora create` returns when statements are accepted at its endpoint. An existing one: `aurora failover`
ends the engine in order, seals the volume, mounts it elsewhere and starts the engine. Both are timed whole, with the
command's own start; how long a command takes that only asks something stands beside them.

Mounting fetches names and sizes, not pages, so it should take as long for a large volume as for a small one. Right
after a mount the tables are not there: the first row and a whole scan come from the storage nodes. The first row is
timed on a session that is open; how long opening it takes, which reads catalogs, is a figure of its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.fleet import UP_TIMEOUT_S
from benchmarks.results import Figure
from benchmarks.systems.aurora import Aurora
from benchmarks.systems.base import System, query
from benchmarks.systems.stock import Stock

_DATABASES: Final = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
_TABLE: Final = "SELECT pg_relation_size('pgbench_accounts')"
_SCAN: Final = "SELECT count(*), sum(abalance) FROM pgbench_accounts"
_POINT: Final = "SELECT abalance FROM pgbench_accounts WHERE aid = {aid}"
_SMALL: Final = "small"
COLD_SCAN: Final = "scan, cold"  # the last figure of a round
Report = Callable[[Figure], None]


def measure_openings(system: Aurora, number: int, report: Report) -> None:
    """A new small cluster, and the large one anew; leaves the system as it was, with nothing cached."""
    fleet = system.fleet
    with _timed() as asking_s:
        fleet.run("list")
    with _timed() as elapsed_s:
        fleet.run("create", _SMALL, timeout_s=UP_TIMEOUT_S)
    report(_command("create a cluster", number, elapsed_s(), asking_s()))
    with _timed() as elapsed_s:
        fleet.run("failover", _SMALL, timeout_s=UP_TIMEOUT_S)
    report(_command("failover that is asked for, small cluster", number, elapsed_s(), asking_s()))
    fleet.run("delete", _SMALL, "--yes")
    fleet.run("graveyard", "purge", _SMALL, "--yes")
    with _timed() as elapsed_s:
        system.move()
    nbytes = float(query(system.dsn, _DATABASES)[0][0])
    report(
        _command(
            "failover that is asked for, large cluster", number, elapsed_s(), 2 * asking_s(), database_bytes=nbytes
        )
    )
    _cold_reads(system, number, report)


def measure_stock_cold(system: Stock, number: int, report: Report) -> None:
    """The same reads, after a restart with the files thrown out of the operating system's cache."""
    system.server.stop()
    os.sync()
    for path in system.server.data_dir.rglob("*"):
        if path.is_file():
            _forget(path)
    system.server.start()
    _cold_reads(system, number, report)


def _command(name: str, number: int, value: float, asking_s: float, **size: float) -> Figure:
    facts: dict[str, Any] = {**size, "stages_s": {"of that, commands that only ask take": round(asking_s, 2)}}
    return Figure(
        name=f"{name} (command)", system=Aurora.name, round=number, value=round(value, 2), unit="s", facts=facts
    )


def _cold_reads(system: System, number: int, report: Report) -> None:
    with _timed() as elapsed_s:
        session = psycopg.connect(system.dsn, autocommit=True)
    with session:
        value = round(1000 * elapsed_s(), 1)
        report(Figure(name="first connection, cold", system=system.name, round=number, value=value, unit="ms"))
        with _timed() as elapsed_s:
            session.execute(_POINT.format(aid=7919 * (number + 1)).encode()).fetchall()
        value = round(1000 * elapsed_s(), 1)
        report(Figure(name="first row, cold", system=system.name, round=number, value=value, unit="ms"))
    nbytes = int(query(system.dsn, _TABLE)[0][0])
    with _timed() as elapsed_s:
        query(system.dsn, _SCAN)
    value = round(nbytes / elapsed_s() / 1e6, 1)
    size = {"table_bytes": nbytes}
    report(Figure(name=COLD_SCAN, system=system.name, round=number, value=value, unit="MB/s", facts=size))


@contextlib.contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """How long the block took."""
    started_s, ended_s = time.perf_counter(), 0.0
    yield lambda: ended_s - started_s
    ended_s = time.perf_counter()


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
