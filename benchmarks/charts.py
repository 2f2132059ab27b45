"""Charts of a result, as PNG and SVG. The same colours mean the same systems and stages everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.derived import COLUMNS, STAGES, cpu_ms_per_transaction
from benchmarks.histograms import percentiles
from benchmarks.results import Result
from benchmarks.statistics import Spread, spread
from benchmarks.tables import median_of
from benchmarks.workloads import reads_only, workload_title

_COLOURS: Final = {"aurora": "#1f6feb", "standbys": "#d29922", "stock": "#8b949e", "nosync": "#c9d1d9"}
_STAGE_COLOURS: Final = {"engine": "#8b949e", "driver": "#1f6feb", "copies": "#79c0ff", "client": "#e6e6e6"}
_IO_COLOURS: Final = {"network": "#1f6feb", "wal_writes": "#8b949e", "page_writes": "#d29922"}
_PERCENTILES: Final = (0, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.99)
_SIZE: Final = (8, 4.2)


def draw(result: Result, stem: str, directory: Path) -> list[Path]:
    """All charts of a result; the PNG files."""
    mpl.rcParams["svg.hashsalt"] = stem  # the same result gives the same file
    drawn = []
    for workload in dict.fromkeys(name for name, _ in result.groups()):
        for kind, paint in _KINDS.items():
            if kind == "ios" and reads_only(workload):
                continue
            canvas = Canvas(figsize=_SIZE, layout="constrained")
            paint(canvas.subplots(), result, workload)
            drawn.append(_save(canvas, directory / f"{stem}-{workload}-{kind}"))
    return drawn


def _save(canvas: Canvas, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    canvas.savefig(path.with_suffix(".png"), dpi=120)
    return path.with_suffix(".png")


def _clients(result: Result, workload: str) -> list[int]:
    return sorted(clients for name, clients in result.groups() if name == workload)


def _legend(axes: Axes) -> None:
    """Below, where it hides nothing."""
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _extremes(axes: Axes, spreads: Sequence[Spread]) -> None:
    """Lines from the lowest to the highest round, on the bars' tops."""
    medians = [each.median for each in spreads]
    errors = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
    axes.errorbar(range(len(spreads)), medians, yerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)


def _clients_text(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _throughput(axes: Axes, result: Result, workload: str) -> None:
    """Bars by number of clients; the median, with lines from the lowest to the highest."""
    groups = _clients(result, workload)
    systems = list(dict.fromkeys(name for clients in groups for name in result.systems(workload, clients)))
    width = 0.8 / len(systems)
    for index, system in enumerate(systems):
        rounds = [list(result.rounds(workload, each, system).values()) for each in groups]
        measured = [group for group, samples in enumerate(rounds) if samples]
        spreads = [spread(sample.tps for sample in rounds[group]) for group in measured]
        places = [group + (index - (len(systems) - 1) / 2) * width for group in measured]
        medians = [each.median for each in spreads]
        errors = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
        title = result.title(system)
        axes.bar(places, medians, width, yerr=errors, label=title, color=_COLOURS.get(system), capsize=2)
    axes.set_xticks(range(len(groups)), [_clients_text(each) for each in groups])
    axes.set_ylabel("transactions per second")
    axes.set_title(f"{workload_title(workload)} (median, lowest to highest round)")
    _legend(axes)


def _latency(axes: Axes, result: Result, workload: str) -> None:
    """Percentiles at the largest number of clients, all rounds in one histogram."""
    clients = _clients(result, workload)[-1]
    for system in result.systems(workload, clients):
        samples = result.rounds(workload, clients, system).values()
        found = percentiles([sample.histogram for sample in samples], _PERCENTILES)
        values = [found[f"p{each:g}"] / 1000 for each in _PERCENTILES]
        axes.plot(range(len(_PERCENTILES)), values, label=result.title(system), color=_COLOURS.get(system), marker=".")
    axes.set_xticks(range(len(_PERCENTILES)), [f"{each:g}" for each in _PERCENTILES])
    axes.set_yscale("log")
    axes.set_xlabel("percentile")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"{workload_title(workload)}, {_clients_text(clients)}: latency")
    _legend(axes)


def _totals(result: Result, workload: str, clients: int, system: str, key: str) -> Spread:
    """One derived figure over the rounds."""
    column = next(each for each in COLUMNS if each.key == key)
    return spread(column.get(sample) or 0.0 for sample in result.rounds(workload, clients, system).values())


def _cpu(axes: Axes, result: Result, workload: str) -> None:
    """CPU per transaction by stage, stacked, at the largest number of clients."""
    clients = _clients(result, workload)[-1]
    systems = result.systems(workload, clients)
    bottoms = [0.0] * len(systems)
    for stage in STAGES:
        heights = []
        for system in systems:
            samples = result.rounds(workload, clients, system).values()
            values = [cpu_ms_per_transaction(sample, stage) or 0.0 for sample in samples]
            heights.append(spread(values).median)
        axes.bar(range(len(systems)), heights, 0.6, bottom=bottoms, label=stage, color=_STAGE_COLOURS[stage])
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(systems)), [result.title(system) for system in systems])
    _extremes(axes, [_totals(result, workload, clients, system, "cpu") for system in systems])
    axes.set_ylabel("CPU ms per transaction")
    axes.set_title(f"{workload_title(workload)}, {_clients_text(clients)}: where the CPU goes")
    _legend(axes)


def _ios(axes: Axes, result: Result, workload: str) -> None:
    """I/Os of the database node per transaction by kind, stacked, at the largest number of clients."""
    clients = _clients(result, workload)[-1]
    systems = result.systems(workload, clients)
    bottoms = [0.0] * len(systems)
    for key, colour in _IO_COLOURS.items():
        column = next(each for each in COLUMNS if each.key == key)
        rounds = [list(result.rounds(workload, clients, system).values()) for system in systems]
        heights = [median_of(samples, column) or 0.0 for samples in rounds]
        axes.bar(range(len(systems)), heights, 0.6, bottom=bottoms, label=column.heading, color=colour)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(systems)), [result.title(system) for system in systems])
    _extremes(axes, [_totals(result, workload, clients, system, "ios") for system in systems])
    axes.set_ylabel("per transaction")
    axes.set_title(f"{workload_title(workload)}, {_clients_text(clients)}: I/Os of the database node")
    _legend(axes)


_KINDS: Final[dict[str, Callable[[Axes, Result, str], None]]] = {
    "tps": _throughput,
    "latency": _latency,
    "cpu": _cpu,
    "ios": _ios,
}
