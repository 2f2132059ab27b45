"""Results for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.derived import COLUMNS, Column, columns
from benchmarks.results import Figure, Result, Sample
from benchmarks.statistics import Comparison, compare, spread
from benchmarks.workloads import workload_title

OURS = "aurora"


def show(result: Result, console: Console) -> None:
    """Everything, group by group."""
    console.print(heading(result), highlight=False)
    for workload, clients in result.groups():
        console.print(_throughput(result, workload, clients))
        console.print(_costs(result, workload, clients))
    if result.figures:
        console.print(_figures(result.figures, result))
    for line in result.not_run:
        console.print(f"NOT RUN: {line}", style="bold yellow", highlight=False)
    for line in warnings(result):
        console.print(f"CAUTION: {line}", style="bold yellow", highlight=False)


def summary(result: Result) -> dict[str, Any]:
    """Medians and ratios for programs; a ratio that noise does not allow is null, and says why."""
    groups = []
    for workload, clients in result.groups():
        for system in result.systems(workload, clients):
            samples = list(result.rounds(workload, clients, system).values())
            tps = spread(sample.tps for sample in samples)
            ratio = ratio_to(result, workload, clients, system)
            compared = {} if system == OURS else {"ratio": ratio.value, "comparison": str(ratio)}
            medians = {p: spread(sample.latency_us[p] for sample in samples).median for p in ("p50", "p99", "p99.9")}
            groups.append(
                {
                    "workload": workload,
                    "clients": clients,
                    "system": system,
                    "rounds": tps.count,
                    "tps": {"median": tps.median, "low": tps.low, "high": tps.high},
                    "latency_us": medians,
                    **compared,
                }
            )
    return {
        "suite": result.suite,
        "started": result.started,
        "commit": result.commit,
        "finished": result.finished,
        "groups": groups,
        "warnings": warnings(result),
        "not_run": result.not_run,
    }


def heading(result: Result) -> str:
    """One line: what, where, when."""
    commit = str(result.commit.get("id", ""))[:10] + (" with changes" if result.commit.get("modified") else "")
    return (
        f"{result.suite}: PostgreSQL {result.versions['postgres']}, {result.machine['cores_usable']} cores "
        f"{result.machine['cpu']}, scale {result.options['scale']}, commit {commit}, {result.started}, "
        f"{result.seconds:.0f} s, seed {result.seed}"
    )


def ratio_to(result: Result, workload: str, clients: int, system: str) -> Comparison:
    """aurora-ray's throughput as a multiple of another's."""
    ours, theirs = (result.rounds(workload, clients, name) for name in (OURS, system))
    return compare({n: s.tps for n, s in ours.items()}, {n: s.tps for n, s in theirs.items()})


def warnings(result: Result) -> list[str]:
    """What should make a reader careful."""
    found = []
    column = next(each for each in COLUMNS if each.key == "foreign")
    shares = [share for sample in result.samples if (share := column.get(sample)) is not None]
    disturbed = sum(share > 10 for share in shares)
    if disturbed:
        found.append(
            f"in {disturbed} of {len(shares)} turns other processes took more than 10 % of the machine's busy time "
            f"(at most {max(shares):.0f} %): the figures are for debugging only"
        )
    if not result.finished:
        found.append("the run was interrupted: `--resume` goes on with it")
    if failed := sum(sample.failed for sample in result.samples):
        found.append(f"{failed} transactions failed")
    if result.commit.get("modified"):
        found.append("the sources differed from the commit named")
    return found


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def median_of(samples: list[Sample], column: Column) -> float | None:
    """Of the rounds in which there is such a figure."""
    values = [value for sample in samples if (value := column.get(sample)) is not None]
    return spread(values).median if values else None


def _throughput(result: Result, workload: str, clients: int) -> Table:
    table = Table(title=f"{workload_title(workload)}, {clients} clients", title_justify="left")
    for name in ("system", "tps", "min to max", "p50 ms", "p99 ms", "aurora-ray / that"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for system in result.systems(workload, clients):
        samples = list(result.rounds(workload, clients, system).values())
        tps = spread(sample.tps for sample in samples)
        latencies = [spread(sample.latency_us[p] for sample in samples).median / 1000 for p in ("p50", "p99")]
        ratio = "" if system == OURS else str(ratio_to(result, workload, clients, system))
        table.add_row(
            result.title(system),
            number(tps.median, 0),
            f"{tps.low:,.0f} to {tps.high:,.0f}",
            *(number(latency, 1) for latency in latencies),
            ratio,
        )
    return table


def _costs(result: Result, workload: str, clients: int) -> Table:
    systems = result.systems(workload, clients)
    table = Table(title="  what it took (medians)", title_justify="left")
    table.add_column("")
    table.add_column("")
    for system in systems:
        table.add_column(result.title(system), justify="right")
    for column in columns(workload):
        rows = [list(result.rounds(workload, clients, system).values()) for system in systems]
        values = [median_of(samples, column) for samples in rows]
        if any(value is not None for value in values):
            table.add_row(column.heading, column.unit, *(number(value, column.digits) for value in values))
    return table


def _figures(figures: list[Figure], result: Result) -> Table:
    table = Table(title="other figures (medians)", title_justify="left")
    for name in ("what", "system", "value", "unit", "min to max", "remarks"):
        table.add_column(name, justify="right" if name in ("value", "min to max") else "left")
    for name, system in dict.fromkeys((each.name, each.system) for each in figures):
        rounds = [each for each in figures if (each.name, each.system) == (name, system)]
        values = spread(each.value for each in rounds)
        extremes = f"{values.low:,.2f} to {values.high:,.2f}" if values.count > 1 else ""
        table.add_row(name, result.title(system), number(values.median, 2), rounds[0].unit, extremes, remarks(rounds))
    return table


def frame_table(name: str, frames: list[tuple[str, float, float]]) -> Table:
    """Where a profiled process spends its time."""
    table = Table(title=name, title_justify="left")
    for heading_ in ("own %", "with callees %", "frame"):
        table.add_column(heading_, justify="left" if heading_ == "frame" else "right")
    for frame, own, whole in frames:
        table.add_row(number(own, 1), number(whole, 1), frame)
    return table


def remarks(rounds: list[Figure]) -> str:
    """Sizes, and where the time of an opening went (the last round's)."""
    facts = rounds[-1].facts
    sizes = [f"{value / 1e6:,.0f} MB" for key, value in facts.items() if key.endswith("bytes")]
    stages = [f"{stage} {seconds:.2f}" for stage, seconds in facts.get("stages_s", {}).items()]
    return ", ".join(sizes + stages)
