"""`python -m benchmarks readers`: what readers cost and how far behind they are, beside stock streaming standbys.

Of both, with the same number of readers and in turns: the lag as a client has it at some rates of writes, the writer's
throughput and the CPU that its processes take for a transaction, reads spread over the readers while others write, and
the time to add a reader to little and to much data. And of a fleet with a reader, how long clients are without a writer
when it is killed and when another one is asked for. The file is written after every turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import readers_lag
from benchmarks.failover_client import Client, PgbenchLoad
from benchmarks.failover_report import percentile
from benchmarks.loads import Load
from benchmarks.pgbench import run_pgbench
from benchmarks.procfs import usage
from benchmarks.raw import RawFigures, Steps, end_in_order, facts, file_of
from benchmarks.readers_peers import PEERS, FleetPeer, Peer
from benchmarks.runner import console_for
from benchmarks.site import prepared
from benchmarks.systems.base import Site

RATES: Final = (100, 1000, 0)  # writes a second; 0: as many as go
WRITERS: Final = 8  # clients
READING: Final = 32
READER_BYTES: Final = 700 << 20  # what an instance of the machine's memory is asked for at least
OUTAGE_TIMEOUT_S: Final = 90.0
LOAD_BEFORE_S: Final = 4.0
KINDS: Final = {"kill": "kill -9 of the writer's processes", "planned": "aurora failover"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LagTurn:
    """`rate` was asked for (0: as many as go), `tps` came of it. `cpu_ms`: of the writer's processes, a transaction."""

    peer: str
    readers: int
    rate: int
    number: int
    tps: float
    cpu_ms: float
    lags_ms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedTurn:
    """Clients that read at the reader endpoint (a `single` server: at the writer) while others run TPC-B."""

    peer: str
    readers: int
    number: int
    reads_tps: float
    writes_tps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AddTurn:
    """Seconds from asking for a reader to its first row."""

    peer: str
    database_bytes: int
    number: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageTurn:
    """Of a fleet with a reader: seconds from the fault to the first write that was acknowledged; `lost` must be 0."""

    kind: str
    number: int
    seconds: float
    lost: int


@dataclass(slots=True, kw_only=True)
class ReadersResult(RawFigures):
    """A run."""

    seed: int
    rounds: int
    seconds: float
    counts: list[int]
    scale: int
    large_scale: int
    titles: dict[str, str]
    memory_bytes: int
    lags: list[LagTurn] = field(default_factory=list)
    mixed: list[MixedTurn] = field(default_factory=list)
    adds: list[AddTurn] = field(default_factory=list)
    outages: list[OutageTurn] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    suite: str = "readers"


def main(
    *,
    counts: Annotated[str, typer.Option(help="numbers of readers, in their order")] = "0,1,5,15",
    rounds: Annotated[int, typer.Option(min=1, help="of each turn with each database")] = 2,
    seconds: Annotated[float, typer.Option(help="of each turn")] = 5.0,
    faults: Annotated[int, typer.Option(min=0, help="of each kind, with one reader")] = 5,
    adds: Annotated[int, typer.Option(min=0, help="readers added to little and to much data")] = 2,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 10,
    large_scale: Annotated[int, typer.Option(min=0, help="that makes much data (130: 2 GB); 0: none")] = 130,
    peers: Annotated[str, typer.Option(help="which databases, in the order of their turns")] = ",".join(PEERS),
    memory: Annotated[int, typer.Option(help="bytes of each instance; 0: what the machine has for so many")] = 0,
    seed: Annotated[int, typer.Option(help="of the load's random numbers")] = 1,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/readers-<time>.json")] = None,
) -> None:
    """Measure readers: lag, their price for the writer, reads, failover, adding. About 12 minutes."""
    console, began_s = console_for(), time.monotonic()
    end_in_order()
    wanted = sorted({int(each) for each in counts.split(",")})
    held, notes = _held(wanted)
    memory_bytes = memory or _memory_for(max(held))
    with prepared(scale=0, version=None, work_dir=work_dir, keep=False, memory_bytes=memory_bytes) as site:
        chosen = [name for name in peers.split(",") if name in PEERS]
        result = _new_result(
            site,
            titles={name: PEERS[name].title for name in chosen},
            counts=held,
            rounds=rounds,
            seconds=seconds,
            scale=scale,
            large_scale=large_scale,
            seed=seed,
            notes=notes,
        )
        path = out or file_of("readers", result.started)
        step = Steps(result, path, console, began_s)
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(PEERS[name](site)) for name in chosen]
            _measure(running, result, adds=adds, faults=faults, step=step)
        step("done")
    show(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


def _measure(
    running: Sequence[Peer], result: ReadersResult, *, adds: int, faults: int, step: Callable[[str], None]
) -> None:
    step("readers added to little data")
    _add_turns(running, result, adds)
    for peer in running:
        peer.fill(result.scale)
        readers_lag.prepare(peer.dsn)
    for count in result.counts:
        for peer in running:
            step(f"{peer.title}: {count} readers")
            peer.set_readers(count)
        for number in range(result.rounds):
            for rate in RATES if count else RATES[-1:]:
                for peer in running:
                    step(f"{peer.title}, {count} readers, {rate or 'as many as go'} writes a second")
                    result.lags.append(_lag_turn(peer, result, count, rate, number))
            if count in (0, 1, 5):
                for peer in running:
                    step(f"{peer.title}, {count} readers, reads beside writes")
                    result.mixed.append(_mixed_turn(peer, result, count, number))
        if count == 1 or (1 not in result.counts and count == max(result.counts)):
            _outage_turns(running, result, faults, step)
    if result.large_scale and adds:
        for peer in running:
            step(f"{peer.title}: much data")
            peer.set_readers(0)
            peer.fill(result.large_scale)
        step("readers added to much data")
        _add_turns(running, result, adds)


def _add_turns(running: Sequence[Peer], result: ReadersResult, adds: int) -> None:
    for number in range(adds):
        for peer in running:
            turn = AddTurn(
                peer=peer.name, database_bytes=peer.database_bytes(), number=number, seconds=peer.timed_add()
            )
            result.adds.append(turn)


def _lag_turn(peer: Peer, result: ReadersResult, count: int, rate: int, number: int) -> LagTurn:
    """The same load whatever the number of readers; without one, nobody looks."""
    seed = _seed(result, count, rate, number)
    writes = readers_lag.Writes(WRITERS, rate, result.seconds, result.scale, seed, peer.site.bin_dir)
    before = usage(peer.writers())
    done, lags_ms = readers_lag.under_load(peer.dsn, peer.readers() if count else [], writes)
    used = usage(peer.writers()).since(before)
    cpu_ms = used.cpu_s * 1e3 / max(1, done.transactions)
    return LagTurn(
        peer=peer.name,
        readers=count,
        rate=rate,
        number=number,
        tps=round(done.tps, 1),
        cpu_ms=round(cpu_ms, 4),
        lags_ms=lags_ms,
    )


def _mixed_turn(peer: Peer, result: ReadersResult, count: int, number: int) -> MixedTurn:
    seed = _seed(result, count, number)
    writes = Load(
        scripts=("tpcb-like",), clients=WRITERS, seconds=result.seconds, scale=result.scale, seed=seed, log_share=0.01
    )
    reads = Load(
        scripts=("select-only",), clients=READING, seconds=result.seconds, scale=result.scale, seed=seed, log_share=0.01
    )
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(run_pgbench, peer.dsn, writes, peer.site.bin_dir)
        read = run_pgbench(peer.reading_dsn, reads, peer.site.bin_dir)
        written = writing.result()
    return MixedTurn(
        peer=peer.name,
        readers=count,
        number=number,
        reads_tps=round(read.tps, 1),
        writes_tps=round(written.tps, 1),
    )


def _outage_turns(running: Sequence[Peer], result: ReadersResult, faults: int, step: Callable[[str], None]) -> None:
    for peer in (each for each in running if isinstance(each, FleetPeer)):
        for number in range(faults):
            for kind in KINDS:
                step(f"{peer.title}: {KINDS[kind]}")
                result.outages.append(_outage_turn(peer, result, kind, number))
        peer.heal()


def _outage_turn(peer: FleetPeer, result: ReadersResult, kind: str, number: int) -> OutageTurn:
    peer.heal()
    load = PgbenchLoad(peer.dsn, bin_dir=peer.site.bin_dir, clients=WRITERS, scale=result.scale)
    with Client(peer.dsn) as client, load:
        time.sleep(LOAD_BEFORE_S)
        fault_s = time.time()
        peer.lose_writer(kind)
        outage = client.wait_outage(fault_s, OUTAGE_TIMEOUT_S)
        lost = client.lost()
    return OutageTurn(
        kind=kind, number=number, seconds=round(outage.first_s - max(fault_s, outage.last_s), 4), lost=lost
    )


def _seed(result: ReadersResult, *what: int) -> int:
    """The same for every database."""
    return random.Random(f"{result.seed} {what}").randrange(1, 1 << 31)


def _held(wanted: Sequence[int]) -> tuple[list[int], list[str]]:
    """Those numbers of readers that the machine has memory for, and what is to be said of the others."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    most = max(1, free // READER_BYTES - 2)
    held = [count for count in wanted if count <= most]
    notes = [f"{count} readers were left out: {free >> 20} MiB are free" for count in wanted if count not in held]
    return held, notes


def _memory_for(count: int) -> int:
    """The same for every instance, with any number of readers: what a writer and so many readers can have each."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(256 << 20, min(1 << 30, total // 2 // (count + 1))) >> 20 << 20


def _new_result(site: Site, **of: Any) -> ReadersResult:
    return ReadersResult(memory_bytes=site.memory_bytes, **facts(site), **of)


# ---- what came of it


def show(result: ReadersResult, console: Console) -> None:
    """Every figure is computed from the file."""
    tables = (_lag_table(result), _writer_table(result), _mixed_table(result), _add_table(result))
    for table in (*tables, _outage_table(result)):
        if table.row_count:
            console.print(table)
    for note in result.notes:
        console.print(note, highlight=False)
    if lost := sum(turn.lost for turn in result.outages):
        console.print(f"LOST: {lost} acknowledged rows are missing", style="bold red")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("database", "fault") else "right")
    return table


def _lag_table(result: ReadersResult) -> Table:
    title = "from a commit to the first statement on a reader that shows it, ms"
    table = _table(title, "readers", "writes/s asked", "database", "writes/s", "n", "p50", "p99", "max")
    for count, rate, peer in _cases(result, lambda turn: (turn.readers, turn.rate, turn.peer)):
        turns = [t for t in result.lags if (t.readers, t.rate, t.peer) == (count, rate, peer)]
        lags = [lag for turn in turns for lag in turn.lags_ms]
        if lags:
            tps = f"{median(turn.tps for turn in turns):,.0f}"
            asked, figures = str(rate or "max"), readers_lag.figures(lags)
            table.add_row(str(count), asked, result.titles[peer], tps, str(len(lags)), *figures)
    return table


def _cases(result: ReadersResult, of: Callable[[LagTurn], tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    yield from dict.fromkeys(of(turn) for turn in result.lags)


def _writer_table(result: ReadersResult) -> Table:
    """As many writes as go: medians of the rounds, beside those without a reader."""
    table = _table("the writer, 8 clients, one row a transaction", "readers", "database", "tps", "to none", "CPU ms/tx")
    most = [turn for turn in result.lags if turn.rate == 0]
    for count, peer in dict.fromkeys((turn.readers, turn.peer) for turn in most):
        mine = [turn for turn in most if (turn.readers, turn.peer) == (count, peer)]
        none = [turn.tps for turn in most if (turn.readers, turn.peer) == (0, peer)]
        tps = median(turn.tps for turn in mine)
        ratio = f"{tps / median(none):.2f}" if none else ""
        cpu = f"{median(turn.cpu_ms for turn in mine):.3f}"
        table.add_row(str(count), result.titles[peer], f"{tps:,.0f}", ratio, cpu)
    return table


def _mixed_table(result: ReadersResult) -> Table:
    title = f"{READING} clients read at the reader endpoint while {WRITERS} run TPC-B (0 readers: at the one server)"
    table = _table(title, "readers", "database", "reads/s", "TPC-B tps")
    for count, peer in dict.fromkeys((turn.readers, turn.peer) for turn in result.mixed):
        mine = [turn for turn in result.mixed if (turn.readers, turn.peer) == (count, peer)]
        reads, writes = median(t.reads_tps for t in mine), median(t.writes_tps for t in mine)
        table.add_row(str(count), result.titles[peer], f"{reads:,.0f}", f"{writes:,.0f}")
    return table


def _add_table(result: ReadersResult) -> Table:
    table = _table("from asking for a reader to its first row, s", "database", "data, MB", "n", "median", "max")
    for peer, size in dict.fromkeys((turn.peer, _size(turn)) for turn in result.adds):
        took = [turn.seconds for turn in result.adds if (turn.peer, _size(turn)) == (peer, size)]
        row = (result.titles[peer], size, str(len(took)), f"{median(took):.2f}", f"{max(took):.2f}")
        table.add_row(*row)
    return table


def _size(turn: AddTurn) -> str:
    """To one digit and a bit, so that rounds of the same data are one row."""
    return f"{float(f'{turn.database_bytes / 1e6:.1g}'):,.0f}"


def _outage_table(result: ReadersResult) -> Table:
    table = _table("a fleet with one reader: from the fault to the first write, s", "fault", "n", "p50", "p99", "max")
    for kind in KINDS:
        took = [turn.seconds for turn in result.outages if turn.kind == kind]
        if took:
            figures = (f"{percentile(took, 0.5):.2f}", f"{percentile(took, 0.99):.2f}", f"{max(took):.2f}")
            table.add_row(KINDS[kind], str(len(took)), *figures)
    return table
