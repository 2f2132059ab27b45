"""`python -m benchmarks.repair`: a storage node is lost for good under load; how fast another one takes its place, and
what commits feel of it.

Each turn: load, `aurora chaos kill node:… --for-good`, until six healthy copies are there again, load. The load runs
through; its transactions are sorted into phases by the moments that the control plane noted:

    before     the load alone
    missing    from the kill until the new node is to be filled: five copies
    filling    until the old node is forgotten
    after      the load alone, on the new copies
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from aurora_ray.ray.fleet import Fleet
from benchmarks import machine
from benchmarks.failover_peers import AuroraPeer
from benchmarks.failover_report import percentile
from benchmarks.raw import Saved, end_in_order, file_of
from benchmarks.site import prepared
from benchmarks.systems.base import query

FORMAT: Final = 1
REPLACE_AFTER_S: Final = 1.0  # of a node without its data
HEAL_TIMEOUT_S: Final = 240.0
WARM_S: Final = 3.0
POLL_S: Final = 0.25
PHASES: Final = ("before", "missing", "filling", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the load did in a part of a turn; latencies in milliseconds, 0 if there was no transaction."""

    name: str
    seconds: float
    transactions: int
    tps: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One node. `copied_bytes` (pages without their trailing zeros, and log) and `copy_mb_per_s` (10^6 bytes a second)
    are the new node's own account of its copy of the database's volume; `replaced_s` is from the kill to six healthy
    copies."""

    number: int
    node: str
    database_bytes: int
    copied_bytes: int
    copy_mb_per_s: float
    replaced_s: float
    phases: list[Phase]


@dataclass(slots=True, kw_only=True)
class RepairResult(Saved):
    """A run."""

    started: str
    clients: int
    scale: int
    commit: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    turns: list[Turn] = field(default_factory=list)
    suite: str = "repair"
    format: int = FORMAT


class RepairedFleet(AuroraPeer):
    """A fleet that loses storage nodes."""

    def connect(self) -> Fleet:
        """The control plane, called from this process: the command would take CPU from what is measured."""
        return Fleet.find(self._data_dir)

    def kill_for_good(self, node: str) -> None:
        """Its process and its data."""
        self.fleet.run("chaos", "kill", f"node:{node}", "--for-good")


def main(
    *,
    turns: Annotated[int, typer.Option(min=1, help="how many nodes are lost, one after the other")] = 3,
    clients: Annotated[int, typer.Option(min=1, help="of pgbench's load")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 20,
    load_s: Annotated[float, typer.Option(min=1, help="of load before and after each loss")] = 15.0,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/repair-<time>.json")] = None,
) -> None:
    """Measure. Example: python -m benchmarks.repair --turns 1 --scale 10."""
    console = Console()
    end_in_order()
    os.environ["AURORA_REPLACE_EMPTY_AFTER_S"] = str(REPLACE_AFTER_S)
    with prepared(scale=scale, version=None, work_dir=work_dir, keep=False) as site:
        result = RepairResult(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            clients=clients,
            scale=scale,
            commit=machine.commit(),
            machine=machine.describe(site.work_dir),
            versions=machine.versions(site.install.version),
        )
        path = out or file_of("repair", result.started)
        with RepairedFleet(site) as peer, _connected(peer) as fleet:
            for number in range(turns):
                result.turns.append(take_turn(peer, fleet, number, clients=clients, load_s=load_s))
                result.save(path)
    show(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


@contextmanager
def _connected(peer: RepairedFleet) -> Iterator[Fleet]:
    with closing(peer.connect()) as fleet:
        yield fleet


def take_turn(peer: RepairedFleet, fleet: Fleet, number: int, *, clients: int, load_s: float) -> Turn:
    """Load, loss, repair, load."""
    node = fleet.status("demo")["storage_nodes"][0]["id"]
    with tempfile.TemporaryDirectory(prefix="repair-") as directory, _load(peer, Path(directory), clients):
        time.sleep(WARM_S)
        begun_s = time.time()
        time.sleep(load_s)
        killed_s = time.time()
        peer.kill_for_good(node)
        status = _wait_whole(fleet, node)
        healed_s = time.time()
        time.sleep(load_s)
        ended_s = time.time()
        transactions = list(_read_log(Path(directory).glob("latency.*")))
    filling_s = _first(fleet, "ChangeMembers", killed_s)
    replaced_s = _first(fleet, f"RemoveNode {node}", killed_s, default_s=healed_s)
    bounds = (begun_s, killed_s, filling_s, replaced_s, ended_s)
    copy = status["storage_nodes"][-1]["copy"]  # the newest node comes last
    return Turn(
        number=number,
        node=node,
        database_bytes=int(query(peer.dsn, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")[0][0]),
        copied_bytes=copy["bytes_copied"],
        copy_mb_per_s=copy["mb_per_s"],
        replaced_s=round(replaced_s - killed_s, 2),
        phases=[_phase(name, bounds[at], bounds[at + 1], transactions) for at, name in enumerate(PHASES)],
    )


@contextmanager
def _load(peer: RepairedFleet, directory: Path, clients: int) -> Iterator[None]:
    """TPC-B with a line a transaction below `directory`. Raises RuntimeError if it did not run through."""
    command = [f"{peer.site.bin_dir}/pgbench", "--no-vacuum", "-b", "tpcb-like", "-M", "prepared"]
    command += ["-c", str(clients), "-j", "2", "-T", "86400", "--log", f"--log-prefix={directory}/latency", peer.dsn]
    with Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as child:
        try:
            yield
            if child.poll() is not None:
                raise RuntimeError(f"the load ended by itself with {child.returncode}")
        finally:
            child.kill()


def _wait_whole(fleet: Fleet, lost: str) -> dict[str, Any]:
    """The status once six healthy nodes are there without the lost one. Raises TimeoutError."""
    deadline_s = time.monotonic() + HEAL_TIMEOUT_S
    while time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        status = fleet.status("demo")
        nodes = status["storage_nodes"]
        if lost not in {node["id"] for node in nodes} and [node["state"] for node in nodes] == ["healthy"] * 6:
            return status
    raise TimeoutError(f"{lost} was not replaced within {HEAL_TIMEOUT_S:g} s: {status['notes']}")


def _first(fleet: Fleet, words: str, since_s: float, default_s: float | None = None) -> float:
    """When the control plane first said something that begins so; Unix time in seconds."""
    times = [at_s for at_s, sentence in fleet.trail() if at_s >= since_s and sentence.startswith(words)]
    if not times and default_s is None:
        raise RuntimeError(f"the control plane never said {words!r}")
    return times[0] if times else float(default_s or 0)


def _read_log(paths: Iterable[Path]) -> Iterator[tuple[float, float]]:
    """pgbench's lines (client, number, latency in us, script, end in s, and us): end, latency in ms."""
    for path in paths:
        for line in path.read_text().splitlines():
            parts = line.split()
            if len(parts) >= 6 and parts[2].isdigit():  # the last one may be cut
                yield int(parts[4]) + int(parts[5]) / 1e6, int(parts[2]) / 1e3


def _phase(name: str, begun_s: float, ended_s: float, transactions: list[tuple[float, float]]) -> Phase:
    latencies = [latency_ms for at_s, latency_ms in transactions if begun_s <= at_s < ended_s] or [0.0]
    count = len(latencies) if latencies != [0.0] else 0
    return Phase(
        name=name,
        seconds=round(ended_s - begun_s, 2),
        transactions=count,
        tps=round(count / (ended_s - begun_s), 1),
        p50_ms=round(percentile(latencies, 0.5), 2),
        p99_ms=round(percentile(latencies, 0.99), 2),
    )


def show(result: RepairResult, console: Console) -> None:
    """A row a phase, medians of the turns."""
    table = Table("phase", "seconds", "tps", "p50 ms", "p99 ms")
    for name in PHASES:
        phases = [phase for turn in result.turns for phase in turn.phases if phase.name == name]
        figures = ([getattr(phase, key) for phase in phases] for key in ("seconds", "tps", "p50_ms", "p99_ms"))
        table.add_row(name, *(f"{percentile(values, 0.5):,.1f}" for values in figures))
    console.print(table)
    speeds = ", ".join(f"{turn.copied_bytes / 1e6:.0f} MB at {turn.copy_mb_per_s:.0f} MB/s" for turn in result.turns)
    took = ", ".join(f"{turn.replaced_s:.1f} s" for turn in result.turns)
    console.print(f"Copied: {speeds}. From the kill to six healthy copies: {took}.", highlight=False)


if __name__ == "__main__":
    typer.run(main)
