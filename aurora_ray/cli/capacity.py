"""The command for serverless capacity."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import progress, write_json, write_line
from aurora_ray.errors import UsageError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        epilog="Example: aurora scale demo --min 0 --max 4 --pause-after 300      aurora scale demo --off",
    )(scale)


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
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Have the capacity of each instance follow its load, in steps of 0.5 ACU: 2 GiB of memory and 0.25 CPUs each.

    No session ends for it. With --min 0 its engines stop when nobody has used it for a while, and whoever connects
    wakes it, and waits for that. What is not said stays as it is.
    """
    if off and (least, most, pause_after_s) != (None, None, None):
        raise UsageError("say bounds, or --off")
    if not off and least is None and most is None and pause_after_s is None:
        raise UsageError("say --min and --max, or --off")
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"scaling {name}", quiet=json):
        done = fleet.scale(name, off=off, min_acu=least, max_acu=most, pause_after_s=pause_after_s, timeout_s=timeout_s)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    elif (now := done["capacity"]) is None:
        write_line(f"{name} has the sizes of its instances")
    else:
        idle = f", paused after {now['pause_after_s']:g} s without use" if now["pause_after_s"] else ""
        write_line(f"{name}: {now['min']:g} to {now['max']:g} ACU, {now['acu']:g} at the moment{idle}")
