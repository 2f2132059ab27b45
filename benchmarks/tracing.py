"""`python -m benchmarks tracing`: what tracing costs TPC-B. Two fleets, one of them with telemetry off, take turns.

Two figures of each turn are compared, as ratios within a round: transactions a second, and the CPU time that all of a
fleet's processes (engine, driver, storage nodes) used for each transaction. The second one is the sharper: it hardly
depends on what else the machine does.

On a small machine the difference drowns even so. So the cost is also counted: the spans that a turn left behind, times
the CPU that one takes from its start to its line in a file (see `span_cost`). What is not in it are the tests whether
something is traced at all, some 0.1 us each.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from aurora_ray.telemetry.spanreader import read_spans
from aurora_ray.telemetry.tracing import EXPORT_DELAY_MS
from benchmarks import machine
from benchmarks.failover_peers import AuroraPeer
from benchmarks.load import run_load
from benchmarks.loads import Load
from benchmarks.procfs import usage
from benchmarks.raw import Saved, end_in_order, file_of
from benchmarks.runner import console_for
from benchmarks.site import prepared
from benchmarks.span_cost import measured_in_child
from benchmarks.statistics import Comparison, compare, spread

FLEETS: Final = {"traced": {"OTEL_SDK_DISABLED": "false"}, "untraced": {"OTEL_SDK_DISABLED": "true"}}
WARM_S: Final = 5.0
LIMIT: Final = 0.02
_EXPORTED_S: Final = 2 * EXPORT_DELAY_MS / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingTurn:
    """One load on one fleet. `cpu_ms` is a transaction's, in the fleet's processes; clients are not counted.

    `spans`: what it wrote of the turn's work.
    """

    fleet: str
    round: int
    tps: float
    transactions: int
    cpu_ms: float
    spans: int


@dataclass(slots=True, kw_only=True)
class TracingResult(Saved):
    """A run."""

    started: str
    clients: int
    scale: int
    seconds: float
    commit: dict[str, Any]
    machine: dict[str, Any]
    span_us: float
    turns: list[TracingTurn] = field(default_factory=list)
    suite: str = "tracing"

    def figures(self, fleet: str, name: str) -> dict[int, float]:
        """One figure of a fleet by round."""
        return {turn.round: float(getattr(turn, name)) for turn in self.turns if turn.fleet == fleet}

    def ratio(self, name: str) -> Comparison:
        """Traced as a multiple of untraced."""
        return compare(self.figures("traced", name), self.figures("untraced", name))


def run(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="how often each fleet is measured")] = 10,
    seconds: Annotated[float, typer.Option(min=2, help="of each load")] = 15.0,
    clients: Annotated[int, typer.Option(min=1, help="of the load")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale factor")] = 10,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/tracing-<time>.json")] = None,
) -> None:
    """Measure. Example: python -m benchmarks tracing --rounds 3 --seconds 5."""
    end_in_order()
    console = console_for()
    with prepared(scale=scale, version=None, work_dir=work_dir, keep=False) as site:
        result = TracingResult(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            clients=clients,
            scale=scale,
            seconds=seconds,
            commit=machine.commit(),
            machine=machine.describe(site.work_dir),
            span_us=measured_in_child(),
        )
        path = out or file_of("tracing", result.started)
        with contextlib.ExitStack() as cleanup:
            fleets = {
                name: cleanup.enter_context(AuroraPeer(site, label=name, environment=environment))
                for name, environment in FLEETS.items()
            }
            for peer in fleets.values():
                _load(peer, result, number=-1, seconds=WARM_S)
            for number in range(rounds):
                for name in list(fleets)[:: -1 if number % 2 else 1]:  # who goes first changes: a drift favours nobody
                    result.turns.append(_load(fleets[name], result, number=number, seconds=seconds))
                    result.save(path)
    show(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


def _load(peer: AuroraPeer, result: TracingResult, *, number: int, seconds: float) -> TracingTurn:
    load = Load(
        scripts=("tpcb-like",), clients=result.clients, seconds=seconds, scale=result.scale, seed=1 + max(0, number)
    )
    components = peer.components()
    before_s = sum(usage(component).cpu_s for component in components)
    begun_ns = time.time_ns()
    done = run_load(peer.dsn, load, peer.site.bin_dir)
    used_s = sum(usage(component).cpu_s for component in components) - before_s
    ended_ns = time.time_ns()
    time.sleep(_EXPORTED_S)
    written = sum(begun_ns <= each.end_ns <= ended_ns for each in read_spans(peer.telemetry_dir))
    return TracingTurn(
        fleet=peer.label,
        round=number,
        tps=round(done.tps, 1),
        transactions=done.transactions,
        cpu_ms=round(1000 * used_s / max(1, done.transactions), 4),
        spans=written,
    )


def show(result: TracingResult, console: Console) -> None:
    """Medians, ratios, and whether they keep the limit."""
    table = Table(title=f"TPC-B, {result.clients} clients, scale {result.scale}, medians", title_justify="left")
    for name in ("", *FLEETS, "traced / untraced"):
        table.add_column(name, justify="right" if name else "left")
    for name, title in (("tps", "transactions a second"), ("cpu_ms", "CPU ms a transaction")):
        medians = [spread(result.figures(fleet, name).values()).median for fleet in FLEETS]
        table.add_row(title, *(f"{each:,.2f}" for each in medians), str(result.ratio(name)))
    console.print(table)
    low, middle, high = interval(result.figures("traced", "cpu_ms"), result.figures("untraced", "cpu_ms"))
    verdict = "within" if high <= LIMIT else "above" if low > LIMIT else "not decided against"
    words = f"Tracing costs {middle:+.1%} CPU (between {low:+.1%} and {high:+.1%}): {verdict} the limit of {LIMIT:.0%}"
    console.print(words, highlight=False)
    share = spread(counted(result).values())
    console.print(
        f"Counted: {result.span_us:.0f} us a span, {share.median:.3%} of the CPU (at most {share.high:.3%})",
        highlight=False,
    )


def counted(result: TracingResult) -> dict[int, float]:
    """The share of a traced turn's CPU that its spans took, by round."""
    return {
        turn.round: turn.spans * result.span_us / (1000 * turn.cpu_ms * turn.transactions)
        for turn in result.turns
        if turn.fleet == "traced" and turn.transactions
    }


def interval(traced: Mapping[int, float], untraced: Mapping[int, float]) -> tuple[float, float, float]:
    """What tracing adds, as a share: the mean over the rounds, between two standard errors below and above."""
    logs = [math.log(traced[number] / untraced[number]) for number in traced.keys() & untraced.keys()]
    error = stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    middle, two = mean(logs), min(2 * error, 10.0)
    return math.expm1(middle - two), math.expm1(middle), math.expm1(middle + two)


if __name__ == "__main__":
    typer.run(run)
