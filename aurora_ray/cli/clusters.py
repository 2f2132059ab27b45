"""Commands for one cluster: list, create, delete, sql."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import confirm_removal, print_clusters, progress, write_json, write_line
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError


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
    engine: Annotated[str, typer.Option(help="postgres.")] = "postgres",
    engine_version: Annotated[
        str | None, typer.Option(metavar="V", help="18, 16 or any installed; default: the newest.")
    ] = None,
    bin_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="The bin directory of the engine to use.")] = None,
    memory: options.Memory = 0,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 180.0,
) -> None:
    """Create a cluster in the running fleet; print its DSN."""
    settings = options.settings(data_dir)
    chosen = bin_dir or settings.postgres_bin_dir
    fleet = options.find(data_dir)
    with progress(f"creating {name}", quiet=json) as say:
        path = str(chosen) if chosen else None
        fleet.create(name, engine=engine, version=engine_version, bin_dir=path, memory_bytes=memory)
        result = fleet.wait_available(name, timeout_s=timeout_s, progress=say)
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
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- PSQL ARGUMENTS]", hidden=True)] = None,
    command: Annotated[str | None, typer.Option("-c", metavar="SQL", help="Run this and end.")] = None,
    reader: Annotated[bool, typer.Option("--reader", help="Use the reader endpoint.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Open psql on a cluster, or run SQL through it; with --json, rows as JSON."""
    status = options.find(data_dir).status(name)
    dsn = status["endpoints"]["reader" if reader else "cluster"]["dsn"]
    if json:
        if command is None:
            raise UsageError("--json needs -c")
        write_json(_query(_way_in(status, dsn), command))
        return
    dsn = dsn if reader else _way_in(status, dsn)
    psql = _psql(options.settings(data_dir).postgres_bin_dir, status["engine_version"])
    words = [str(psql), dsn, *(["-X", "-c", command] if command is not None else []), *(arguments or [])]
    os.execv(psql, words)  # noqa: S606  (psql takes this process's place: signals and the terminal are its own)


def _psql(bin_dir: Path | None, version: str) -> Path:
    """A psql of the cluster's major version, one that edits lines if there is one; else any."""
    from aurora_ray.engine.postgres.install import discover, find_install

    try:
        candidates = [find_install(version, bin_dir)]
    except ConfigurationError:
        candidates = []
    candidates += discover()
    found = [(install, install.bin_dir / "psql") for install in candidates]
    found = [(install, psql) for install, psql in found if os.access(psql, os.X_OK)]
    major = version.partition(".")[0]
    found.sort(key=lambda each: (str(each[0].major) != major, not _edits_lines(each[1])))
    if found:
        return found[0][1]
    raise ConfigurationError("there is no psql on this machine: install it, or use the DSN of `aurora status`")


def _edits_lines(psql: Path) -> bool:
    """Whether it was built with a library for that: the names of those it loads stand in it."""
    return any(library in psql.read_bytes() for library in (b"libreadline", b"libedit"))


def query(status: dict[str, Any], statement: str) -> dict[str, Any]:
    """Columns and rows of a statement, run on the cluster of that status."""
    return _query(_way_in(status, status["endpoints"]["cluster"]["dsn"]), statement)


def _way_in(status: dict[str, Any], dsn: str) -> str:
    """The DSN; or, when the password in the pass file is not the superuser's any more, the engine's own socket, whose
    directory only the engine's account and root can enter."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as error:
        if "authentication failed" not in str(error):
            return dsn
    else:
        return dsn
    writer = next(instance for instance in status["instances"] if instance["role"] == "writer")
    directory = writer["socket_dir"]
    if not directory or not os.access(directory, os.X_OK):
        return dsn
    parts = conninfo_to_dict(dsn)
    return make_conninfo("", host=directory, port=writer["port"], user=parts["user"], dbname=parts["dbname"])


def _query(dsn: str, statement: str) -> dict[str, Any]:
    import psycopg

    try:
        with psycopg.connect(dsn, autocommit=True) as session:
            cursor = session.execute(statement.encode())
            columns = [column.name for column in cursor.description or ()]
            rows = [[_plain(value) for value in row] for row in cursor.fetchall()] if columns else []
            return {"columns": columns, "rows": rows, "rowcount": cursor.rowcount}
    except psycopg.Error as error:
        raise AuroraError(str(error).strip().replace("\n", " ")) from error


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
