"""Commands for backups: backup, backups, restore."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import print_table, progress, size_text, write_json, write_line
from aurora_ray.errors import UsageError

Url = Annotated[str, typer.Argument(metavar="URL", help="A directory, or s3://bucket/directory.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="The key (64 hexadecimal digits, mode 0600) to encrypt with."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("backup", epilog="Example: aurora backup demo --to s3://bucket/backups --retention 7d")(backup)
    app.command("backups", epilog="Example: aurora backups backups/demo")(backups)
    app.command("restore", epilog="Example: aurora restore s3://bucket/backups demo2 --at -5m")(restore)


def backup(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="A directory, or s3://bucket/directory.", show_default=False)
    ] = "",
    retention: Annotated[str, typer.Option(metavar="TIME", help="How long to keep history: 1d to 35d.")] = "7d",
    key_file: KeyFile = None,
    location: Annotated[
        str, typer.Option(metavar="REGION", help="The region it lies in, which a policy of residency asks for.")
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="Back up no more; what is there stays.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Back a cluster up all the time: its log and pages stream to a directory or to object storage.

    Credentials of S3 come from the environment in which the fleet was started. `aurora status` says how far it is.
    """
    from aurora_ray.control.model.moments import duration_s

    if bool(to) is off:
        raise UsageError("say where to, as --to s3://bucket/backups, or --off")
    key = str(key_file.absolute()) if key_file is not None else ""
    url = _absolute(to) if to else ""
    done = options.find(data_dir).set_backup(name, url, key, duration_s(retention), location)
    if json:
        write_json(done)
    elif done["url"]:
        write_line(f"{name} is backed up to {done['url']}, and what happened is kept for {done['retention_s']} s")
    else:
        write_line(f"{name} is not backed up any more; what is there stays")


def backups(url: Url, key_file: KeyFile = None, json: options.Json = False) -> None:
    """List what can be restored from a place; no fleet needs to run."""
    from aurora_ray.backup import catalogue
    from aurora_ray.backup.bucket import Bucket
    from aurora_ray.backup.frame import Key

    found = asyncio.run(catalogue.entries(Bucket.at(url), Key.load(key_file) if key_file is not None else None))
    reports = [each.report() for each in found]
    if json:
        write_json(reports)
        return
    rows = [
        (
            each.get("cluster", "?"),
            each.get("earliest") or "-",
            each.get("latest") or "-",
            ", ".join(f"lsn:{r['from_lsn']}-{r['to_lsn']}" for r in each.get("ranges", ())) or each["problem"] or "-",
            size_text(each.get("log_bytes", 0) + each.get("page_bytes", 0)),
            each["volume"],
        )
        for each in reports
    ]
    print_table(("cluster", "from", "to", "what can be restored", "size", "volume"), rows)


def restore(  # noqa: PLR0917  (the command's options)
    url: Url,
    name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="The name of the new cluster.")],
    at: Annotated[
        str, typer.Option(metavar="T", help="A time, a distance (-5m), lsn:N or mark:LABEL; by default the latest.")
    ] = "",
    cluster: Annotated[str, typer.Option(metavar="NAME", help="Whose backup, if there are several.")] = "",
    key_file: KeyFile = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 300.0,
) -> None:
    """Make a new cluster out of a backup alone, with the size, parameters and readers of the one that was backed up.

    It can be read as soon as this returns, and written to when all its data is back (`aurora status` says how far it
    is). A deleted cluster comes back faster by `aurora graveyard restore`.
    """
    fleet, started_s = options.find(data_dir), time.monotonic()
    key = str(key_file.absolute()) if key_file is not None else ""
    with progress(f"restoring {name}", quiet=json) as say:
        done = fleet.restore_backup(_absolute(url), name, cluster, at, key, timeout_s=timeout_s)
        status = fleet.wait_available(name, timeout_s=timeout_s, progress=say)
    if json:
        seconds = round(time.monotonic() - started_s, 3)
        write_json({**done, "state": status["state"], "endpoints": status["endpoints"], "seconds": seconds})
        return
    how = "it can be read, and is filled meanwhile" if status["state"] == "restoring" else "all its data is back"
    write_line(f"{name} is {done['source']} as of {done['time']} (lsn:{done['lsn']}): {how}")
    if done["password"] == "new":  # noqa: S105
        write_line("its superuser has a new password, in force when all its data is back")
    write_line(status["endpoints"]["cluster"]["dsn"])


def _absolute(url: str) -> str:
    from aurora_ray.backup.bucket import normal_url

    return normal_url(url)
