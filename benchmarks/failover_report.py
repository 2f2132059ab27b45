"""Tables and charts of failover results; every figure is computed from the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from benchmarks.failover_peers import KINDS
from benchmarks.failover_stages import OURS, REST, STOCK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.failover import FailoverResult, Turn

_COLOURS: Final = {"aurora": "#1f6feb", "reader": "#8250df", "stock": "#8b949e"}
_STAGES: Final = tuple(dict.fromkeys((*OURS.values(), *STOCK, REST)))
_SIZE: Final = (8, 4.2)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above (nearest rank): one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def show(result: FailoverResult, console: Console) -> None:
    """Outages, and where the time went."""
    for table in (_outages(result), *(_stages(result, kind) for kind in result.kinds)):
        console.print(table)
    if lost := sum(turn.lost for turn in result.turns):
        console.print(f"LOST: {lost} acknowledged rows are missing", style="bold red")
    if result.load_averages and max(result.load_averages) > 4 * float(result.machine["cores_usable"] or 1):
        console.print("CAUTION: the machine was busy with other things", style="bold yellow")


def _outages(result: FailoverResult) -> Table:
    title = f"outage as the client had it, s ({result.clients} clients of TPC-B, scale {result.scale})"
    table = Table(title=title, title_justify="left")
    for name in ("fault", "database", "n", "p50", "p90", "p99", "max", "tps before", "traced / outage"):
        table.add_column(name, justify="left" if name in ("fault", "database") else "right")
    for kind in result.kinds:
        for peer in result.peers:
            turns = result.of(peer, kind)
            if not turns:
                continue
            outages = [turn.outage_s for turn in turns]
            figures = [f"{percentile(outages, share):.2f}" for share in (0.5, 0.9, 0.99)]
            tps = f"{median(turn.load_tps for turn in turns):,.0f}"
            row = (KINDS[kind], result.titles[peer], str(len(turns)), *figures, f"{max(outages):.2f}", tps)
            table.add_row(*row, _coverage(turns))
    return table


def _coverage(turns: Sequence[Turn]) -> str:
    """The range of what the spans account for, as a share of the client's outage."""
    shares = [turn.account.covered_s / turn.outage_s for turn in turns if turn.account is not None]
    return f"{min(shares):.0%} to {max(shares):.0%}" if shares else "-"


def _stages(result: FailoverResult, kind: str) -> Table:
    table = Table(title=f"{KINDS[kind]}: where the time goes, median (highest), s", title_justify="left")
    table.add_column("stage")
    peers = [peer for peer in result.peers if result.of(peer, kind)]
    for peer in peers:
        table.add_column(result.titles[peer], justify="right")
    for stage in _STAGES:
        cells = [_stage_of(result.of(peer, kind), stage) for peer in peers]
        if any(cells):
            table.add_row(stage, *(f"{median(c):.2f} ({max(c):.2f})" if c and max(c) > 0 else "" for c in cells))
    return table


def _stage_of(turns: Sequence[Turn], stage: str) -> list[float]:
    accounts = [turn.account.stages_s for turn in turns if turn.account is not None]
    return [stages.get(stage, 0.0) for stages in accounts] if any(stage in stages for stages in accounts) else []


def draw(result: FailoverResult, stem: str, directory: Path) -> list[Path]:
    """The charts, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = stem  # the same result gives the same file
    drawn = []
    directory.mkdir(parents=True, exist_ok=True)
    for name, paint in (("outages", _paint_outages), ("stages", _paint_stages)):
        canvas = Figure(figsize=_SIZE, layout="constrained")
        paint(canvas.subplots(), result)
        drawn.append(directory / f"{stem}-{name}.svg")
        canvas.savefig(drawn[-1], metadata={"Date": None})
    return drawn


def _paint_outages(axes: Axes, result: FailoverResult) -> None:
    """The share of failovers that took no longer: every one of them is a step."""
    for kind, style in zip(result.kinds, ("-", "--", ":", "-."), strict=False):
        for peer in result.peers:
            outages = sorted(turn.outage_s for turn in result.of(peer, kind))
            if outages:
                shares = [(number + 1) / len(outages) for number in range(len(outages))]
                label = f"{result.titles[peer]}: {KINDS[kind]}"
                axes.step(outages, shares, style, where="post", label=label, color=_COLOURS.get(peer))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("outage as the client had it, s")
    axes.set_ylabel("share of failovers")
    axes.set_title("Losing the writer under load")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _paint_stages(axes: Axes, result: FailoverResult) -> None:
    """Medians of the stages, one on the other."""
    bars = [(peer, kind) for kind in result.kinds for peer in result.peers if result.of(peer, kind)]
    lefts = [0.0] * len(bars)
    import matplotlib as mpl

    colours = mpl.colormaps["tab20"]
    for number, stage in enumerate(_STAGES):
        widths = [median(_stage_of(result.of(*bar), stage) or [0.0]) for bar in bars]
        if any(widths):
            axes.barh(range(len(bars)), widths, 0.6, left=lefts, label=stage, color=colours(number % 20))
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [f"{result.titles[peer]}\n{kind}" for peer, kind in bars])
    axes.invert_yaxis()
    axes.set_xlabel("s (medians)")
    axes.set_title("Where the time of a failover goes")
    axes.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
