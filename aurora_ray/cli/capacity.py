"""The commands for serverless capacity, and for what a cluster has used."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import progress, write_json, write_line
from aurora_ray.errors import UsageError

NO_IDLE_SESSIONS: Final = (
    "open sessions always keep a cluster awake. One cannot outlive its engine's pause: what it is stands in the "
    "engine's process (its TLS and login, settings, prepared statements, temporary tables, locks, LISTEN), and a new "
    "process would have to log in for the client, whose password nobody here has. Have the pool close idle connections "
    "sooner than --pause-after, or the engine: its parameter for it is idle_session_timeout, or wait_timeout"
)


class Mode(StrEnum):
    """In whose way a cluster scales."""

    V1 = "v1"
    V2 = "v2"


class TimeoutAction(StrEnum):
    """What becomes of a step of v1 for which there was no safe point."""

    FORCE = "force"
    ROLLBACK = "rollback"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        epilog="Example: aurora scale demo --min 0 --max 4 --pause-after 300      aurora scale demo --off",
    )(scale)
    app.command(epilog="Example: aurora usage demo --since -1h --json")(usage)


def scale(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    least: Annotated[
        float | None, typer.Option("--min", metavar="ACU", help="At least so much; 0: paused when nobody uses it.")
    ] = None,
    most: Annotated[float | None, typer.Option("--max", metavar="ACU", help="At most so much, up to 256.")] = None,
    pause_after_s: Annotated[
        float | None,
        typer.Option("--pause-after", metavar="S", help="With --min 0: after so long without use, 10 s to a day."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Each instance has its size again.")] = False,
    mode: Annotated[
        Mode | None, typer.Option("--mode", help="v1: 1, 2, 4, 8 … ACU, changed when no session is at work.")
    ] = None,
    safe_timeout_s: Annotated[
        float | None,
        typer.Option("--timeout-action-after", metavar="S", help="v1: how long a step waits, 60 to 600 s."),
    ] = None,
    action: Annotated[
        TimeoutAction | None, typer.Option("--timeout-action", help="v1: what becomes of a step that waited so long.")
    ] = None,
    provisioned: Annotated[
        list[str] | None, typer.Option("--provisioned", metavar="INSTANCE", help="It keeps its size (repeatable).")
    ] = None,
    serverless: Annotated[
        list[str] | None, typer.Option("--serverless", metavar="INSTANCE", help="It scales again (repeatable).")
    ] = None,
    pause_idle: Annotated[
        bool, typer.Option("--pause-idle-sessions", help="Not possible; says why.", hidden=True)
    ] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Have the capacity of each instance follow its load, in steps of 0.5 ACU: 2 GiB of memory and 0.25 CPUs each.

    No session ends for it. With --min 0 its engines stop when nobody has used it for a while, and whoever connects
    wakes it, and waits for that. What is not said stays as it is.
    """
    if pause_idle:
        raise UsageError(NO_IDLE_SESSIONS)
    given = {"min_acu": least, "max_acu": most, "pause_after_s": pause_after_s, "safe_timeout_s": safe_timeout_s}
    given |= {"by_powers": None if mode is None else mode is Mode.V1}
    given |= {"force": None if action is None else action is TimeoutAction.FORCE}
    if off and any(value is not None for value in given.values()):
        raise UsageError("say bounds, or --off")
    if not off and not provisioned and not serverless and all(value is None for value in given.values()):
        raise UsageError("say --min and --max, or --off")
    kinds = {"provisioned": provisioned or [], "serverless": serverless or []}
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"scaling {name}", quiet=json):
        done = fleet.scale(name, off=off, timeout_s=timeout_s, **given, **kinds)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    elif (now := done["capacity"]) is None:
        write_line(f"{name} has the sizes of its instances")
    else:
        idle = f", paused after {now['pause_after_s']:g} s without use" if now["pause_after_s"] else ""
        write_line(f"{name}: {now['min']:g} to {now['max']:g} ACU, {now['acu']:g} at the moment{idle}")


def usage(
    name: options.Name = options.DEFAULT_NAME,
    since: Annotated[
        str, typer.Option("--since", metavar="T", help="A time or a distance as -1h; else since it is counted.")
    ] = "",
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show what a cluster has used: capacity (ACU-hours), I/O, and storage over time.

    Capacity counts from when an engine accepts statements until it is asked to end or has ended. With --since it is
    counted from the last note before that, at most a minute earlier, which is shown.
    """
    used = options.find(data_dir).usage(name, since)
    if json:
        write_json(used)
        return
    io, storage = used["io"], used["storage"]
    at = datetime.fromtimestamp(used["from"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    write_line(f"{name} since {at}")
    write_line(f"  capacity  {used['acu_hours']:.4f} ACU-hours ({used['acu_seconds']:.0f} ACU-seconds)")
    write_line(f"  I/O       {io['read_pages']:,} pages read, {io['redo_bytes']:,} bytes of redo written")
    write_line(f"  storage   {storage['byte_hours'] / (1 << 30):.4f} GiB-hours, {storage['bytes']:,} bytes now")
    if (now := used["capacity"]) is not None:
        write_line(f"  now       {now['acu']:g} ACU: {now['reason'] or 'it has just begun'}")
