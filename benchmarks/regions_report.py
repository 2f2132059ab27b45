"""What the benchmark of regions found, as tables. Every figure is computed from the file."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from rich.table import Table

from benchmarks import readers_lag
from benchmarks.regions import AURORA, AUTOMATIC, FAILOVER, PROMOTE, STOCK, SWITCHOVER

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.regions import RegionsResult

KINDS: Final = {
    SWITCHOVER: "aurora global switchover",
    FAILOVER: "chaos kill region, aurora global failover",
    AUTOMATIC: "chaos kill region, and a region takes over by itself",
    PROMOTE: "stock: the primary is killed, pg_promote",
}
TITLES: Final = {AURORA: "aurora-ray", STOCK: "stock, streaming"}


def show(result: RegionsResult, console: Console) -> None:
    """All tables, and what must not be."""
    for table in (_load_table(result), _read_table(result), _turn_table(result)):
        if table.row_count:
            console.print(table)
    if lost := sum(turn.missing for turn in result.turns if turn.kind == SWITCHOVER):
        console.print(f"LOST: {lost} acknowledged rows are missing after switchovers", style="bold red")


def _load_table(result: RegionsResult) -> Table:
    title = f"regions, {2 * result.one_way_ms:.0f} ms of round trip; lag: commit to shown there, ms"
    heads = ("system", "regions", "writes/s asked", "writes/s", "CPU ms/tx", "link bytes/tx", "n", "p50", "p99", "max")
    table = Table(*heads, title=title)
    for system, count, rate in dict.fromkeys((turn.system, turn.regions, turn.rate) for turn in result.loads):
        turns = [turn for turn in result.loads if (turn.system, turn.regions, turn.rate) == (system, count, rate)]
        lags = [lag for turn in turns for lag in turn.lags_ms]
        figures = readers_lag.figures(lags) if lags else ()
        tps, link = (f"{median(values):,.0f}" for values in zip(*((t.tps, t.link_bytes) for t in turns), strict=True))
        cpu = f"{median(t.cpu_ms for t in turns):.2f}" if system == AURORA else "-"
        table.add_row(TITLES[system], str(count), str(rate or "max"), tps, cpu, link, str(len(lags)), *figures)
    return table


def _read_table(result: RegionsResult) -> Table:
    table = Table("a read of one row, from the far region", "n", "p50 ms", "p99 ms", "max ms")
    for turn in result.reads:
        table.add_row(turn.where, str(len(turn.took_ms)), *readers_lag.figures(turn.took_ms))
    return table


def _turn_table(result: RegionsResult) -> Table:
    table = Table("change of the primary", "n", "outage s", "RTO s", "RPO ms", "RPO bytes", "rows missing")
    for kind, title in KINDS.items():
        turns = [turn for turn in result.turns if turn.kind == kind]
        if not turns:
            continue
        told = [turn.rpo_ms for turn in turns if turn.rpo_ms is not None]
        table.add_row(
            title,
            str(len(turns)),
            f"{median(turn.outage_s for turn in turns):.2f} (max {max(turn.outage_s for turn in turns):.2f})",
            f"{median(turn.rto_s for turn in turns):.2f}",
            f"{max(told):.0f}" if told else "-",
            str(max(turn.rpo_bytes for turn in turns)),
            str(sum(turn.missing for turn in turns)),
        )
    return table
