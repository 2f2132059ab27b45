"""`python -m benchmarks regions`: two regions of a global cluster on this machine, the distance between them simulated.

How long after a commit in the one the other shows it, at some rates of writes; what the second region costs the
writer; how much goes over the link for a transaction; how long clients have no writer in a switchover, and in a
failover after the primary region was killed, with what that reported to have lost. Clients find the writer as libpq
does, by the DSN of both regions that `aurora global status` has. The file is written after every turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import readers_lag
from benchmarks.failover_client import Client
from benchmarks.fleet import UserFleet
from benchmarks.raw import RawFigures, Steps, end_in_order, facts, file_of
from benchmarks.runner import console_for
from benchmarks.site import prepared
from benchmarks.systems.base import Site, fill

RATES: Final = (100, 1000)  # writes a second
GLOBAL: Final = "bench"
CLUSTER: Final = "demo"
HERE: Final = "us-east-1"
THERE: Final = "eu-west-1"
WRITERS: Final = 8
BEFORE_S: Final = 3.0  # of writes before a fault
OUTAGE_TIMEOUT_S: Final = 120.0
TURN_TIMEOUT_S: Final = 150.0
KINDS: Final = {"switchover": "aurora global switchover", "failover": "chaos kill region, aurora global failover"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTurn:
    """`rate` was asked for (0: as many as go). `link_bytes`: of log that came over the link, a transaction."""

    regions: int
    rate: int
    number: int
    tps: float
    link_bytes: float
    lags_ms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOfRegions:
    """`outage_s`: what a client had of it. `rto_s`, `rpo_ms`, `rpo_bytes`: as the command told. `missing`: rows that
    were acknowledged and are not there, which only a failover may have."""

    kind: str
    number: int
    outage_s: float
    rto_s: float
    rpo_ms: float | None
    rpo_bytes: int
    missing: int


@dataclass(slots=True, kw_only=True)
class RegionsResult(RawFigures):
    """A run."""

    rounds: int
    seconds: float
    scale: int
    one_way_ms: float = 0.0
    loads: list[LoadTurn] = field(default_factory=list)
    turns: list[TurnOfRegions] = field(default_factory=list)
    suite: str = "regions"


class TwoRegions:
    """The fleets, driven by the command alone."""

    def __init__(self, site: Site) -> None:
        self.site = site
        directory = site.directory("regions") / "fleet"
        self.here = UserFleet(directory, {"AURORA_CHAOS": "1"})
        self.there = UserFleet(directory / "regions" / THERE, {"AURORA_CHAOS": "1"})
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.dsn = ""  # of the writer, wherever it is

    def of(self, region: str) -> UserFleet:
        """That region's fleet."""
        return self.here if region == HERE else self.there

    def add_region(self) -> None:
        """Returns when it can be read."""
        self.here.run("global", "create", GLOBAL, "--primary", CLUSTER)
        self.here.run("global", "add-region", GLOBAL, THERE, timeout_s=2 * TURN_TIMEOUT_S)
        self.refresh()

    def refresh(self) -> dict[str, Any]:
        """All regions, as whichever answers says."""
        found: dict[str, Any] = self.here.json("global", "status", GLOBAL)
        self.dsn = str(found["writer_dsn"])
        self.endpoints |= {row["region"]: row["endpoints"] for row in found["regions"] if row["endpoints"]}
        return found

    def link_bytes(self) -> int:
        """Of log that has come to the second region."""
        row = next(row for row in self.refresh()["regions"] if row["region"] == THERE)
        return int(row["link_bytes"] or 0)

    def change_primary(self, kind: str, to: str) -> dict[str, Any]:
        """What the command tells."""
        told: dict[str, Any] = self.of(to).json("global", kind, GLOBAL, "--to", to, timeout_s=TURN_TIMEOUT_S)
        return told

    def heal(self, primary: str) -> None:
        """Until the other region follows again."""
        deadline_s = time.monotonic() + OUTAGE_TIMEOUT_S
        while True:
            rows = {row["region"]: row for row in self.refresh()["regions"]}
            states = {region: row["state"] for region, row in rows.items()}
            if all(states[region] == ("available" if region == primary else "following") for region in rows):
                return
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the regions did not come right: {states}")
            time.sleep(0.5)


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="of each turn")] = 2,
    seconds: Annotated[float, typer.Option(help="of each turn with load")] = 6.0,
    faults: Annotated[int, typer.Option(min=0, help="switchovers there and back, and failovers")] = 2,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 5,
    memory: Annotated[int, typer.Option(help="bytes of each instance")] = 512 << 20,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/regions-<time>.json")] = None,
) -> None:
    """Measure two regions: lag, the writer's price, the link, switchover and failover. About six minutes."""
    console, began_s = console_for(), time.monotonic()
    end_in_order()
    with prepared(scale=0, version=None, work_dir=work_dir, keep=False, memory_bytes=memory) as site:
        result = RegionsResult(rounds=rounds, seconds=seconds, scale=scale, **facts(site))
        path = out or file_of("regions", result.started)
        step = Steps(result, path, console, began_s)
        regions = TwoRegions(site)
        try:
            _measure(regions, result, memory, faults, step)
        finally:
            regions.there.destroy()
            regions.here.destroy()
        step("done")
    show(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


def _measure(regions: TwoRegions, result: RegionsResult, memory: int, faults: int, step: Callable[[str], None]) -> None:
    from aurora_ray.regions import load_region

    result.one_way_ms = load_region(HERE).distance_ms(THERE)
    status = regions.here.up("--memory", str(memory))
    regions.endpoints[HERE] = status["endpoints"]
    alone = status["endpoints"]["cluster"]["dsn"]
    fill(alone, regions.site.bin_dir, result.scale)
    for number in range(result.rounds):
        step("one region, as many writes as go")
        result.loads.append(_load_turn(regions, result, alone, regions=1, rate=0, number=number))
    step("a second region is added")
    regions.add_region()
    readers_lag.prepare(alone)
    for number in range(result.rounds):
        for rate in (*RATES, 0):
            step(f"two regions, {rate or 'as many as go'} writes a second")
            result.loads.append(_load_turn(regions, result, alone, regions=2, rate=rate, number=number))
    for number in range(faults):
        for kind, to in (("switchover", THERE), ("switchover", HERE), ("failover", THERE), ("switchover", HERE)):
            step(f"{KINDS[kind]} to {to}")
            result.turns.append(_turn(regions, kind, to, number))
            regions.heal(to)


def _load_turn(two: TwoRegions, result: RegionsResult, dsn: str, *, regions: int, rate: int, number: int) -> LoadTurn:
    """The same load with one region, where nobody looks, and with two."""
    before = two.link_bytes() if regions > 1 else 0
    writes = readers_lag.Writes(WRITERS, rate, result.seconds, result.scale, number + 1, two.site.bin_dir)
    readers = [two.endpoints[THERE]["reader"]["dsn"]] if rate else []
    done, lags_ms = readers_lag.under_load(dsn, readers, writes)
    used = two.link_bytes() - before if regions > 1 else 0
    link_bytes = used / max(1, done.transactions + len(lags_ms))
    return LoadTurn(
        regions=regions,
        rate=rate,
        number=number,
        tps=round(done.tps, 1),
        link_bytes=round(link_bytes, 1),
        lags_ms=lags_ms,
    )


def _turn(regions: TwoRegions, kind: str, to: str, number: int) -> TurnOfRegions:
    other = HERE if to == THERE else THERE
    with Client(regions.dsn) as client:
        time.sleep(BEFORE_S)
        fault_s = time.time()
        if kind == "failover":
            regions.here.run("chaos", "kill", f"region:{other}")
        told = regions.change_primary(kind, to)
        outage = client.wait_outage(fault_s, OUTAGE_TIMEOUT_S)
        missing = client.lost()
    if kind == "failover":
        regions.of(other).up()
    return TurnOfRegions(
        kind=kind,
        number=number,
        outage_s=round(outage.first_s - max(fault_s, outage.last_s), 3),
        rto_s=told["rto_s"],
        rpo_ms=told["rpo_ms"],
        rpo_bytes=told["rpo_bytes"],
        missing=missing,
    )


# ---- what came of it


def show(result: RegionsResult, console: Console) -> None:
    """Every figure is computed from the file."""
    for table in (_load_table(result), _turn_table(result)):
        if table.row_count:
            console.print(table)
    if lost := sum(turn.missing for turn in result.turns if turn.kind == "switchover"):
        console.print(f"LOST: {lost} acknowledged rows are missing after switchovers", style="bold red")


def _load_table(result: RegionsResult) -> Table:
    title = f"two regions, {2 * result.one_way_ms:.0f} ms of round trip; lag: commit to shown there, ms"
    table = Table("regions", "writes/s asked", "writes/s", "link bytes/tx", "n", "p50", "p99", "max", title=title)
    for count, rate in dict.fromkeys((turn.regions, turn.rate) for turn in result.loads):
        turns = [turn for turn in result.loads if (turn.regions, turn.rate) == (count, rate)]
        lags = [lag for turn in turns for lag in turn.lags_ms]
        figures = readers_lag.figures(lags) if lags else ()
        tps, link = (f"{median(values):,.0f}" for values in zip(*((t.tps, t.link_bytes) for t in turns), strict=True))
        table.add_row(str(count), str(rate or "max"), tps, link, str(len(lags)), *figures)
    return table


def _turn_table(result: RegionsResult) -> Table:
    table = Table("change of the primary", "n", "outage s", "RTO s", "RPO ms", "RPO bytes", "rows missing")
    for kind in KINDS:
        turns = [turn for turn in result.turns if turn.kind == kind]
        if not turns:
            continue
        told = [turn.rpo_ms for turn in turns if turn.rpo_ms is not None]
        table.add_row(
            KINDS[kind],
            str(len(turns)),
            f"{median(turn.outage_s for turn in turns):.2f} (max {max(turn.outage_s for turn in turns):.2f})",
            f"{median(turn.rto_s for turn in turns):.2f}",
            f"{max(told):.0f}" if told else "-",
            str(max(turn.rpo_bytes for turn in turns)),
            str(sum(turn.missing for turn in turns)),
        )
    return table
