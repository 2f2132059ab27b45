"""RESULTS.md, written from JSON files alone: no figure in it is typed by hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.derived import columns
from benchmarks.results import Result
from benchmarks.statistics import spread
from benchmarks.tables import (
    OURS,
    heading,
    median_of,
    number,
    ratio_to,
    remarks,
    warnings,
)
from benchmarks.workloads import workload_title

_INTRODUCTION = """\
# Results

Written by `python -m benchmarks report`; every figure comes from the JSON files named. All systems of a run use one
binary on one machine and take turns, A B C A B C. Throughput is the median of the rounds, with the lowest and the
highest. A ratio is the median of the ratios within each round; where the ratios lie on both sides of 1 and differ by
more than their median does from 1, there is no comparison. How to measure: `make bench-quick`, `make bench`.
"""


def write(paths: Sequence[Path], target: Path, charts_dir: Path) -> None:
    """The report on all these results, newest first as given, and their charts."""
    parts = [_INTRODUCTION]
    for path in paths:
        result = Result.load(path)
        charts = draw(result, path.stem, charts_dir)
        parts += _section(result, path, charts, target.parent)
    target.write_text("\n".join(parts).rstrip() + "\n")


def _section(result: Result, path: Path, charts: list[Path], base: Path) -> list[str]:
    source = os.path.relpath(path, base)
    lines = [f"## {path.stem}", "", f"{heading(result)}. Raw figures: [{source}]({source}).", ""]
    lines += [f"**Caution:** {line}.\n" for line in warnings(result)]
    lines += [f"**Not run:** {line}.\n" for line in result.not_run]
    for workload, clients in result.groups():
        lines += [f"### {workload_title(workload)}, {clients} clients", ""]
        lines += _throughput(result, workload, clients)
        lines += _costs(result, workload, clients)
    for chart in charts:
        vector = os.path.relpath(chart.with_suffix(".svg"), base)
        lines += [f"![{chart.stem}]({vector})", ""]
    if result.figures:
        lines += ["### Other figures", "", *_figures(result)]
    return [*lines, "### Settings", "", *_settings(result)]


def _throughput(result: Result, workload: str, clients: int) -> list[str]:
    rows = []
    for system in result.systems(workload, clients):
        samples = list(result.rounds(workload, clients, system).values())
        tps = spread(sample.tps for sample in samples)
        latencies = [spread(sample.latency_us[p] for sample in samples).median / 1000 for p in ("p50", "p99", "p99.9")]
        ratio = "" if system == OURS else str(ratio_to(result, workload, clients, system))
        limits = f"{tps.low:,.0f} to {tps.high:,.0f}"
        rows.append([result.title(system), number(tps.median, 0), limits, *(number(x, 1) for x in latencies), ratio])
    return _table(["system", "tps", "lowest to highest", "p50 ms", "p99 ms", "p99.9 ms", "aurora-ray / that"], rows)


def _costs(result: Result, workload: str, clients: int) -> list[str]:
    systems = result.systems(workload, clients)
    by_system = [list(result.rounds(workload, clients, system).values()) for system in systems]
    rows = []
    for column in columns(workload):
        values = [median_of(samples, column) for samples in by_system]
        if any(value is not None for value in values):
            unit = f" ({column.unit})" if column.unit else ""
            rows.append([column.heading + unit, *(number(value, column.digits) for value in values)])
    return _table(["medians", *(result.title(system) for system in systems)], rows)


def _figures(result: Result) -> list[str]:
    rows = []
    for name, system in dict.fromkeys((each.name, each.system) for each in result.figures):
        rounds = [each for each in result.figures if (each.name, each.system) == (name, system)]
        values = spread(each.value for each in rounds)
        limits = f"{number(values.low, 2)} to {number(values.high, 2)}" if values.count > 1 else ""
        value = f"{number(values.median, 2)} {rounds[0].unit}"
        rows.append([name, result.title(system), value, limits, remarks(rounds)])
    return _table(["what", "system", "median", "lowest to highest", "remarks"], rows)


def _settings(result: Result) -> list[str]:
    """What was set anywhere, side by side."""
    systems = list(result.settings)
    names = sorted({name for values in result.settings.values() for name in values})
    rows = [[name, *(str(result.settings[system].get(name, "")) for system in systems)] for name in names]
    return _table(["setting", *(result.title(system) for system in systems)], rows)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]
