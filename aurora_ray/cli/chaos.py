"""`aurora chaos` and `aurora failover`: lose something on purpose, and move the writer on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.clusters import writer_of
from aurora_ray.cli.output import progress, write_json, write_line
from aurora_ray.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Lose something on purpose, to see it come back.", rich_markup_mode=None)

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="writer, reader:ID, node:ID, az:NAME, control or region:NAME.")
]
ForS = Annotated[float | None, typer.Option("--for", metavar="S", min=0.1, max=86400, help="Undone after S seconds.")]
Cluster = Annotated[str, typer.Option("--name", metavar="NAME", help="The cluster whose writer is meant.")]

_VERBS = {  # those with --for
    "pause": (
        "SIGSTOP, for 10 seconds unless --for says otherwise.",
        "Example: aurora chaos pause writer --for 20",
    ),
    "partition": (
        "Cut off from every storage node (control: and from the writers); until healed unless --for is given.",
        "Example: aurora chaos partition node:us-east-1a-1 --for 20",
    ),
}
_ENDS = {
    "resume": (
        "End a pause at once, and let storage nodes that were to stay away come back.",
        "Example: aurora chaos resume node:us-east-1a-1",
    ),
    "heal": ("End a partition.", "Example: aurora chaos heal node:us-east-1a-1"),
}


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        epilog="Example: aurora chaos kill writer      aurora chaos kill az:us-east-1b --for 30      "
        "aurora chaos kill node:us-east-1a-1 --for-good"
    )(kill)
    for verb, (words, example) in _VERBS.items():
        app.command(verb, help=words, epilog=example)(_command(verb))
    for verb, (words, example) in _ENDS.items():
        app.command(verb, help=words, epilog=example)(_ending(verb))
    parent.add_typer(app, name="chaos")
    parent.command(epilog="Example: aurora failover demo --target demo-2")(failover)


def kill(  # noqa: PLR0917  (the command's options)
    target: Target,
    for_s: Annotated[
        float | None,
        typer.Option("--for", metavar="S", min=0.1, max=86400, help="node:ID, az:NAME: stay away for S seconds."),
    ] = None,
    for_good: Annotated[
        bool, typer.Option("--for-good", help="Remove the storage node's data too: another one takes its place.")
    ] = False,
    name: Cluster = options.DEFAULT_NAME,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """SIGKILL. It comes back by itself; with --for, storage nodes stay away for S seconds.

    region:NAME is a whole region on this machine, its control plane and its Ray too: `aurora up` brings it back.
    """
    if for_good and for_s is not None:
        raise UsageError("--for-good takes no --for: that node does not come back")
    if target.startswith("region:"):
        if for_s is not None or for_good:
            raise UsageError("a region that is killed stays away until `aurora up`: leave out --for and --for-good")
        _kill_region(target, data_dir, json=json)
        return
    struck = options.find(data_dir).chaos("kill", target, name, for_s, for_good=for_good)
    _tell("kill", struck, json=json)


def _kill_region(target: str, data_dir: Path | None, *, json: bool) -> None:
    from aurora_ray.ray import regions

    region = target.partition(":")[2]
    where, count = regions.kill(options.settings(data_dir).data_dir, region)
    if json:
        write_json([{"target": target, "processes": count, "pid": None, "data_dir": str(where)}])
    else:
        write_line(f"killed {target}: {count} processes; `aurora up --data-dir {where}` brings it back")


def _command(verb: str) -> Callable[..., None]:
    def run(
        target: Target,
        for_s: ForS = None,
        name: Cluster = options.DEFAULT_NAME,
        data_dir: options.DataDir = None,
        json: options.Json = False,
    ) -> None:
        _tell(verb, options.find(data_dir).chaos(verb, target, name, for_s), json=json)

    return run


def _ending(verb: str) -> Callable[..., None]:
    def run(
        target: Target,
        name: Cluster = options.DEFAULT_NAME,
        data_dir: options.DataDir = None,
        json: options.Json = False,
    ) -> None:
        _tell(verb, options.find(data_dir).chaos(verb, target, name, None), json=json)

    return run


def _tell(verb: str, struck: list[dict[str, Any]], *, json: bool) -> None:
    if json:
        write_json(struck)
        return
    if not struck:
        write_line("nothing was in force" if verb in _ENDS else "nothing was left to strike: it ended just now")
    for one in struck:
        process = "" if one["pid"] is None else f": process {one['pid']}"
        more = f" and {one['processes'] - 1} below it" if one["processes"] > 1 else ""
        write_line(f"{verb} {one['target']}{process}{more}")


def failover(
    name: options.Name = options.DEFAULT_NAME,
    target: Annotated[str | None, typer.Option(metavar="INSTANCE", help="The reader that takes over.")] = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Have another instance be the writer, in order; wait until it accepts statements.

    That is --target, else the reader that is first by promotion tier, then size, then lag; the writer becomes a reader.
    Without readers the writer moves to a fresh process in the next AZ.
    """
    fleet = options.find(data_dir)
    with progress(f"failover of {name}", quiet=json):
        result = fleet.failover(name, target, timeout_s=timeout_s)
    if json:
        write_json(result)
    else:
        writer = writer_of(result)
        write_line(f"{name} has its writer {writer['id']} in {writer['az']}, epoch {result['epoch']}")
