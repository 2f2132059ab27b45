"""`python -m benchmarks mysql`: MariaDB on the volume beside stock MariaDB, by sysbench.

Three systems, one after the other, each with what it has by itself: a cluster as `aurora up --engine mysql` makes it,
through its endpoint (six copies, four of them on disk before a commit is told); one stock server (one copy, no binary
log); and a stock primary with five semi-synchronous replicas (six copies, two of them on disk: MariaDB waits for one
replica, a weaker promise). The same binary, the same memory for the server that is asked, the same data and load.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from aurora_ray.engine.account import find_account
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.mariadb.connection import connect
from aurora_ray.engine.mariadb.image import prepare_image
from aurora_ray.engine.mariadb.install import KIND, find_install
from aurora_ray.engine.sizes import size_on
from aurora_ray.errors import UsageError
from benchmarks import machine
from benchmarks.fleet import UserFleet
from benchmarks.histograms import encode, percentiles
from benchmarks.loads import SYSBENCH, Load, LoadResult
from benchmarks.raw import RawFigures, Steps, end_in_order, file_of
from benchmarks.runner import console_for
from benchmarks.sysbench import MYSQL_DATABASE, PACKAGE_ADVICE, fill_sysbench, installed, run_sysbench
from benchmarks.systems.mariadb import LOGGED, PRIMARY, REPLICA, REPLICAS, StockMariadb

TESTS: Final = ("oltp_write_only", "oltp_read_write", "oltp_point_select")
CLIENTS: Final = (1, 16, 32)
AURORA: Final = "aurora-ray"
ALONE: Final = "stock"
SEMISYNC: Final = f"stock, {REPLICAS} semi-sync replicas"
SYSTEMS: Final = (AURORA, ALONE, SEMISYNC)
TABLES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MysqlTurn:
    """One measurement; `latency` is a histogram."""

    system: str
    test: str
    clients: int
    number: int
    tps: float
    failed: int
    latency: str


@dataclass(slots=True, kw_only=True)
class MysqlResult(RawFigures):
    """A run."""

    rounds: int
    seconds: float
    rows: int
    memory_bytes: int
    turns: list[MysqlTurn] = field(default_factory=list)
    suite: str = "mysql"


@contextmanager
def aurora(directory: Path, memory_bytes: int) -> Iterator[str]:
    """A cluster of a fleet of its own: the DSN of its endpoint."""
    fleet = UserFleet(directory / "fleet")
    try:
        status = fleet.up("--engine", KIND, "--memory", str(memory_bytes))
        yield str(status["endpoints"]["cluster"]["dsn"])
    finally:
        fleet.destroy()


@contextmanager
def stock(directory: Path, memory_bytes: int, replicas: int) -> Iterator[str]:
    """A server on the local disk, with so many replicas, any one of which must have a commit: its DSN."""
    install, account = find_install(), find_account("aurora-ray")
    images = directory / "images"
    images.mkdir(exist_ok=True)
    images.chmod(0o711)
    tree = prepare_image(install, account, images).tree
    size = size_on(this_machine(), memory_bytes)
    with ExitStack() as cleanup:
        servers = [StockMariadb(install, account, directory / f"server-{n}", size) for n in range(replicas + 1)]
        for number, server in enumerate(servers):
            cleanup.callback(server.stop)
            role = REPLICA if number else PRIMARY
            server.start(tree, {**LOGGED, **role} if replicas else {}, server_id=number + 1)
        for server in servers[1:]:
            server.follow(servers[0])
        _wait_for_replicas(servers[0], replicas)
        yield servers[0].dsn


def _wait_for_replicas(primary: StockMariadb, replicas: int) -> None:
    deadline_s = time.monotonic() + 60
    while replicas and time.monotonic() < deadline_s:
        if int(primary.execute("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'")[0][1]) == replicas:
            return
        time.sleep(0.1)
    if replicas:
        raise RuntimeError(f"not all of the {replicas} replicas follow")


@contextmanager
def system_of(name: str, directory: Path, memory_bytes: int) -> Iterator[str]:
    """The DSN of a system with an empty database for the load."""
    directory.mkdir()
    directory.chmod(0o711)
    try:
        with (
            aurora(directory, memory_bytes)
            if name == AURORA
            else stock(directory, memory_bytes, REPLICAS if name == SEMISYNC else 0)
        ) as dsn:
            with connect(dsn) as session, session.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {MYSQL_DATABASE}")
            yield dsn
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def turn_of(result: LoadResult, system: str, test: str, clients: int, number: int) -> MysqlTurn:
    """What is kept of a measurement."""
    return MysqlTurn(
        system=system,
        test=test,
        clients=clients,
        number=number,
        tps=result.tps,
        failed=result.failed,
        latency=encode(result.counts),
    )


def measure(result: MysqlResult, names: tuple[str, ...], clients: tuple[int, ...], directory: Path, say: Steps) -> None:
    """All turns, one system after the other."""
    for name in names:
        say(f"{name}: making it and its data")
        with system_of(name, directory / "system", result.memory_bytes) as dsn:
            fill_sysbench(dsn, TABLES, result.rows)
            for number in range(result.rounds):
                for test in TESTS:
                    for count in clients:
                        say(f"{name}: {test}, {count} clients")
                        load = Load(
                            scripts=(test,),
                            clients=count,
                            seconds=result.seconds,
                            scale=0,
                            seed=1 + number,
                            program=SYSBENCH,
                            tables=TABLES,
                            rows=result.rows,
                        )
                        result.turns.append(turn_of(run_sysbench(dsn, load), name, test, count, number))


def show(result: MysqlResult, console: Console) -> None:
    """Medians of transactions a second (and latencies), a row a test and number of clients."""
    names = list(dict.fromkeys(turn.system for turn in result.turns))
    table = Table(
        title=f"transactions a second (p50, p95 ms), {result.memory_bytes >> 20} MiB, {result.rows} rows a table"
    )
    for column in ("test", "clients", *names):
        table.add_column(column, justify="right" if column != "test" else "left")
    for test, clients in dict.fromkeys((turn.test, turn.clients) for turn in result.turns):
        cells = []
        for name in names:
            own = [t for t in result.turns if (t.system, t.test, t.clients) == (name, test, clients)]
            late = percentiles((t.latency for t in own), (50, 95))
            shown = ", ".join(f"{late[name] / 1e3:.1f}" for name in ("p50", "p95"))
            cells.append(f"{median(t.tps for t in own):,.0f} ({shown})" if own else "-")
        table.add_row(test, str(clients), *cells)
    console.print(table)


def main(
    *,
    rounds: Annotated[int, typer.Option(help="how often each is measured")] = 1,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 8.0,
    rows: Annotated[int, typer.Option(help=f"in each of {TABLES} tables")] = 20_000,
    clients: Annotated[str, typer.Option(help="how many at once")] = ",".join(map(str, CLIENTS)),
    systems: Annotated[
        str, typer.Option(help=f"numbers, in the order of their turns: {dict(enumerate(SYSTEMS))}")
    ] = "0,1,2",
    memory: Annotated[int, typer.Option(help="bytes of the server that is asked")] = 1 << 30,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file")] = None,
) -> None:
    """MariaDB on the volume beside stock MariaDB. Example: python -m benchmarks mysql --seconds 30 --rounds 3."""
    if not installed():
        raise UsageError(PACKAGE_ADVICE)
    end_in_order()
    console, directory = console_for(), Path(tempfile.mkdtemp(prefix="aurora-mysql-", dir=work_dir))
    directory.chmod(0o711)
    try:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        result = MysqlResult(
            started=began,
            commit=machine.commit(),
            machine=machine.describe(directory),
            versions={**machine.versions("none"), "mariadb": find_install().version},
            rounds=rounds,
            seconds=seconds,
            rows=rows,
            memory_bytes=memory,
        )
        path = out or file_of("mysql", began)
        say = Steps(result, path, console, time.monotonic())
        names = tuple(SYSTEMS[int(number)] for number in systems.split(","))
        measure(result, names, tuple(int(count) for count in clients.split(",")), directory, say)
        say("done")
        show(result, console)
        console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
