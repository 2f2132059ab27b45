"""How long it takes to open a volume, and how fast a cold one answers.

A new cluster: its volume is created, gets the prepared data directory, is mounted, the engine starts, a query is
answered. An existing one: sealed, mounted, started, answered. The seconds of every stage are in the figure's facts;
`process` is what Python needs to start the writer's process and import everything, and no part of the figure.

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

from benchmarks.results import Figure
from benchmarks.systems.aurora import Aurora
from benchmarks.systems.base import System, query
from benchmarks.systems.stock import Stock

_DATABASES: Final = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
_TABLE: Final = "SELECT pg_relation_size('pgbench_accounts')"
_SCAN: Final = "SELECT count(*), sum(abalance) FROM pgbench_accounts"
_POINT: Final = "SELECT abalance FROM pgbench_accounts WHERE aid = {aid}"
COLD_SCAN: Final = "scan, cold"  # the last figure of a round
Report = Callable[[Figure], None]


def measure_openings(system: Aurora, number: int, report: Report) -> None:
    """New and existing, small and large; leaves the system as it was."""
    measured = system.volume
    try:
        facts = system.reopen(system.new_volume(), create=True)
        report(_opening("open, new cluster", system, number, facts))
        facts = system.reopen()
        report(_opening("open, existing small cluster", system, number, facts))
        report(_mount("mount, small", system, number, facts))
    finally:
        facts = system.reopen(measured)
    report(_opening("open, existing large cluster", system, number, facts))
    report(_mount("mount, large", system, number, facts))
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


def _opening(name: str, system: System, number: int, facts: dict[str, Any]) -> Figure:
    with _timed() as elapsed_s:
        query(system.dsn, "SELECT 1")
    stages = {**facts["stages_s"], "first_query": round(elapsed_s(), 4)}
    value = round(sum(stages.values()), 4)
    stages["process"] = facts["process_s"]
    return Figure(name=name, system=system.name, round=number, value=value, unit="s", facts={"stages_s": stages})


def _mount(name: str, system: System, number: int, facts: dict[str, Any]) -> Figure:
    value = round(1000 * float(facts["stages_s"]["mount"]), 1)
    size = {"database_bytes": int(query(system.dsn, _DATABASES)[0][0])}
    return Figure(name=name, system=system.name, round=number, value=value, unit="ms", facts=size)


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
