"""Commands for the readers of a cluster: add and remove."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import progress, write_json, write_line
from aurora_ray.errors import UsageError


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("add-reader", epilog="Example: aurora add-reader demo --count 2 --tier 0")(add_reader)
    app.command(
        "autoscale-readers",
        epilog="Example: aurora autoscale-readers demo --min 1 --max 4 --metric cpu --target 60      "
        "aurora autoscale-readers demo --off",
    )(autoscale_readers)
    app.command("remove-reader", epilog="Example: aurora remove-reader demo-2")(remove_reader)


def add_reader(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    tier: Annotated[
        int, typer.Option(metavar="T", min=0, max=15, help="Of promotion: in a failover 0 comes first, 15 last.")
    ] = 1,
    memory: options.Memory = 0,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=15, help="How many.")] = 1,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Add readers to a cluster, at most 15 in all; print where each is.

    They share the writer's storage, so nothing is copied. They are spread over the AZs.
    """
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"adding {count} reader{'' if count == 1 else 's'} to {name}", quiet=json) as say:
        done = fleet.add_readers(name, count, tier=tier, memory_bytes=memory, timeout_s=timeout_s, progress=say)
    instances = [i for i in fleet.status(name)["instances"] if i["id"] in done["instances"]]
    if json:
        write_json({"cluster": name, "instances": instances, "seconds": round(time.monotonic() - started_s, 3)})
        return
    for instance in instances:
        write_line(f"{instance['id']} in {instance['az']}: {instance['dsn']}")


def autoscale_readers(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    least: Annotated[int | None, typer.Option("--min", metavar="N", min=0, max=15, help="At least so many.")] = None,
    most: Annotated[int | None, typer.Option("--max", metavar="M", min=1, max=15, help="At most so many.")] = None,
    metric: Annotated[str, typer.Option(help="cpu (percent of the machine's) or connections (of a reader).")] = "cpu",
    target: Annotated[float | None, typer.Option(metavar="X", help="Where its average shall be.")] = None,
    cooldown_out_s: Annotated[
        float, typer.Option("--cooldown-out", metavar="S", min=0, help="After a change, add none for S seconds.")
    ] = 300.0,
    cooldown_in_s: Annotated[
        float, typer.Option("--cooldown-in", metavar="S", min=0, help="After a change, remove none for S seconds.")
    ] = 300.0,
    off: Annotated[bool, typer.Option("--off", help="Scale no more; the readers that there are stay.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Have the number of readers follow their load: as many as keep the metric's average at the target.

    Readers are added when the average of a minute is above it, and removed one at a time when that of five minutes is
    well below: of those that were added so, and without sessions, or after five minutes more.
    """
    from aurora_ray.control.model.scaling import ReaderScaling, scaling_metric

    rule = None
    if not off:
        if least is None or most is None or target is None:
            raise UsageError("say --min, --max and --target, or --off")
        rule = ReaderScaling(least, most, scaling_metric(metric), target, cooldown_out_s, cooldown_in_s)
    done = options.find(data_dir).autoscale_readers(name, rule)
    if json:
        write_json(done)
    elif rule is None:
        write_line(f"the readers of {name} stay as many as they are")
    else:
        write_line(f"{name} has {least} to {most} readers, {target:g} {metric} on average")


def remove_reader(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="The reader to remove, as demo-2.")],
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Remove a reader: its sessions end, and no others."""
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"removing {instance}", quiet=json):
        done = fleet.remove_reader(instance, timeout_s=timeout_s)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    else:
        write_line(f"removed {instance} of {done['cluster']}")
