"""Commands for what was deleted and is kept for a while: list, restore, purge."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import confirm_removal, print_table, progress, write_json, write_line

Entry = Annotated[str, typer.Argument(metavar="NAME", help="The deleted cluster, or the id of its volume.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Deleted clusters: list, restore, purge.", no_args_is_help=True)
    group.command("list", epilog="Example: aurora graveyard list --json")(list_deleted)
    group.command(epilog="Example: aurora graveyard restore orders")(restore)
    group.command(epilog="Example: aurora graveyard purge orders --yes")(purge)
    app.add_typer(group, name="graveyard")


def list_deleted(data_dir: options.DataDir = None, json: options.Json = False) -> None:
    """List the deleted clusters that can be restored (AURORA_GRAVEYARD_S says for how long)."""
    deleted = options.find(data_dir).graveyard()
    if json:
        write_json(deleted)
        return
    rows = [
        (
            d["cluster"],
            f"{d['engine']} {d['engine_version']}",
            _time(d["deleted_at_s"]),
            _time(d["until_s"]),
            d["volume"],
        )
        for d in deleted
    ]
    print_table(("cluster", "engine", "deleted", "kept until", "volume"), rows)


def restore(
    name: Entry,
    new_name: Annotated[str, typer.Option("--as", metavar="NAME", help="Its name from now on.")] = "",
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 180.0,
) -> None:
    """Bring a deleted cluster back with all its data, its password and, if they are free, its ports."""
    fleet = options.find(data_dir)
    with progress(f"restoring {name}", quiet=json) as say:
        restored = fleet.restore(name, new_name)
        result = fleet.wait_available(restored, timeout_s=timeout_s, progress=say)
    if json:
        write_json(result)
    else:
        write_line(result["endpoints"]["cluster"]["dsn"])


def purge(
    name: Entry,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Remove what is kept of a deleted cluster, for good."""
    fleet = options.find(data_dir)
    if not yes:
        confirm_removal(f"Remove what is kept of {name}, for good?")
    with progress(f"purging {name}", quiet=json):
        fleet.purge(name, timeout_s=timeout_s)
    if json:
        write_json({"cluster": name, "purged": True})
    else:
        write_line(f"purged {name}")


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
