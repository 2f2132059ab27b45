"""The command that tells what happened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import write_json, write_line


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: aurora events orders --json")(events)


def events(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only of a cluster, instance or node.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="The newest N.")] = 50,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show what happened, the oldest first: failovers, replacements, troubles and their ends, deletions."""
    from aurora_ray.control.report.events import read

    found = read(options.settings(data_dir).data_dir, name, limit)
    if json:
        write_json(found)
        return
    for event in found:
        at = datetime.fromtimestamp(event["at_s"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        write_line(f"{at}  {event['kind']:<12}  {event['subject']}: {event['sentence']}")
