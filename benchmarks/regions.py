"""`python -m benchmarks global`: regions of a global cluster on this machine, the distance between them simulated.

How long after a commit in the one the other shows it, at some rates of writes; what one and two more regions cost the
writer; how much goes over the link for a transaction; what a read costs that does not cross it; how long clients have
no writer in a switchover, in a failover after the primary region was killed, and in one that nobody asked for, with
what was reported to be lost. Beside it, stock PostgreSQL with a streaming standby beyond the same simulated link, and
`pg_promote`. Clients find the writer as libpq does, by the DSN of all regions that `aurora global status` has. The file
is written after every turn.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import typer

from benchmarks import readers_lag
from benchmarks.failover_client import Client
from benchmarks.fleet import FleetProcesses, UserFleet
from benchmarks.link_proxy import LinkProxy
from benchmarks.raw import RawFigures, Steps, end_in_order, facts, file_of
from benchmarks.regions_peers import FarStandby
from benchmarks.runner import console_for
from benchmarks.site import prepared
from benchmarks.systems.base import Site, fill

if TYPE_CHECKING:
    from benchmarks.failover_client import Outage

RATES: Final = (100, 1000)  # writes a second
GLOBAL: Final = "bench"
CLUSTER: Final = "demo"
HERE: Final = "us-east-1"
THERE: Final = "eu-west-1"
THIRD: Final = "us-west-2"
WRITERS: Final = 8
BEFORE_S: Final = 3.0  # of writes before a fault
OUTAGE_TIMEOUT_S: Final = 120.0
TURN_TIMEOUT_S: Final = 150.0
READS: Final = 300
LIMIT: Final = "3s"  # of the lease, and of the silence after which a region takes over by itself
AURORA: Final = "aurora"
STOCK: Final = "stock"
SWITCHOVER, FAILOVER, AUTOMATIC, PROMOTE = "switchover", "failover", "automatic", "promote"
IN_REGION, ACROSS = "in the region", "across the link"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTurn:
    """`rate` was asked for (0: as many as go). `link_bytes`: that came over the link, a transaction. `cpu_ms`: of all
    processes of the primary region, a transaction."""

    regions: int
    rate: int
    number: int
    tps: float
    link_bytes: float
    lags_ms: list[float]
    system: str = AURORA
    cpu_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOfRegions:
    """`outage_s`: what a client had of it, from the fault on. `rto_s`: from the command on (of what nobody commanded,
    from the fault on). `rpo_ms`, `rpo_bytes`: as was told. `missing`: rows that were acknowledged and are not there,
    which only a failover may have."""

    kind: str
    number: int
    outage_s: float
    rto_s: float
    rpo_ms: float | None
    rpo_bytes: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTurn:
    """Reads of one row, one after the other, from the far region: `where` the reader is."""

    where: str
    took_ms: list[float]


@dataclass(slots=True, kw_only=True)
class RegionsResult(RawFigures):
    """A run."""

    rounds: int
    seconds: float
    scale: int
    one_way_ms: float = 0.0
    loads: list[LoadTurn] = field(default_factory=list)
    turns: list[TurnOfRegions] = field(default_factory=list)
    reads: list[ReadTurn] = field(default_factory=list)
    suite: str = "regions"


class TwoRegions:
    """The fleets, driven by the command alone."""

    def __init__(self, site: Site, one_way_ms: float) -> None:
        self.site = site
        directory = site.directory("regions") / "fleet"
        distances = site.work_dir / "distances"
        with_distance(distances, one_way_ms)
        environment = {"AURORA_CHAOS": "1", "AURORA_REGIONS_DIR": str(distances)}
        self.here = UserFleet(directory, environment)
        self.there = UserFleet(directory / "regions" / THERE, environment)
        self.third = UserFleet(directory / "regions" / THIRD, environment)
        self.processes = FleetProcesses(directory)
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.dsn = ""  # of the writer, wherever it is

    def of(self, region: str) -> UserFleet:
        """That region's fleet."""
        return {HERE: self.here, THERE: self.there, THIRD: self.third}[region]

    def add_region(self, region: str) -> None:
        """Returns when it can be read."""
        self.here.run("global", "add-region", GLOBAL, region, timeout_s=2 * TURN_TIMEOUT_S)
        self.refresh()

    def remove_region(self, region: str) -> None:
        """With its fleet."""
        self.here.run("global", "remove-region", GLOBAL, region, timeout_s=TURN_TIMEOUT_S)
        self.of(region).destroy()

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

    def destroy(self) -> None:
        """All of it."""
        for fleet in (self.third, self.there, self.here):
            fleet.destroy()


def with_distance(directory: Path, one_way_ms: float) -> None:
    """The shipped region files, with so much between the two that are measured."""
    from aurora_ray.regions import default_directory

    shutil.copytree(default_directory(), directory)
    for one, other in ((HERE, THERE), (THERE, HERE)):
        path = directory / f"{one}.toml"
        path.write_text(re.sub(rf"(?m)^{other} = .*$", f"{other} = {one_way_ms:g}", path.read_text()))


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="of each turn with load")] = 2,
    seconds: Annotated[float, typer.Option(help="of each turn with load")] = 6.0,
    faults: Annotated[int, typer.Option(min=0, help="switchovers there and back, failovers, and promotions")] = 1,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 5,
    one_way: Annotated[float, typer.Option(min=0.1, help="simulated distance, ms: half of a round trip")] = 40.0,
    third: Annotated[bool, typer.Option(help="a third region too")] = True,
    memory: Annotated[int, typer.Option(help="bytes of each instance")] = 512 << 20,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/regions-<time>.json")] = None,
) -> None:
    """Measure regions: lag, the writer's price, the link, switchover and failover. About eight minutes."""
    from benchmarks.regions_report import show

    console, began_s = console_for(), time.monotonic()
    end_in_order()
    with prepared(scale=0, version=None, work_dir=work_dir, keep=False, memory_bytes=memory) as site:
        result = RegionsResult(rounds=rounds, seconds=seconds, scale=scale, one_way_ms=one_way, **facts(site))
        path = out or file_of("regions", result.started)
        step = Steps(result, path, console, began_s)
        regions = TwoRegions(site, one_way)
        try:
            _measure_stock(site, result, faults, step)
            _measure(regions, result, memory, step, third=third)
            for number in range(faults):
                _turns(regions, result, number, step)
        finally:  # what was measured is shown, whatever comes of the rest
            regions.destroy()
            step("done")
            show(result, console)
            console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


def _measure(
    regions: TwoRegions, result: RegionsResult, memory: int, step: Callable[[str], None], *, third: bool
) -> None:
    status = regions.here.up("--memory", str(memory))
    regions.endpoints[HERE] = status["endpoints"]
    alone = status["endpoints"]["cluster"]["dsn"]
    fill(alone, regions.site.bin_dir, result.scale)
    for number in range(result.rounds):
        step("one region, as many writes as go")
        result.loads.append(_load_turn(regions, result, alone, regions=1, rate=0, number=number))
    step("a second region is added")
    regions.here.run("global", "create", GLOBAL, "--primary", CLUSTER)
    regions.add_region(THERE)
    readers_lag.prepare(alone)
    for number in range(result.rounds):
        for rate in (*RATES, 0):
            step(f"two regions, {rate or 'as many as go'} writes a second")
            result.loads.append(_load_turn(regions, result, alone, regions=2, rate=rate, number=number))
    step("reads in the far region and across the link")
    result.reads += _reads(regions, result)
    if not third:
        return
    step("a third region is added")
    regions.add_region(THIRD)
    for number in range(result.rounds):
        step("three regions, as many writes as go")
        result.loads.append(_load_turn(regions, result, alone, regions=3, rate=0, number=number))
    step("the third region is removed")
    regions.remove_region(THIRD)


def _turns(regions: TwoRegions, result: RegionsResult, number: int, step: Callable[[str], None]) -> None:
    order = ((SWITCHOVER, THERE), (SWITCHOVER, HERE), (FAILOVER, THERE), (SWITCHOVER, HERE), (AUTOMATIC, THERE))
    for kind, to in (*order, (SWITCHOVER, HERE)):
        step(f"{kind} to {to}")
        result.turns.append(_turn(regions, kind, to, number))
        regions.heal(to)


def _load_turn(two: TwoRegions, result: RegionsResult, dsn: str, *, regions: int, rate: int, number: int) -> LoadTurn:
    """The same load with one region, where nobody looks, and with more."""
    before, cpu_s = two.link_bytes() if regions > 1 else 0, two.processes.cpu_s()
    writes = readers_lag.Writes(WRITERS, rate, result.seconds, result.scale, number + 1, two.site.bin_dir)
    readers = [two.endpoints[THERE]["reader"]["dsn"]] if rate else []
    done, lags_ms = readers_lag.under_load(dsn, readers, writes)
    cpu_s = two.processes.cpu_s() - cpu_s
    used = two.link_bytes() - before if regions > 1 else 0
    transactions = max(1, done.transactions + len(lags_ms))
    return LoadTurn(
        regions=regions,
        rate=rate,
        number=number,
        tps=round(done.tps, 1),
        link_bytes=round(used / transactions, 1),
        lags_ms=lags_ms,
        cpu_ms=round(1e3 * cpu_s / transactions, 3),
    )


def _reads(regions: TwoRegions, result: RegionsResult) -> list[ReadTurn]:
    """Of a client in the far region: at the reader there, and at the writer, to which its packets have to travel."""
    found = []
    near, far = (regions.endpoints[region] for region in (THERE, HERE))
    with LinkProxy(result.one_way_ms / 1e3, int(far["cluster"]["port"])) as link:
        across = at_port(far["cluster"]["dsn"], link.port)
        for where, dsn in ((IN_REGION, near["reader"]["dsn"]), (ACROSS, across)):
            took_ms = []
            with psycopg.connect(dsn, autocommit=True, connect_timeout=30) as session:
                for aid in range(1, READS + 1):
                    began_s = time.perf_counter()
                    session.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", [aid], prepare=True)
                    took_ms.append(round(1e3 * (time.perf_counter() - began_s), 3))
            found.append(ReadTurn(where=where, took_ms=took_ms))
    return found


def at_port(dsn: str, port: int) -> str:
    """The same DSN, by another port of loopback."""
    parts = urlsplit(dsn)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


def _turn(regions: TwoRegions, kind: str, to: str, number: int) -> TurnOfRegions:
    other = HERE if to == THERE else THERE
    if kind == AUTOMATIC:
        regions.of(other).run("global", "limits", GLOBAL, "--lease", LIMIT, "--failover-after", LIMIT)
    with Client(regions.dsn) as client:
        time.sleep(BEFORE_S)
        fault_s = time.time()
        if kind != SWITCHOVER:
            regions.here.run("chaos", "kill", f"region:{other}")
        told = regions.change_primary(kind, to) if kind != AUTOMATIC else {}
        outage = client.wait_outage(fault_s, OUTAGE_TIMEOUT_S)
        missing = client.lost()
    if kind == AUTOMATIC:
        rows = {row["region"]: row for row in regions.refresh()["regions"]}
        told = dict(rows[to]["promotion"] or {})
        regions.of(to).run("global", "limits", GLOBAL, "--no-lease", "--no-failover")
    if kind != SWITCHOVER:
        regions.of(other).up()
    return _turned(kind, number, fault_s=fault_s, outage=outage, told=told, missing=missing)


def _turned(
    kind: str, number: int, *, fault_s: float, outage: Outage, told: dict[str, Any], missing: int
) -> TurnOfRegions:
    outage_s = round(outage.first_s - max(fault_s, outage.last_s), 3)
    return TurnOfRegions(
        kind=kind,
        number=number,
        outage_s=outage_s,
        rto_s=told.get("rto_s", outage_s),
        rpo_ms=told.get("rpo_ms"),
        rpo_bytes=int(told.get("rpo_bytes") or 0),
        missing=missing,
    )


# ---- beside it


def _measure_stock(site: Site, result: RegionsResult, faults: int, step: Callable[[str], None]) -> None:
    one_way_s = result.one_way_ms / 1e3
    with FarStandby(site, one_way_s) as peer:
        peer.fill(result.scale)
        for number in range(result.rounds):
            step("stock, no standby, as many writes as go")
            result.loads.append(_stock_load(peer, result, rate=0, number=number))
        peer.add(1)
        readers_lag.prepare(peer.dsn)
        for number in range(result.rounds):
            for rate in (*RATES, 0):
                step(f"stock, a standby beyond the link, {rate or 'as many as go'} writes a second")
                result.loads.append(_stock_load(peer, result, rate=rate, number=number))
    for number in range(faults):
        step("stock, the primary is killed and the standby promoted")
        with FarStandby(site, one_way_s) as peer:
            peer.add(1)
            with Client(peer.writer_dsn) as client:
                time.sleep(BEFORE_S)
                fault_s = time.time()
                told = peer.lose_primary()
                outage = client.wait_outage(fault_s, OUTAGE_TIMEOUT_S)
                told["rto_s"] = round(outage.first_s - told["asked_s"], 3)
                missing = client.lost()
            turn = _turned(PROMOTE, number, fault_s=fault_s, outage=outage, told=told, missing=missing)
            result.turns.append(turn)


def _stock_load(peer: FarStandby, result: RegionsResult, *, rate: int, number: int) -> LoadTurn:
    writes = readers_lag.Writes(WRITERS, rate, result.seconds, result.scale, number + 1, peer.site.bin_dir)
    before = peer.link.nbytes
    readers = peer.readers()
    done, lags_ms = readers_lag.under_load(peer.dsn, readers if rate else [], writes)
    return LoadTurn(
        regions=1 + len(readers),
        rate=rate,
        number=number,
        tps=round(done.tps, 1),
        link_bytes=round((peer.link.nbytes - before) / max(1, done.transactions + len(lags_ms)), 1),
        lags_ms=lags_ms,
        system=STOCK,
    )
