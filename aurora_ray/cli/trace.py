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

    from rich.console import Console

    from aurora_ray.telemetry.spanreader import StoredSpan
    from aurora_ray.telemetry.waterfall import Row, Summary

BAR_COLUMNS = 32
HIDDEN = ("aurora.key",)

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
    """Draw a trace as a waterfall; without ID the newest failover. Many alike are one line; --json has them all."""
    from aurora_ray.telemetry.waterfall import collapsed, waterfall

    found = [one for one in _traces(data_dir, every=bool(trace)) if one[0].trace_id.startswith(trace.lower())]
    if not found:
        raise UsageError(f"there is no trace {trace}: see `aurora trace list --all`" if trace else _NOTHING)
    if trace and len(found) > 1:
        raise UsageError(f"{len(found)} traces begin with {trace}: give more of the id")
    summary, spans = found[-1]
    rows = waterfall(spans if json else collapsed(spans))
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
    console = _console()
    console.print(f"{'trace':12}  {'when':19}  {'took':>8}  {'spans':>5}  what and why" if summaries else _NOTHING)
    for one in summaries:
        cluster = str(one.attributes.get("aurora.cluster", ""))
        why = str(one.attributes.get("aurora.why", "")) if one.whole else "(its beginning was not written)"
        head = f"{one.trace_id[:12]}  {_when(one)}  {_duration(one.duration_ms):>8}  {one.span_count:>5}"
        _print_cut(console, head, f"  {one.name} {cluster}  {why}")


def _print_waterfall(summary: Summary, rows: list[Row]) -> None:
    console = _console()
    console.print(f"{summary.name}  {_when(summary)}  {_duration(summary.duration_ms)}  {summary.trace_id}")
    console.print(_words(summary.attributes, summary.error), style="dim")
    widest = max((2 * row.depth + len(_name(row)) for row in rows), default=0)
    total_ms = max((row.offset_ms + row.duration_ms for row in rows), default=0.0)
    for row in rows:
        span = row.span
        name = f"{'  ' * row.depth + _name(row):{widest}}"
        times = f"+{_duration(row.offset_ms):>8} {_duration(row.duration_ms):>9}"
        words = "nothing recorded" if span is None else _words(span.attributes, span.error)
        style = "dim" if span is None else "red" if span.error is not None else "cyan"
        _print_cut(console, f"{name}  {times}  ", f"{_bar(row, total_ms):{BAR_COLUMNS}} ", words, style=style)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _print_cut(console: Console, head: str, middle: str, tail: str = "", *, style: str = "") -> None:
    """One line, cut at the terminal's edge; whole where there is no terminal."""
    from rich.text import Text

    line = Text.assemble(head, (middle, style), (tail, "dim"))
    if console.is_terminal:
        line.truncate(console.width, overflow="ellipsis")
    console.print(line, soft_wrap=True)


def _name(row: Row) -> str:
    return row.span.name if row.span is not None else "·"


def _when(summary: Summary) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.start_ns / 1e9))


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
