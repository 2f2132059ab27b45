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
    from aurora_ray.telemetry.waterfall import Row, Stage, Summary

BAR_COLUMNS = 32
NOBODY = "nothing recorded"
HIDDEN = ("aurora.key",)
VALUE_COLUMNS = 80  # of an attribute beside a bar

app = typer.Typer(
    no_args_is_help=True,
    help="Show where the time of a failover went, or of a step of a capacity.",
    rich_markup_mode=None,
)

All = Annotated[
    bool,
    typer.Option("--all", "-a", help="Not only failovers. Sampled flushes are one line at the end; --json has each."),
]
Capacity = Annotated[
    bool, typer.Option("--capacity", "-c", help="Steps and resumes of serverless clusters in place of failovers.")
]


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", epilog="Example: aurora trace list --all -n 50")(list_traces)
    app.command(epilog="Example: aurora trace show            (the newest failover)")(show)
    parent.add_typer(app, name="trace")


def list_traces(
    every: All = False,
    capacity: Capacity = False,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="The newest N.")] = 20,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """List failovers, and changes of the primary region, newest last."""
    from aurora_ray.telemetry.waterfall import SAMPLED

    summaries = [summary for summary, _ in _traces(data_dir, every=every, capacity=capacity)]
    if json:
        write_json([summary.to_json() for summary in summaries[-count:]])
        return
    _print_list([one for one in summaries if one.name != SAMPLED][-count:], _nothing(every, capacity))
    _print_sampled([one for one in summaries if one.name == SAMPLED])


def show(
    trace: Annotated[
        str, typer.Argument(metavar="[ID]", help="A trace's id or its beginning.", show_default=False)
    ] = "",
    capacity: Capacity = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Draw a trace as a waterfall; without ID the newest failover. Many alike are one line; --json has them all.

    What regions on this machine did for each other is drawn together.
    """
    from aurora_ray.telemetry.waterfall import collapsed, stages, waterfall

    traces = _traces(data_dir, every=bool(trace), capacity=capacity)
    found = [one for one in traces if one[0].trace_id.startswith(trace.lower())]
    if not found:
        missing = f"there is no trace {trace}: see `aurora trace list --all`"
        raise UsageError(missing if trace else _nothing(every=False, capacity=capacity))
    if trace and len(found) > 1:
        raise UsageError(f"{len(found)} traces begin with {trace}: give more of the id")
    summary, spans = found[-1]
    rows = waterfall(spans if json else collapsed(spans))
    if json:
        parts = {"rows": [row.to_json() for row in rows], "stages": [stage.to_json() for stage in stages(spans)]}
        write_json({**summary.to_json(), **parts})
    else:
        _print_waterfall(summary, rows)
        _print_stages(stages(spans))


_NOTHING_AT_ALL = "nothing was traced yet"
_NOTHING = "no failover was traced yet: try `aurora chaos kill writer`, or see `aurora trace list --all`"
_NO_CAPACITY = "no step of a capacity was traced yet: try `aurora scale demo --min 0.5 --max 4`, and some load"


def _nothing(every: bool, capacity: bool) -> str:
    return _NOTHING_AT_ALL if every else _NO_CAPACITY if capacity else _NOTHING


def _traces(data_dir: Path | None, *, every: bool, capacity: bool) -> list[tuple[Summary, list[StoredSpan]]]:
    from aurora_ray.config import TELEMETRY_NAME
    from aurora_ray.ray.regions import directories
    from aurora_ray.telemetry.spanreader import read_traces
    from aurora_ray.telemetry.waterfall import CAPACITY, FAILOVER, TURN, summarise

    settings = options.settings(data_dir)
    places = {path / TELEMETRY_NAME for path in (settings.data_dir, *directories(settings.data_dir).values())}
    traces = [(summarise(spans), spans) for spans in read_traces(*sorted(places)).values()]
    names = CAPACITY if capacity else (FAILOVER, TURN)
    return [trace for trace in traces if every or trace[0].name in names]


def _print_list(summaries: list[Summary], nothing: str) -> None:
    console = _console()
    if not summaries:
        console.print(nothing)
        return
    widest = max(len(_took(one)) for one in summaries)
    console.print(f"{'trace':12}  {'when':19}  {'took':>{widest}}  {'spans':>5}  what and why")
    for one in summaries:
        cluster, why = (str(one.attributes.get(f"aurora.{key}", "")) for key in ("cluster", "why"))
        head = f"{one.trace_id[:12]}  {_when(one)}  {_took(one):>{widest}}  {one.span_count:>5}"
        _print_cut(console, head, f"  {one.name} {cluster}  {why}")


def _print_sampled(flushes: list[Summary]) -> None:
    if flushes:
        longest = max(flushes, key=lambda one: one.duration_ms)
        count = f"{len(flushes):,} sampled flush{'' if len(flushes) == 1 else 'es'}"
        took = f"the longest took {_duration(longest.duration_ms)}: {longest.trace_id[:12]}"
        _console().print(f"and {count} ({longest.name}), {took}", soft_wrap=True)


def _print_waterfall(summary: Summary, rows: list[Row]) -> None:
    console = _console()
    console.print(f"{summary.name}  {_when(summary)}  {_took(summary)}  {summary.trace_id}")
    console.print(_words(summary.attributes, summary.error), style="dim", soft_wrap=not console.is_terminal)
    widest = max((2 * row.depth + len(_name(row)) for row in rows), default=0)
    total_ms = max((row.offset_ms + row.duration_ms for row in rows), default=0.0)
    for row in rows:
        span = row.span
        name = f"{'  ' * row.depth + _name(row):{widest}}"
        times = f"+{_duration(row.offset_ms):>8} {_duration(row.duration_ms):>9}"
        words = NOBODY if span is None else _words(span.attributes, span.error, VALUE_COLUMNS)
        style = "dim" if span is None else "red" if span.error is not None else "cyan"
        _print_cut(console, f"{name}  {times}  ", f"{_bar(row, total_ms):{BAR_COLUMNS}} ", words, style=style)


def _print_stages(parts: list[Stage]) -> None:
    """Where the time went, the most first."""
    console = _console()
    widest = max((len(part.name or NOBODY) for part in parts), default=0)
    if parts:
        console.print("\nthe stages, each with all its time:")
    for part in parts:
        times = f"  {part.count} times" if part.count > 1 else ""
        console.print(f"{part.name or NOBODY:{widest}}  {_duration(part.total_ms):>9}{times}", soft_wrap=True)


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


def _took(summary: Summary) -> str:
    """A trace without its root lasted longer than what there is of it, or lasts still."""
    duration = _duration(summary.duration_ms)
    return duration if summary.whole else f"≥ {duration}, unfinished"


def _words(attributes: dict[str, Any], error: str | None = None, columns: int | None = None) -> str:
    """Values longer than `columns` are cut."""
    shown = {key.removeprefix("aurora."): str(value) for key, value in attributes.items() if key not in HIDDEN}
    words = [f"{key}={value if columns is None else _cut(value, columns)}" for key, value in shown.items()]
    return " ".join([*([error] if error else []), *words])


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"
