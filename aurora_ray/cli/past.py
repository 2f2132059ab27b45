"""Commands for a cluster's past: clone, as-of, backtrack, mark."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import progress, write_differences, write_json, write_line
from aurora_ray.errors import UsageError

AS_OF_S = 600.0

Moment = Annotated[
    str,
    typer.Option(metavar="T", help="A time (2026-11-29T10:00:00Z), a distance (-5m), lsn:N or mark:LABEL."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("clone", epilog="Example: aurora clone demo test --at -5m")(clone)
    app.command(
        "as-of",
        epilog="Example: aurora as-of demo -5m --sql 'SELECT count(*) FROM accounts'      "
        "aurora as-of demo --diff -5m -1m accounts",
        context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},  # -5m is a moment
    )(as_of)
    app.command(
        "backtrack",
        epilog="Example: aurora backtrack demo --to -5m      aurora backtrack demo --window 48h",
    )(backtrack)
    app.command("mark", epilog="Example: aurora mark demo before-upgrade")(mark)


def clone(  # noqa: PLR0917  (the command's options)
    source: Annotated[str, typer.Argument(metavar="SRC", help="The cluster to clone.")],
    name: Annotated[str, typer.Argument(metavar="DST", help="The name of the new one.")],
    at: Moment = "",
    memory: Annotated[
        int,
        typer.Option(
            metavar="SIZE",
            parser=options.parse_bytes,
            help="The size of its writer, as 2GiB; by default the source's, if there is room for that.",
            show_default=False,
        ),
    ] = 0,
    engine_version: Annotated[
        str | None, typer.Option(metavar="V", help="Another minor version of the same series, as 18.4.")
    ] = None,
    bin_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="The bin directory of the engine to use.")] = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Make a new, independent cluster with all that another one has, or had at a moment; print its DSN.

    Nothing is copied: the two share files until either changes them. Parameters, size and password are the source's.
    """
    path = str(bin_dir.absolute()) if bin_dir is not None else None
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"cloning {source}", quiet=json) as say:
        done = fleet.clone(
            source, name, at, memory_bytes=memory, version=engine_version, bin_dir=path, timeout_s=timeout_s
        )
        status = fleet.wait_available(name, timeout_s=timeout_s, progress=say)
    dsn = status["endpoints"]["cluster"]["dsn"]
    if json:
        write_json({**done, "endpoints": status["endpoints"], "seconds": round(time.monotonic() - started_s, 3)})
    else:
        write_line(f"{name} is {source} as of {done['time']} (lsn:{done['lsn']})\n{dsn}")


def as_of(  # noqa: PLR0917  (the command's options)
    name: Annotated[str, typer.Argument(metavar="NAME", help="The cluster.")],
    moment: Annotated[str, typer.Argument(metavar="T", help="As for `clone --at`.", show_default=False)] = "",
    sql: Annotated[str | None, typer.Option(metavar="SQL", help="Run this, and end.")] = None,
    diff: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="T1 T2 TABLE", help="Print which rows came, went and changed from T1 to T2, and end."),
    ] = None,
    database: Annotated[str, typer.Option(metavar="DB", help="Where the table of --diff is.", show_default=False)] = "",
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Look at a cluster as it was at a moment: print the DSN of a read-only copy, or the answer to --sql.

    The copy is gone ten minutes later, once nobody is connected; with --sql and --diff, at once.
    """
    if diff is not None:
        if moment or sql is not None:
            raise UsageError("--diff says its two moments itself: as-of NAME --diff T1 T2 TABLE, without T and --sql")
        _compare(name, diff, database, data_dir, json=json, timeout_s=timeout_s)
        return
    if not moment:
        raise UsageError("say as of what moment, for example -5m, or --diff T1 T2 TABLE")
    fleet, started_s = options.find(data_dir), time.monotonic()
    quiet = json or sql is not None
    with progress(f"opening {name} as of {moment}", quiet=quiet) as say:
        done = fleet.clone(name, "", moment, temporary_s=AS_OF_S, timeout_s=timeout_s)
        try:
            status = fleet.wait_available(done["cluster"], timeout_s=timeout_s, progress=say)
            answer = None if sql is None else _answer(status, sql)
        finally:
            if sql is not None:
                fleet.delete(done["cluster"], declare_only=True, timeout_s=timeout_s)
    done = {**done, "seconds": round(time.monotonic() - started_s, 3)}
    if answer is not None:
        if json:
            write_json({**answer, **done})
        else:
            for row in answer["rows"]:
                write_line("\t".join("" if value is None else str(value) for value in row))
    elif json:
        write_json({**done, "endpoints": status["endpoints"]})
    else:
        write_line(f"{name} as of {done['time']} (lsn:{done['lsn']})\n{status['endpoints']['cluster']['dsn']}")


def _compare(  # noqa: PLR0917
    name: str, diff: tuple[str, str, str], database: str, data_dir: Path | None, json: bool, timeout_s: float
) -> None:
    from aurora_ray.cli.clusters import way_in
    from aurora_ray.engine.registry import adapter

    fleet, (*moments, table) = options.find(data_dir), diff
    made: list[dict[str, Any]] = []
    try:
        with progress(f"opening {name} as of {moments[0]} and of {moments[1]}", quiet=json) as say:
            for moment in moments:  # both start at the same time; what is made is ended, whatever the second says
                done = fleet.clone(name, "", moment, temporary_s=AS_OF_S, timeout_s=timeout_s)
                made.append(done)
            seen = [fleet.wait_available(each["cluster"], timeout_s=timeout_s, progress=say) for each in made]
        before, after = (way_in(status, status["endpoints"]["cluster"]["dsn"]) for status in seen)
        rows = adapter(seen[0]["engine"]).client.differences(before, after, table, database)
        write_differences(rows, {"cluster": name, "table": table, "from": made[0], "to": made[1]}, as_json=json)
    finally:
        for each in made:
            fleet.delete(each["cluster"], declare_only=True, timeout_s=timeout_s)


def _answer(status: dict[str, Any], sql: str) -> dict[str, Any]:
    from aurora_ray.cli.clusters import way_in
    from aurora_ray.engine.registry import adapter

    rows = adapter(status["engine"]).client.query(way_in(status, status["endpoints"]["cluster"]["dsn"]), sql)
    return {"columns": rows.columns, "rows": rows.rows, "rowcount": rows.count}


def backtrack(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    to: Annotated[str, typer.Option("--to", metavar="T", help="As for `clone --at`.", show_default=False)] = "",
    window: Annotated[
        str, typer.Option(metavar="TIME", help="Keep history for so long from now on, as 48h.", show_default=False)
    ] = "",
    window_log: Annotated[
        int,
        typer.Option(
            metavar="SIZE",
            parser=options.parse_bytes,
            help="... and up to so much redo a copy of a protection group, as 4GiB.",
            show_default=False,
        ),
    ] = 0,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Rewind a cluster in place: its sessions are cut, its endpoints stay, its data is as it was at a moment.

    What it was until now is kept as well, for as long as its window says: going to a later moment undoes a rewind.
    """
    fleet, started_s = options.find(data_dir), time.monotonic()
    if not to and not window and not window_log:
        raise UsageError("say to what moment, as --to -5m, or for how long history shall be kept, as --window 48h")
    done: dict[str, Any] = {}
    if window or window_log:
        from aurora_ray.control.model.moments import duration_s

        done |= fleet.set_window(name, duration_s(window) if window else 0, window_log)
    if to:
        with progress(f"rewinding {name}", quiet=json) as say:
            done |= fleet.backtrack(name, to, timeout_s=timeout_s)
            fleet.wait_available(name, timeout_s=timeout_s, progress=say)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
        return
    if to:
        write_line(f"{name} is as it was at {done['time']} (lsn:{done['lsn']})")
        write_line(f"to undo this: aurora backtrack {name} --to {done['undo']}")
    else:
        write_line(f"{name} keeps history for {done['window_s']} s, up to {done['window_log_bytes'] >> 20} MiB of redo")


def mark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The cluster.")],
    label: Annotated[str, typer.Argument(metavar="LABEL", help="What the present shall be called.")],
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 30.0,
) -> None:
    """Give the present a name, for mark:LABEL in place of a time."""
    done = options.find(data_dir).mark(name, label, timeout_s=timeout_s)
    if json:
        write_json(done)
    else:
        write_line(f"mark:{label} is {done['time']} (lsn:{done['lsn']})")
