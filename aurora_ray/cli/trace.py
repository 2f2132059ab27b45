"""`aurora trace`: what took how long, from the span files of the data directory; no fleet needs to run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import write_json
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.telemetry.spanreader import StoredSpan
    from aurora_ray.telemetry.waterfall import Row, Summary

BAR_COLUMNS = 32
HIDDEN = ("aurora.key",)
_LIST_WIDTHS = {"trace": 12, "when": 19, "what": 8, "took": 8, "spans": 5}

app = typer.Typer(no_args_is_help=True, help="Show where the time of a failover went.", rich_markup_mode=None)

All = Annotated[bool, typer.Option("--all", "-a", help="Not only failovers.")]


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", epilog="Example: aurora trace list --all -n 50")(list_traces)
    app.command(epilog="Example: aurora trace show            (the newest failover)")(show)
    parent.add_typer(app, name="trace")


def list_traces(
    every: All = False,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="The newest N.")] = 20,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """List failovers, newest last."""
    summaries = [summary for summary, _ in _traces(data_dir, every=every)][-count:]
    if json:
        write_json([summary.to_json() for summary in summaries])
    else:
        _print_list(summaries)


def show(
    trace: Annotated[
        str, typer.Argument(metavar="[ID]", help="A trace's id or its beginning.", show_default=False)
    ] = "",
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Draw a trace as a waterfall; without ID the newest failover."""
    from aurora_ray.telemetry.waterfall import waterfall

    found = [one for one in _traces(data_dir, every=bool(trace)) if one[0].trace_id.startswith(trace.lower())]
    if not found:
        raise UsageError(f"there is no trace {trace}: see `aurora trace list --all`" if trace else _NOTHING)
    if trace and len(found) > 1:
        raise UsageError(f"{len(found)} traces begin with {trace}: give more of the id")
    summary, spans = found[-1]
    rows = waterfall(spans)
    if json:
        write_json({**summary.to_json(), "rows": [row.to_json() for row in rows]})
    else:
        _print_waterfall(summary, rows)


_NOTHING = "no failover was traced yet: try `aurora chaos kill writer`, or see `aurora trace list --all`"


def _traces(data_dir: Path | None, *, every: bool) -> list[tuple[Summary, list[StoredSpan]]]:
    from aurora_ray.telemetry.spanreader import read_traces
    from aurora_ray.telemetry.waterfall import FAILOVER, summarise

    directory = options.settings(data_dir).telemetry_dir
    traces = [(summarise(spans), spans) for spans in read_traces(directory).values()]
    return [trace for trace in traces if every or trace[0].name == FAILOVER]


def _print_list(summaries: list[Summary]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("trace", "when", "what", "took", "spans", "why"):
        why = column == "why"
        table.add_column(
            column,
            justify="right" if column in ("took", "spans") else "left",
            no_wrap=True,
            min_width=None if why else _LIST_WIDTHS[column],
            overflow="ellipsis",
        )
    for one in summaries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.start_ns / 1e9))
        what = " ".join(word for word in (one.name, str(one.attributes.get("aurora.cluster", ""))) if word)
        why = str(one.attributes.get("aurora.why", "")) if one.whole else "(its beginning was not written)"
        table.add_row(one.trace_id[:12], when, what, _duration(one.duration_ms), str(one.span_count), why)
    Console(highlight=False).print(table if summaries else _NOTHING)


def _print_waterfall(summary: Summary, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.start_ns / 1e9))
    console.print(
        Text.assemble((summary.name, "bold"), f"  {when}  {_duration(summary.duration_ms)}  {summary.trace_id}")
    )
    console.print(Text(_words(summary.attributes), style="dim"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0), expand=console.is_terminal)
    widest = max((2 * row.depth + len(row.span.name if row.span else "·") for row in rows), default=1)
    table.add_column(no_wrap=True, min_width=widest)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, min_width=BAR_COLUMNS)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    total_ms = max((row.offset_ms + row.duration_ms for row in rows), default=0.0)
    for row in rows:
        span = row.span
        failed = span is not None and span.error is not None
        name = Text("  " * row.depth + (span.name if span is not None else "·"), style="red" if failed else "")
        words = "nothing recorded" if span is None else _words(span.attributes, span.error)
        style = "dim" if span is None else "red" if failed else "cyan"
        bar = Text(_bar(row, total_ms), style=style)
        table.add_row(name, f"+{_duration(row.offset_ms)}", _duration(row.duration_ms), bar, Text(words, style="dim"))
    console.print(table)


def _bar(row: Row, total_ms: float) -> str:
    if total_ms <= 0:
        return ""
    start = min(BAR_COLUMNS - 1, int(row.offset_ms / total_ms * BAR_COLUMNS))
    length = max(1, round(row.duration_ms / total_ms * BAR_COLUMNS))
    return " " * start + ("░" if row.span is None else "█") * min(length, BAR_COLUMNS - start)


def _duration(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"


def _words(attributes: dict[str, Any], error: str | None = None) -> str:
    words = [f"{k.removeprefix('aurora.')}={v}" for k, v in attributes.items() if k not in HIDDEN and not _long(v)]
    return " ".join([*([error] if error else []), *words])


def _long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 80
