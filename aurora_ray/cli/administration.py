"""Commands for a cluster's parameters, and for repairs of what its users did to it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from aurora_ray.cli import options
from aurora_ray.cli.clusters import way_in
from aurora_ray.cli.output import progress, size_text, write_json, write_line
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import UsageError


def register(app: typer.Typer) -> None:
    """Adds the commands; `repair cluster` to the group of repairs if there is one."""
    app.command(epilog="Example: aurora parameters demo set max_connections=300 jit=on")(parameters)
    app.command(epilog="Example: aurora modify demo --memory 2GiB")(modify)
    group = next((g.typer_instance for g in app.registered_groups if g.name == "repair"), None)
    if group is None:
        group = typer.Typer(help="Mend what keeps a fleet or a cluster from working.", no_args_is_help=True)
        app.add_typer(group, name="repair")
    group.command("cluster", epilog="Example: aurora repair cluster demo roles access")(repair_cluster)


def parameters(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    verb: Annotated[str | None, typer.Argument(metavar="[set|reset]", help="What to do; without it: show.")] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="K=V… or K…")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all parameters, not only what was set.")] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show a cluster's parameters, or set or reset some: value, default, unit, where from, and when a change counts.

    From the weakest to the strongest: ours, the cluster's (set here), ALTER SYSTEM, ALTER DATABASE and ROLE, and the
    few that are fixed. ALTER SYSTEM RESET lets a value that is set here through.
    """
    fleet = options.find(data_dir)
    if verb is None:
        status = fleet.status(name)
        dsn, client = way_in(status, status["endpoints"]["cluster"]["dsn"]), adapter(status["engine"]).client
        rows = client.parameters(dsn, status["parameters"], everything=everything)
        if json:
            write_json(rows)
        else:
            _print([("parameter", "value", "default", "unit", "from", "changes"), *(tuple(r.values()) for r in rows)])
        return
    changes = _changes(verb, words or [])
    done = fleet.set_parameters(name, changes)
    if json:
        write_json({"cluster": name, "parameters": done})
        return
    for one in done:
        what = "reset" if one["value"] is None else one["value"]
        write_line(f"{one['name']}: {what} ({one['applies']})")


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [min(40, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _changes(verb: str, words: list[str]) -> dict[str, str | None]:
    if verb not in ("set", "reset") or not words:
        raise UsageError("say `set K=V …` or `reset K …`")
    if verb == "reset":
        return dict.fromkeys(words)
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not of the form K=V")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def modify(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Of each instance, as 2GiB; `default`: by the machine.")
    ] = "",
    at_next_start: Annotated[
        bool, typer.Option("--at-next-start", help="Restart nothing: it counts when the engine starts next.")
    ] = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Change the size of a cluster's instances. The engine restarts in place, which cuts sessions for a second or two.

    Buffers, work_mem, max_connections and others follow the size, unless they are set (`aurora parameters`).
    """
    if not memory:
        raise UsageError("say what to change: --memory SIZE")
    wanted = 0 if memory == "default" else options.parse_bytes(memory)
    fleet, started_s = options.find(data_dir), time.monotonic()
    with progress(f"modifying {name}", quiet=json):
        done = fleet.modify(name, wanted, at_next_start=at_next_start, timeout_s=timeout_s)
    done = {"cluster": name, **done, "seconds": round(time.monotonic() - started_s, 3)}
    if json:
        write_json(done)
    else:
        write_line(f"{name}: {size_text(done['memory_bytes'])} of memory ({done['applies']})")


def repair_cluster(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The cluster.")],
    what: Annotated[list[str], typer.Argument(metavar="WHAT…", help="settings, access, roles, database, signals.")],
    data_dir: options.DataDir = None,
    json: options.Json = False,
    timeout_s: options.TimeoutS = 120.0,
) -> None:
    """Mend what users did to a cluster, also one whose engine does not start; the engine starts anew.

    settings: ALTER SYSTEM's and postgresql.conf are emptied (kept beside as aurora.before-repair.*). access: the first
    pg_hba.conf. roles: the superuser's name, login and password (that of the pass file), no login triggers. database:
    the database postgres, open to all. signals: no standby.signal and recovery.signal.
    """
    fleet = options.find(data_dir)
    with progress(f"repairing {name}", quiet=json) as say:
        fleet.repair(name, what, timeout_s=timeout_s)
        status = fleet.wait_available(name, timeout_s=timeout_s, progress=say)
    if json:
        write_json({"cluster": name, "repaired": what, "state": status["state"]})
    else:
        write_line(f"{name}: {', '.join(what)} repaired")
