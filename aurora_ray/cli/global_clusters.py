"""`aurora global`: one primary region for all writes, and secondary regions that follow it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import print_regions, print_table, progress, size_text, write_json, write_line
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.ray.fleet import Fleet

app = typer.Typer(no_args_is_help=True, help="A cluster in several regions.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="GLOBAL", help="The global cluster.")]
Region = Annotated[str, typer.Argument(metavar="REGION", help="One of regions/, as eu-west-1.")]
To = Annotated[str, typer.Option("--to", metavar="REGION", help="The region that shall be the primary.")]


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: aurora global create g --primary demo")(create)
    app.command("add-region", epilog="Example: aurora global add-region g eu-west-1")(add_region)
    app.command(epilog="Example: aurora global status g --json")(status)
    app.command(epilog="Example: aurora global switchover g --to eu-west-1")(switchover)
    app.command(epilog="Example: aurora global failover g --to eu-west-1")(failover)
    app.command(epilog="Example: aurora global limits g --lease 10s --rpo 30s")(limits)
    app.command(epilog="Example: aurora global forwarding g on")(forwarding)
    app.command(epilog="Example: aurora global residency g --jurisdiction EU --region us-east-1")(residency)
    app.command(epilog="Example: aurora global audit g -n 5")(audit)
    app.command("remove-region", epilog="Example: aurora global remove-region g eu-west-1")(remove_region)
    app.command(epilog="Example: aurora global detach g eu-west-1")(detach)
    parent.add_typer(app, name="global")


def create(
    name: Name,
    primary: Annotated[str, typer.Option(metavar="NAME", help="The cluster that is its primary.")] = "demo",
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Make a cluster the primary of a new global cluster. Nothing changes for it until a region is added."""
    done = options.find(data_dir).create_global(name, primary)
    if json:
        write_json(done)
    else:
        write_line(f"{name}: {primary} in {done['primary']} is the primary")


def add_region(  # noqa: PLR0917  (the command's options)
    name: Name,
    region: Region,
    headless: Annotated[bool, typer.Option("--headless", help="Storage only: no readers.")] = False,
    readers: Annotated[int, typer.Option("--readers", metavar="N", min=1, max=15, help="Readers there.")] = 1,
    region_dir: Annotated[
        Path | None,
        typer.Option("--region-dir", metavar="DIR", help="Where its fleet lives; default: below the first one's."),
    ] = None,
    memory: options.Memory = 0,
    small: options.Small = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 300.0,
) -> None:
    """Start a fleet for a secondary region on this machine, and have it follow the primary; wait until it can be read.

    Its pages come first, while the primary goes on. The distance to the other regions is simulated (regions/).
    """
    from aurora_ray.ray import regions
    from aurora_ray.ray.fleet import Fleet
    from aurora_ray.regions import load_region

    here = options.settings(data_dir)
    load_region(region, here.regions_dir)
    with progress(f"{name} in {region}", quiet=json) as say:
        primary = _primary(here.data_dir, name)
        wanted = region_dir.expanduser().absolute() if region_dir is not None else None
        directory = regions.directory_for(here.data_dir, region, wanted)
        if directory == primary.data_dir:
            raise UsageError(f"{region} is the primary region of {name} already")
        started_s = time.monotonic()
        there = Fleet.up(options.settings(directory, small=small or None), region=region, progress=say)
        invitation = primary.invite_region(name, there)
        done = there.join_global(
            invitation, readers=0 if headless else readers, memory_bytes=memory, timeout_s=timeout_s, progress=say
        )
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
    else:
        write_line(done["endpoints"]["reader"]["dsn"] if not headless else f"{region} follows, in {directory}")


def status(name: Name, data_dir: options.DataDir = None, json: options.Json = False) -> None:
    """Show the regions of a global cluster, how far behind they are, and where they are reached."""
    found = _status(options.settings(data_dir).data_dir, name)
    if json:
        write_json(found)
    else:
        print_regions(found)


def switchover(
    name: Name,
    to: To,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Make another region the primary, in order: nothing is lost, and the old one follows. Both must be reachable.

    If it is cut short it goes on; to go back, switch over to the region that made way.
    """
    _turn(name, to, "switchover", data_dir, json=json, timeout_s=timeout_s)


def failover(
    name: Name,
    to: To,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Make another region the primary as it is, when the present one is lost; say what that may lose.

    The old primary is not asked. If it lives and merely cannot be reached, it takes writes until it hears of this, and
    those are lost too, unless the global cluster has a lease (`limits`), whose end is waited for. When it comes back it
    follows, and what only it has is kept aside in it.
    """
    _turn(name, to, "failover", data_dir, json=json, timeout_s=timeout_s)


def remove_region(  # noqa: PLR0917  (the command's options)
    name: Name,
    region: Region,
    force: Annotated[bool, typer.Option("--force", help="Also if it does not answer: it keeps what it has.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Take a secondary region out, and delete its copy (`aurora restore` there brings it back for a day).

    Its fleet goes on; `aurora down --destroy --data-dir DIR` ends it.
    """
    primary = _primary(options.settings(data_dir).data_dir, name)
    with progress(f"removing {region} from {name}", quiet=json):
        done = primary.remove_region(name, region, keep=False, force=force, timeout_s=timeout_s)
    if json:
        write_json(done)
    else:
        write_line(f"{region} belongs to {name} no more" + ("" if done["left"] else ", and has not heard of it"))


def detach(
    name: Name,
    region: Annotated[str | None, typer.Argument(metavar="[REGION]", help="By default the primary.")] = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Take a region out with its data: its copy becomes a cluster of its own, which takes writes.

    The primary can leave when no other region is left: then there is no global cluster any more.
    """
    primary = _primary(options.settings(data_dir).data_dir, name)
    with progress(f"detaching {region or 'the primary'} from {name}", quiet=json):
        if region is None or region == primary.info()["region"]:
            done = primary.leave_global(name, timeout_s=timeout_s)
        else:
            done = primary.remove_region(name, region, keep=True, force=False, timeout_s=timeout_s)
    if json:
        write_json(done)
    else:
        write_line(f"{done['cluster']} in {done['region']} is a cluster of its own")


def limits(  # noqa: PLR0917  (the command's options)
    name: Name,
    lease: Annotated[
        str, typer.Option(metavar="TIME", help="The primary needs a lease of a majority of regions: 2s to 5min.")
    ] = "",
    no_lease: Annotated[bool, typer.Option("--no-lease", help="It needs none.")] = False,
    rpo: Annotated[
        str, typer.Option(metavar="TIME", help="Commits wait while every secondary lags more: 20s or more.")
    ] = "",
    no_rpo: Annotated[bool, typer.Option("--no-rpo", help="They wait for no secondary.")] = False,
    failover_after: Annotated[
        str, typer.Option(metavar="TIME", help="A secondary takes over after so long a silence; needs a lease.")
    ] = "",
    no_failover: Annotated[bool, typer.Option("--no-failover", help="None takes over by itself.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Say when the primary acknowledges commits. By default nothing keeps it from that.

    With a lease, a primary that cannot reach a majority of regions stops to acknowledge, and a failover waits for that:
    no two regions acknowledge commits at a time. The price: of two regions, either's loss, or the link's, stops writes
    until `failover` or `--no-lease`; of three, one may be lost. One of two that took over goes on without a lease until
    the other one follows.
    """
    from aurora_ray.control.model.moments import duration_s

    pairs = ((lease, no_lease), (rpo, no_rpo), (failover_after, no_failover))
    if any(given and none for given, none in pairs) or not any(given or none for given, none in pairs):
        raise UsageError(
            "say --lease TIME or --no-lease, --rpo TIME or --no-rpo, --failover-after TIME or --no-failover"
        )
    primary = _primary(options.settings(data_dir).data_dir, name)
    wanted = [0.0 if none else duration_s(given) if given else None for given, none in pairs]
    done = primary.set_limits(name, *wanted, timeout_s=timeout_s)
    if json:
        write_json(done)
        return
    write_line(f"{name}: {done['rule']}")
    if done["not_told"]:
        write_line(f"not told yet, since they cannot be reached: {', '.join(done['not_told'])}")


def forwarding(
    name: Name,
    switch: Annotated[str, typer.Argument(metavar="on|off", help="Whether they may.")],
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Say whether sessions on readers, in all regions, may write: what they write is run by the primary's writer.

    How their reads wait for it, a session says by apg_write_forward.consistency_mode: off, eventual, session (the
    default), global. Off for the cluster, unless turned on here.
    """
    if switch not in ("on", "off"):
        raise UsageError(f"{switch!r} is neither on nor off")
    primary = _primary(options.settings(data_dir).data_dir, name)
    done = primary.set_forwarding(name, on=switch == "on", timeout_s=timeout_s)
    if json:
        write_json(done)
        return
    write_line(f"{name}: {done['rule']}")
    if done["not_told"]:
        write_line(f"not told yet, since they cannot be reached: {', '.join(done['not_told'])}")


def residency(  # noqa: PLR0917  (the command's options)
    name: Name,
    region: Annotated[list[str] | None, typer.Option(metavar="REGION", help="Data may lie there.")] = None,
    jurisdiction: Annotated[
        list[str] | None, typer.Option(metavar="J", help="And there, as region files have it: EU, or a country.")
    ] = None,
    anywhere: Annotated[bool, typer.Option("--anywhere", help="Data may lie anywhere again.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """Show where the data of a global cluster may lie, or say it: in these regions and jurisdictions, nowhere else.

    It is asked when a region is added, a backup begun or restored in another region, and traces are exported (their
    place: AURORA_TELEMETRY_REGION). It goes with the data: to later clones, backups, and regions that leave.
    """
    primary = _primary(options.settings(data_dir).data_dir, name)
    if bool(region or jurisdiction) and anywhere:
        raise UsageError("--anywhere excludes --region and --jurisdiction")
    if region or jurisdiction or anywhere:
        done = primary.set_residency(name, region or [], jurisdiction or [], timeout_s=timeout_s)
    else:
        done = {key: value for key, value in primary.residency(name).items() if key != "audit"}
    if json:
        write_json(done)
    else:
        write_line(f"{name}: {done['rule']}")


def audit(
    name: Name,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="The newest N.")] = 20,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show what a region's policies of residency were asked, and what they allowed and refused; newest last.

    Each region has its own log, of about a thousand lines: this is that of the fleet in --data-dir.
    """
    lines = options.find(data_dir).residency(name)["audit"][-count:]
    if json:
        write_json(lines)
        return
    rows = [
        tuple(each[key] or "-" for key in ("time", "verdict", "purpose", "subject", "from", "to")) for each in lines
    ]
    print_table(("time", "verdict", "purpose", "of", "from", "to"), rows)


# ---- inside


def _status(data_dir: Path, name: str, first: str | None = None) -> dict[str, Any]:
    from aurora_ray.ray import regions

    return regions.running(data_dir, first).global_status(name)


def _primary(data_dir: Path, name: str) -> Fleet:
    """The fleet of the primary region. Raises NotRunningError."""
    from aurora_ray.ray.fleet import Fleet

    found = _status(data_dir, name)
    row = next(row for row in found["regions"] if row["role"] == "primary")
    return Fleet.find(Path(row["data_dir"]))


def _turn(name: str, to: str, way: str, data_dir: Path | None, *, json: bool, timeout_s: float) -> None:
    from aurora_ray.ray import regions

    started_s = time.monotonic()
    with progress(f"{way} of {name} to {to}", quiet=json) as say:
        asked = regions.running(options.settings(data_dir).data_dir, to)
        done = asked.turn_global(name, to, way, timeout_s=timeout_s, progress=say)
    if json:
        write_json({**done, "seconds": round(time.monotonic() - started_s, 3)})
        return
    write_line(f"{to} is the primary of {name}, and took writes after {done['rto_s']:.2f} s (RTO)")
    if way == "switchover":
        write_line("nothing is lost (RPO 0)")
    else:
        when = "at an unknown time" if done["rpo_ms"] is None else f"{done['rpo_ms'] / 1e3:.2f} s before"
        write_line(
            f"RPO: the last write that is there was made {when}; of what is known of {done['from']}, "
            f"{size_text(done['rpo_bytes'])} of redo above LSN {done['lost_after_lsn']:,} are missing"
        )
        if done.get("fenced") is False:
            write_line(
                f"{done['from']} may still have a lease: too few regions answer to be sure that it takes no writes"
            )
        write_line(f"what only {done['from']} has is kept there, and is told when it comes back")
