"""Commands for one cluster: list, create, delete, sql."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import confirm_removal, print_clusters, progress, write_json, write_line
from aurora_ray.compute.role import Role
from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from aurora_ray.errors import UsageError


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", epilog="Example: aurora list --json")(list_clusters)
    app.command(epilog="Example: aurora create orders --engine-version 16")(create)
    app.command(epilog="Example: aurora delete orders --yes")(delete)
    app.command(
        epilog="Example: aurora sql -c 'select version()'      aurora sql orders -- --csv -c 'select 1'",
        context_settings={"ignore_unknown_options": True},
    )(sql)


def list_clusters(data_dir: options.DataDir = None, json: options.Json = False) -> None:
    """List all clusters."""
    clusters = options.find(data_dir).clusters()
    if json:
        write_json(clusters)
    else:
        print_clusters(clusters)


def create(  # noqa: PLR0917  (the command's options)
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new cluster.")],
    engine: options.Engine = DEFAULT_ENGINE,
    engine_version: Annotated[
        str | None, typer.Option(metavar="V", help="18, 16 or any installed; default: the newest.")
    ] = None,
    bin_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="The bin directory of the engine to use.")] = None,
    memory: options.Memory = 0,
    readers: options.Readers = 0,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 180.0,
) -> None:
    """Create a cluster in the running fleet; print its DSN."""
    settings = options.settings(data_dir)
    chosen = bin_dir or settings.bin_dir(engine)
    fleet = options.find(data_dir)
    with progress(f"creating {name}", quiet=json) as say:
        path = str(chosen) if chosen else None
        fleet.create(name, engine=engine, version=engine_version, bin_dir=path, memory_bytes=memory, readers=readers)
        result = fleet.wait_available(name, all_readers=readers > 0, timeout_s=timeout_s, progress=say)
    if json:
        write_json(result)
    else:
        write_line(result["endpoints"]["cluster"]["dsn"])


def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The cluster to delete.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Delete a cluster; for a while, `aurora graveyard restore` brings it back with all its data."""
    fleet = options.find(data_dir)
    fleet.status(name)
    if not yes:
        confirm_removal(f"Delete cluster {name}? (`aurora graveyard restore {name}` brings it back, for a while)")
    with progress(f"deleting {name}", quiet=json):
        fleet.delete(name, timeout_s=timeout_s)
    if json:
        write_json({"cluster": name, "deleted": True})
    else:
        write_line(f"deleted {name}; `aurora graveyard restore {name}` brings it back, for a while")


def sql(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", hidden=True)] = None,
    command: Annotated[
        list[str] | None, typer.Option("-c", metavar="SQL", help="Run this and end; several, one after the other.")
    ] = None,
    reader: Annotated[bool, typer.Option("--reader", help="Use the reader endpoint.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Open psql on a cluster, or run SQL through it; with --json, rows as JSON: a list of such with several -c."""
    status = options.find(data_dir).status(name)
    dsn, client = status["endpoints"]["reader" if reader else "cluster"]["dsn"], adapter(status["engine"]).client
    if json:
        if not command:
            raise UsageError("--json needs -c")
        dsn = way_in(status, dsn)
        done = [client.query(dsn, each) for each in command]
        told = [{"columns": rows.columns, "rows": rows.rows, "rowcount": rows.count} for rows in done]
        write_json(told if len(told) > 1 else told[0])
        return
    dsn = dsn if reader else way_in(status, dsn)
    bin_dir = options.settings(data_dir).bin_dir(status["engine"])
    words = client.command_line(dsn, status["engine_version"], bin_dir, command or [], arguments or [])
    os.execv(words[0], words)  # noqa: S606  (it takes this process's place: signals and the terminal are its own)


def writer_of(status: dict[str, Any]) -> dict[str, Any]:
    """The instance of a cluster that writes. Raises UsageError where none does."""
    for instance in status["instances"]:
        if Role(instance["role"]).traits.writes:
            found: dict[str, Any] = instance
            return found
    raise UsageError(f"nobody writes to {status['cluster']} in this region: it follows another one; --reader reads it")


def way_in(status: dict[str, Any], dsn: str) -> str:
    """The DSN of a cluster's endpoint, or the engine's own socket when the password does not lead in, see Client."""
    writer = writer_of(status)
    directory = Path(writer["socket_dir"]) if writer["socket_dir"] else None
    return adapter(status["engine"]).client.way_in(dsn, directory, writer["port"])
