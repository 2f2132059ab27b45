"""RESULTS.md, written from JSON files alone: no measured figure in it is typed by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.derived import COLUMNS, columns
from benchmarks.images import images
from benchmarks.markdown import table
from benchmarks.other_results import other_section
from benchmarks.results import Result
from benchmarks.statistics import spread
from benchmarks.suites import SUITES
from benchmarks.tables import OURS, heading, median_of, number, ratio_to, remarks, warnings
from benchmarks.workloads import CATALOGUE, workload_title

_INTRODUCTION = """\
# Results

Written by `make bench-report`; every measured figure comes from the JSON files named, which hold the raw figures of
every turn, the machine, versions, settings, seed and commit. `make bench-quick`, `make bench` and `make bench-full`
measure anew.

## How it is measured

All systems of a run are one binary on one machine. aurora-ray is a fleet as a user has it: made by `aurora up` with the
product's defaults, loaded and measured through its cluster endpoint; what goes past that says so in its name. The other
servers have the memory that an instance of that fleet has, and the settings that follow from it
(`engine/postgres/sizes.py`), and begin with the same data. They all stay up, and take turns: A B C A B C. Before each
turn dirty pages are written back, so that nobody pays for a neighbour, and there is a warm-up. Throughput is the median
of the rounds with the lowest and highest of them.
A **ratio** is the median of the ratios within each round; where the ratios lie on both sides of 1 and differ
by more than their median does from 1, or there is one round only, no comparison is made. Latencies are HDR histograms
of all transactions; where the rate is fixed, they count from when a transaction was due (no coordinated omission).

| system | what it is |
|---|---|
| aurora-ray | what `aurora up` starts: six storage nodes in three zones, a writer, an endpoint; commits at 4 of 6 |
| stock, ANY 4 of 6 standbys | the same durability by PostgreSQL itself: four of six standbys have a commit on disk |
| stock, local disk | one server, one disk, no copy; what is committed is lost with the disk |
| stock, fsync=off | no durability at all: how fast the engine could be if it cost nothing |

On one machine all processes share its cores, so CPU decides where on six machines the network would; the tables of what
a transaction takes say more about a real cluster than the throughput does.

### Images of pages

After each checkpoint PostgreSQL writes the whole page into its WAL at the page's first change, since a crash could
leave half a page on the disk. A volume that takes a page whole or not at all never needs that. So there are two
workloads of the same transactions. **`tpcb`** begins right after a checkpoint: each page's image is paid as it comes,
which is what a server does in the first minutes after every `checkpoint_timeout` (5 minutes here, the default), and
all the time if its data is large beside what it changes between checkpoints. **`tpcb-warm`** has all images behind it
and no checkpoint before it: what a server comes near at the end of the interval, on data so small that every page was
changed before. The truth for stock PostgreSQL lies in between, and the size of its data decides where; the runs here
are so short that stock pays nothing for writing the checkpoint itself, in either. aurora-ray has its
usual checkpoints in both, as often as the settings below say.

### I/Os of the database node

The paper on Aurora (Verbitski et al., SIGMOD 2017, Table 1) counts the I/Os of the database node per transaction,
six-fold sends included: 0.95 for Aurora and 7.4 for MySQL mirrored on EBS. Here these are the TCP segments with data
that the database node sends to its copies, and the writes (calls) of WAL and pages to its own disk. The local files of
aurora-ray are a cache that nothing waits for and are not counted.

### What reaches the disk

The bytes that the disk under all systems took during a load and in the moments after it, when everything dirty in the
operating system's cache is written back. What stays dirty in the buffers of an engine until its next checkpoint is not
in it, and neither is what storage nodes compact later: for stock it is little more than the WAL.
"""


def write(paths: Sequence[Path], target: Path, charts_dir: Path) -> None:
    """The report on all these results, in the order given, and their charts."""
    parts = [_INTRODUCTION]
    for path in paths:
        values = json.loads(path.read_text())
        if values.get("suite") in SUITES:
            result = Result.load(path)
            charts = draw(result, path.stem, charts_dir)
            parts += _section(result, path, charts, target.parent)
        else:
            parts += other_section(values, path, charts_dir, target.parent)
    target.write_text("\n".join(parts).rstrip() + "\n")


def _section(result: Result, path: Path, charts: list[Path], base: Path) -> list[str]:
    source = os.path.relpath(path, base)
    lines = [f"## {path.stem}", "", f"{heading(result)}. Raw figures: [{source}]({source}).", ""]
    lines += [f"**Caution:** {line}.\n" for line in warnings(result)]
    lines += [f"**Not run:** {line}.\n" for line in result.not_run]
    lines += ["### At a glance", "", "Transactions per second, medians; below, the ratio.", "", *_glance(result)]
    lines += [*_ios(result), *_images(result)]
    for chart in charts:
        vector = os.path.relpath(chart.with_suffix(".svg"), base)
        lines += [f"![{chart.stem}]({vector})", ""]
    if result.figures:
        lines += ["### Opening, cold reads, bulk load", "", *_figures(result)]
    for workload, clients in result.groups():
        lines += [f"### {workload_title(workload)}, {clients} client{'s' if clients > 1 else ''} (`{workload}`)", ""]
        lines += _throughput(result, workload, clients)
        lines += _costs(result, workload, clients)
    return [*lines, "### Settings", "", *_settings(result)]


def _systems(result: Result) -> list[str]:
    return list(dict.fromkeys(sample.system for sample in result.samples))


def _glance(result: Result) -> list[str]:
    systems = _systems(result)
    rows = []
    for workload, clients in result.groups():
        cells, ratios = [], []
        for system in systems:
            samples = result.rounds(workload, clients, system).values()
            cells.append(number(spread(sample.tps for sample in samples).median, 0) if samples else "")
            if system != OURS:
                ratios.append(str(ratio_to(result, workload, clients, system)) if samples else "")
            else:
                ratios.append("")
        rows.append([f"{workload}, {clients}", *cells])
        if OURS in systems:
            rows.append(["aurora-ray / that", *ratios])
    return table(["workload, clients", *(result.title(system) for system in systems)], rows)


def _ios(result: Result) -> list[str]:
    systems = _systems(result)
    column = next(each for each in COLUMNS if each.key == "ios")
    rows = []
    for workload, clients in result.groups():
        if CATALOGUE[workload].reads_only:
            continue
        values = [median_of(list(result.rounds(workload, clients, each).values()), column) for each in systems]
        rows.append([f"{workload}, {clients}", *(number(value, column.digits) for value in values)])
    if not rows:
        return []
    head = ["workload, clients", *(result.title(system) for system in systems)]
    return ["### I/Os of the database node per transaction", "", *table(head, rows)]


def _images(result: Result) -> list[str]:
    found = images(result)
    if not found:
        return []
    rows = [
        [
            f"{result.title(i.system)}, {i.clients} clients",
            *(f"{x:.2f}" for x in (i.from_checkpoint, i.paid, i.long_run)),
        ]
        for i in found
    ]
    words = (
        "The last column is what a long run has at this throughput and scale with a checkpoint every five minutes, of "
        "the pages of `pgbench_accounts` (computed from the number of pages; see `benchmarks/images.py`)."
    )
    head = ["page images per transaction", "measured in `tpcb`", "measured in `tpcb-warm`", "long run, estimate"]
    return ["### Which of the two is stock PostgreSQL's long run?", "", words, "", *table(head, rows)]


def _throughput(result: Result, workload: str, clients: int) -> list[str]:
    rows = []
    for system in result.systems(workload, clients):
        samples = list(result.rounds(workload, clients, system).values())
        tps = spread(sample.tps for sample in samples)
        latencies = [spread(sample.latency_us[p] for sample in samples).median / 1000 for p in ("p50", "p99", "p99.9")]
        ratio = "" if system == OURS else str(ratio_to(result, workload, clients, system))
        limits = f"{tps.low:,.0f} to {tps.high:,.0f}"
        rows.append([result.title(system), number(tps.median, 0), limits, *(number(x, 1) for x in latencies), ratio])
    return table(["system", "tps", "lowest to highest", "p50 ms", "p99 ms", "p99.9 ms", "aurora-ray / that"], rows)


def _costs(result: Result, workload: str, clients: int) -> list[str]:
    systems = result.systems(workload, clients)
    by_system = [list(result.rounds(workload, clients, system).values()) for system in systems]
    rows = []
    for column in columns(workload):
        values = [median_of(samples, column) for samples in by_system]
        if any(value is not None for value in values):
            unit = f" ({column.unit})" if column.unit else ""
            rows.append([column.heading + unit, *(number(value, column.digits) for value in values)])
    return table(["medians", *(result.title(system) for system in systems)], rows)


def _figures(result: Result) -> list[str]:
    rows = []
    for name, system in dict.fromkeys((each.name, each.system) for each in result.figures):
        rounds = [each for each in result.figures if (each.name, each.system) == (name, system)]
        values = spread(each.value for each in rounds)
        limits = f"{number(values.low, 2)} to {number(values.high, 2)}" if values.count > 1 else ""
        value = f"{number(values.median, 2)} {rounds[0].unit}"
        rows.append([name, result.title(system), value, limits, remarks(rounds)])
    return table(["what", "system", "median", "lowest to highest", "remarks"], rows)


def _settings(result: Result) -> list[str]:
    """What was set anywhere, side by side."""
    systems = list(result.settings)
    names = sorted({name for values in result.settings.values() for name in values})
    rows = [[name, *(str(result.settings[system].get(name, "")) for system in systems)] for name in names]
    return table(["setting", *(result.title(system) for system in systems)], rows)
