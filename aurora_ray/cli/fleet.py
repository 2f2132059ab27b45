"""Commands for the fleet as a whole: up, down, status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import confirm_removal, print_status, progress, render_status, write_json, write_line
from aurora_ray.engine.registry import DEFAULT_ENGINE, ENGINES
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.ray.fleet import Fleet

WATCH_EVERY_S = 1.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: aurora up && aurora sql -c 'select 1'")(up)
    app.command(epilog="Example: aurora status --watch")(status)
    app.command(epilog="Example: aurora down            (the next `aurora up` brings the same data back)")(down)


def up(  # noqa: PLR0917  (the command's options)
    engine: Annotated[
        str,
        typer.Option(help=f"{', '.join(ENGINES)}; default: the cluster's, if it is there, else {DEFAULT_ENGINE}."),
    ] = "",
    engine_version: Annotated[
        str | None, typer.Option(metavar="V", help="18, 16 or any installed; default: the newest.")
    ] = None,
    readers: options.Readers = 0,
    region: Annotated[str | None, typer.Option(metavar="R", help="A file of regions/; default us-east-1.")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="The cluster to start.")] = options.DEFAULT_NAME,
    memory: options.Memory = 0,
    small: options.Small = False,
    data_dir: options.DataDir = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="Join this Ray cluster instead of starting one here.")
    ] = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 180.0,
) -> None:
    """Start the fleet and a cluster in it, or find them running; print the DSN."""
    from aurora_ray.ray.fleet import Fleet

    settings = options.settings(data_dir, ray_address=address, small=small or None)
    with progress(f"{name} in {settings.data_dir}", quiet=json) as say:
        running = Fleet.up(settings, region=region, progress=say)
        bin_dir = str(named) if (named := settings.bin_dir(engine or DEFAULT_ENGINE)) else None
        with running.ended_unless_made(say):
            running.create(
                name,
                engine=engine,
                version=engine_version,
                bin_dir=bin_dir,
                memory_bytes=memory,
                readers=readers,
                exist_ok=True,
                timeout_s=timeout_s,
            )
            result = running.wait_available(name, all_readers=readers > 0, timeout_s=timeout_s, progress=say)
    if json:
        write_json(result)
    else:
        write_line(result["endpoints"]["cluster"]["dsn"])


def status(
    name: options.Name = options.DEFAULT_NAME,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, once a second.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="All metrics of the fleet, as Prometheus text.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show a cluster, its instances and the storage nodes, with their process ids."""
    if metrics and (json or watch):
        raise UsageError("--metrics is Prometheus text, once: leave out --json and --watch")
    fleet = options.find(data_dir)
    if metrics:
        write_line(fleet.metrics().rstrip("\n"))
    elif watch:
        _watch(fleet, name, json=json)
    elif json:
        write_json(fleet.status(name))
    else:
        print_status(fleet.status(name))


def _watch(fleet: Fleet, name: str, *, json: bool) -> None:
    """Until interrupted; with `json`, one document a line."""
    import json as encoder

    from rich.live import Live

    try:
        if json:
            while True:
                write_line(encoder.dumps(fleet.status(name)))
                time.sleep(WATCH_EVERY_S)
        with Live(render_status(fleet.status(name)), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(WATCH_EVERY_S)
                live.update(render_status(fleet.status(name)), refresh=True)
    except KeyboardInterrupt:
        return


def down(
    destroy: Annotated[bool, typer.Option("--destroy", help="Remove all data, of all clusters.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Stop everything in order; data stays unless --destroy says otherwise."""
    from aurora_ray.ray import fleet

    directory = options.settings(data_dir).data_dir
    if destroy and not yes:
        confirm_removal(f"Remove all data in {directory}?")
    with progress("removing the fleet" if destroy else "stopping", quiet=json) as say:
        was_running = fleet.down(directory, destroy=destroy, progress=say)
    there = was_running is not None
    result: dict[str, Any] = {"stopped": bool(was_running), "destroyed": destroy and there, "data_dir": str(directory)}
    if json:
        write_json(result)
    else:
        done = "removed" if destroy else "stopped" if was_running else "was not running"
        write_line(done if there else f"there was no fleet in {directory}")
