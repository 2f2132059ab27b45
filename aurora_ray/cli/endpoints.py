"""Commands for the custom endpoints of a cluster: list, create, delete."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import print_table, progress, write_json, write_line
from aurora_ray.errors import UsageError

Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's name.")]
Cluster = Annotated[str, typer.Argument(metavar="NAME", help="The cluster.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Endpoints of a cluster: list, create, delete.", no_args_is_help=True)
    group.command("list", epilog="Example: aurora endpoint list demo --json")(list_endpoints)
    group.command(
        epilog="Example: aurora endpoint create demo reports --members demo-3,demo-4      "
        "aurora endpoint create demo web --exclude demo-3"
    )(create)
    group.command(epilog="Example: aurora endpoint delete demo reports")(delete)
    app.add_typer(group, name="endpoint")


def list_endpoints(
    name: options.Name = options.DEFAULT_NAME, data_dir: options.DataDir = None, json: options.Json = False
) -> None:
    """List the endpoints of a cluster: its own two, and the custom ones."""
    found = options.find(data_dir).status(name)["endpoints"]
    own = [{"name": which, "kind": which, "members": [], "excluded": [], "gone": [], **found[which]} for which in _OWN]
    endpoints: list[dict[str, Any]] = [*own, *found["custom"]]
    if json:
        write_json(endpoints)
        return
    rows = [(e["name"], e["kind"], _which(e), _open(e), e["dsn"]) for e in endpoints]
    print_table(("endpoint", "kind", "instances", "sessions", "dsn"), rows)


_OWN = ("cluster", "reader")


def _which(endpoint: dict[str, Any]) -> str:
    def names(listed: list[str]) -> str:
        return ", ".join(f"{each} (gone)" if each in endpoint["gone"] else each for each in listed)

    if endpoint["members"]:
        return names(endpoint["members"])
    return f"all but {names(endpoint['excluded'])}" if endpoint["excluded"] else "all"


def _open(endpoint: dict[str, Any]) -> str:
    return str(endpoint["sessions"]["open"]) if endpoint["sessions"] is not None else "not known"


def create(  # noqa: PLR0917  (the command's options)
    name: Cluster,
    endpoint: Endpoint,
    kind: Annotated[
        str, typer.Option(help="reader (instances while they are readers) or any (the writer too).")
    ] = "reader",
    members: Annotated[str, typer.Option(metavar="A,B", help="Lead to these instances, and no others.")] = "",
    exclude: Annotated[str, typer.Option(metavar="A,B", help="Lead to all instances but these, new ones too.")] = "",
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 30.0,
) -> None:
    """Create an endpoint for some instances of a cluster (at most 5); print its DSN.

    New sessions go to the instance with the fewest. While there is none to lead to, they wait for it for 20 s. The
    list stays when an instance in it is removed; no later one has that name.
    """
    from aurora_ray.control.model.custom_endpoints import custom_kind

    if members and exclude:
        raise UsageError("say --members or --exclude, and not both")
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"creating endpoint {endpoint}", quiet=json):
        done = fleet.create_endpoint(
            name, endpoint, custom_kind(kind), members=_list(members), excluded=_list(exclude), timeout_s=timeout_s
        )
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    else:
        write_line(done["dsn"])


def delete(
    name: Cluster,
    endpoint: Endpoint,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 30.0,
) -> None:
    """Delete a custom endpoint: its sessions end, and no others."""
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"deleting endpoint {endpoint}", quiet=json):
        done = fleet.delete_endpoint(name, endpoint, timeout_s=timeout_s)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    else:
        write_line(f"deleted endpoint {endpoint} of {name}")


def _list(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]
