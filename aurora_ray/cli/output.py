"""What people and programs see: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from aurora_ray.compute.role import Role
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console, RenderableType

    from aurora_ray.engine.base import Difference

_GOOD, _BAD = ("available", "healthy", "following"), ("failed", "silent", "no process", "unreachable")
_STATE_STYLES = dict.fromkeys(_GOOD, "green") | dict.fromkeys(_BAD, "red")
MARKS_SHOWN = 5
_UNKNOWN = ("no process", "silent")  # nobody told what such a node has


class Results:
    """Standard output for the thread that made this; what other threads write to it goes to stderr.

    Ray reports what happens to its cluster on stdout, from a thread of its own, in the middle of somebody's JSON.
    """

    def __init__(self) -> None:
        self._stream, self._thread = sys.stdout, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream if threading.get_ident() == self._thread else sys.stderr, name)


def write_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def write_line(text: str) -> None:
    """One line of result, at once: with --watch, somebody at the other end of a pipe waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_differences(rows: Iterable[Difference], about: dict[str, Any], *, as_json: bool) -> None:
    """Rows that came (+), went (-) and changed (~), each as soon as it is there, and how many; or one JSON document of
    which never more than a row is in memory."""
    counts = {"came": 0, "went": 0, "changed": 0}
    signs = {"came": "+", "went": "-", "changed": "~"}
    out, separator = sys.stdout, ""
    if as_json:
        out.write(f'{json.dumps(about)[:-1]}, "rows": [')
    for row in rows:
        counts[row.kind] += 1
        if as_json:
            sides = {side: text for side, text in (("before", row.before), ("after", row.after)) if text is not None}
            out.write(f'{separator}\n{{"kind": "{row.kind}"' + "".join(f', "{s}": {t}' for s, t in sides.items()) + "}")
            separator = ","
        else:
            out.write(f"{signs[row.kind]} {' -> '.join(text for text in row[1:] if text is not None)}\n")
    out.write(f"], {json.dumps(counts)[1:]}\n" if as_json else "")
    if not as_json:
        out.write(", ".join(f"{count} {kind}" for kind, count in counts.items()) + "\n")


def error_line(text: str) -> None:
    """One sentence on stderr."""
    sys.stderr.write(f"aurora: {text.rstrip('.')}.\n")


def confirm_removal(question: str) -> None:
    """Asks. Raises AuroraError unless the answer is yes; no answer at all is a no."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        sys.stderr.write("\n")
        agreed = False
    if not agreed:
        raise AuroraError("nothing was removed")


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows what is going on: a line that changes on a terminal, nothing but the title elsewhere."""
    if quiet:
        yield lambda _: None
        return
    started_s = time.monotonic()
    if not sys.stderr.isatty():
        sys.stderr.write(f"{title} ...\n")
        yield lambda _: None
        sys.stderr.write(f"{title}: {time.monotonic() - started_s:.1f} s\n")
        return
    console = _console(stderr=True)
    with console.status(title) as status:
        yield lambda text: status.update(f"{title} [dim]{_first(text)}[/dim]")
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - started_s:.1f} s[/dim]")


def _first(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").splitlines()[0][:100] if text else ""


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, width=width)


def print_regions(found: dict[str, Any]) -> None:
    """A global cluster's regions for people."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble((found["global"], "bold"), f"  cluster {found['cluster']}  primary {found['primary']}")
    table = _table("region", "role", "state", "lag", "behind", "readers", "endpoint")
    lost = []
    for r in found["regions"]:
        lag = "-" if r["lag_ms"] is None else f"{r['lag_ms']:.0f} ms"
        behind = "-" if r["lag_bytes"] is None else size_text(r["lag_bytes"])
        ends = r["endpoints"] or {}
        where = (ends.get("cluster" if r["role"] == "primary" else "reader") or {}).get("dsn", "-")
        readers = "-" if r["readers"] is None else str(r["readers"])
        table.add_row(r["region"], r["role"], _state(r["state"]), lag, behind, readers, where)
        lost += [(r["region"], tail) for tail in r["lost_tails"]]
    tails = [
        Text(f"{region} keeps {size_text(tail['bytes'])} of redo that only it has, above LSN {tail['after_lsn']:,}")
        for region, tail in lost
    ]
    _console().print(Group(head, table, *tails), soft_wrap=not sys.stdout.isatty())


def print_status(status: dict[str, Any]) -> None:
    """A cluster's status for people."""
    _console().print(render_status(status), soft_wrap=not sys.stdout.isatty())


def render_status(status: dict[str, Any]) -> RenderableType:
    """Cluster, instances and storage nodes as tables."""
    from rich.console import Group
    from rich.text import Text

    volume, endpoint = status["volume"], status["endpoints"]["cluster"]
    head = Text.assemble(
        (status["cluster"], "bold"),
        f"  {status['engine']} {status['engine_version']}  ",
        _state(status["state"]),
        f"  {status['region']}  epoch {status['epoch']}  VDL {status['vdl']:,}  "
        f"{size_text(volume['bytes'])} of {size_text(volume['limit_bytes'])}"
        f" in {_count(volume['protection_groups'], 'protection group')}\n",
        (endpoint["dsn"], "cyan"),
        (f"\nmetrics {status['metrics']}" if status["metrics"] else "", "dim"),
    )
    instances = _table("instance", "role", "AZ", "state", "pid", "port", "memory", "lag")
    for i in status["instances"]:
        row = (i["id"], i["role"], i["az"], _state(i["state"]), str(i["pid"] or "-"), str(i["port"]))
        instances.add_row(*row, _memory(i), _lag(i))
    nodes = _table("storage node", "AZ", "state", "pid", "SCL", "behind", "disk")
    for n in status["storage_nodes"]:
        known = n["state"] not in _UNKNOWN
        behind = size_text(max(0, status["vdl"] - n["scl"])) if n["state"] == "healthy" else "-"
        row = (n["id"], n["az"], _state(n["state"]), str(n["pid"] or "-"), f"{n['scl']:,}" if known else "-", behind)
        nodes.add_row(*row, size_text(n["disk_bytes"]) if known else "-")
    reasons = [f"{trouble['subject']}: {trouble['sentence']}" for trouble in status.get("troubles", ())]
    reasons += [_fault(fault) for fault in status.get("faults", ())]
    reasons += [_replacement(n) for n in status["storage_nodes"] if n["replaces"]]
    reasons += [_capacity(status["capacity"])] if status.get("capacity") else []
    reasons += [_past(status["backtrack"])] if status.get("backtrack") else []
    reasons += [_backup(status["backup"])] if status.get("backup") else []
    reasons += [f"{i['id']}: {i['reason']}" for i in status["instances"] if i["reason"]] + status["notes"]
    return Group(head, instances, nodes, *(Text(reason, style="yellow") for reason in reasons))


def _capacity(capacity: dict[str, Any]) -> str:
    bounds = f"{capacity['min']:g} to {capacity['max']:g} ACU"
    if capacity["paused_since"]:
        return f"serverless, {bounds}: paused, whoever connects wakes it"
    pauses = capacity["pause_after_s"]
    awake = f"; awake: {', '.join(capacity['awake'])}" if capacity["awake"] else ""
    idle = f"; paused after {pauses:g} s without use{awake}" if pauses else ""
    why = capacity["reason"] or "it has just begun"
    return f"serverless, {bounds}: {capacity['acu']:g} ACU now ({why}){idle}{_limits(capacity['limits'])}"


def _limits(limits: dict[str, dict[str, Any]]) -> str:
    """What the kernel does not hold an engine to, where it does not."""
    free = [
        words
        for words, key in (("CPU", "cpu"), ("memory", "memory_bytes"))
        if any(not each[key] for each in limits.values())
    ]
    return f"; no control group bounds its {' and '.join(free)} here" if free else ""


def _past(known: dict[str, Any]) -> str:
    rewound = f"; rewound {_count(known['rewound'], 'time')}" if known["rewound"] else ""
    marks = f"; marks: {', '.join(mark['label'] for mark in known['marks'][-MARKS_SHOWN:])}" if known["marks"] else ""
    reach = f"from {known['earliest']} to {known['latest']} (lsn:{known['latest_lsn']})"
    return f"can be rewound to any moment {reach}{rewound}{marks}"


def _backup(backup: dict[str, Any]) -> str:
    if not backup["time"]:
        return f"backup to {backup['url']}: nothing can be restored yet"
    lag = f", {backup['lag_s']:.0f} s and {size_text(backup['lag_bytes'])} behind" if backup["lag_bytes"] else ""
    first = "" if backup["restorable_from_lsn"] else "; nothing can be restored before its first image is done"
    return f"backup to {backup['url']}: all up to {backup['time']} (lsn:{backup['lsn']}){lag}{first}"


def _memory(instance: dict[str, Any]) -> str:
    """What it has, or is declared to have; and what it gets when its engine starts next."""
    now, later = instance["memory_bytes"] or instance["declared_memory_bytes"], instance["next_memory_bytes"]
    return (size_text(now) if now else "-") + (f" ({size_text(later)} at the next start)" if later else "")


def _lag(instance: dict[str, Any]) -> str:
    """Of a reader that follows."""
    lag_ms = instance["lag_ms"] if Role(instance["role"]).traits.reads else None
    return "-" if lag_ms is None else f"{lag_ms:g} ms"


def _fault(fault: dict[str, Any]) -> str:
    until = "until healed" if fault["for_s"] is None else f"for {fault['for_s']:.0f} more s"
    return f"chaos: {fault['fault']} of {fault['target'].replace(':', ' ')}, {until}"


def _replacement(node: dict[str, Any]) -> str:
    copy = node["copy"]
    filled = f": {size_text(copy['bytes_copied'])} of {size_text(copy['bytes_total'])} copied" if copy else ""
    speed = f", {copy['mb_per_s']} MB/s" if copy and copy["running"] else ""
    return f"{node['id']} takes the place of {node['replaces']}{filled}{speed}"


def print_clusters(clusters: list[dict[str, Any]]) -> None:
    """All clusters, a row each."""
    table = _table("cluster", "engine", "state", "instances", "port")
    for c in clusters:
        engine = f"{c['engine']} {c['engine_version']}"
        table.add_row(c["cluster"], engine, _state(c["state"]), str(c["instances"]), str(c["port"]))
    _console().print(table)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Plain rows under their titles."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    _console(width=None if sys.stdout.isatty() else 200).print(table)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("pid", "port", "memory", "lag", "SCL", "behind", "disk") else "left"
        )
    return table


def _state(state: str) -> Any:
    from rich.text import Text

    return Text(state, style=_STATE_STYLES.get(state, "yellow"))


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size_text(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
