"""Commands that mend what keeps a fleet from starting; without --yes they only say what they found."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import print_table, progress, write_json, write_line
from aurora_ray.errors import UsageError

app = typer.Typer(help="Mend what keeps a fleet from starting.", no_args_is_help=True, rich_markup_mode=None)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it; else only say what there is.")]


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: aurora repair state      aurora repair state --to 41 --yes")(state)
    app.command("fleet", epilog="Example: aurora repair fleet --yes      (with the fleet stopped)")(fleet_file)
    parent.add_typer(app, name="repair")


def state(
    to: Annotated[int | None, typer.Option("--to", metavar="VERSION", help="Put this version in force.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make a state from what the storage nodes hold, if none can be read.")
    ] = False,
    yes: Yes = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show the kept versions of the control state and what the storage nodes hold; go back to one, or make one anew."""
    if to is not None and rebuild:
        raise UsageError("--to and --rebuild exclude each other")
    fleet = options.find(data_dir)
    found = fleet.look_at_state()
    if (to is not None or rebuild) and yes:
        with progress("repairing the control state", quiet=json):
            found |= {"in_force_now": fleet.repair_state(to)}
    if json:
        write_json(found)
        return
    _show(found)
    if "in_force_now" in found:
        write_line(f"in force now, with {', '.join(found['in_force_now']) or 'no clusters'}")
    elif to is not None or rebuild:
        write_line("nothing was changed: add --yes to do it")


def _show(found: dict[str, Any]) -> None:
    rows = [
        (str(v["version"]), _time(v["saved_at_s"]), str(v["revision"] or "-"), ", ".join(v["clusters"]), v["problem"])
        for v in found["versions"]
    ]
    print_table(("version", "saved", "revision", "clusters", "problem"), rows)
    held = [(v["volume"], v["declared_as"] or "not declared", str(len(v["nodes"]))) for v in found["volumes"]]
    print_table(("volume on the storage nodes", "declared as", "nodes"), held)
    state = f"in force: revision {found['in_force']}" if found["open"] else "no state is in force"
    write_line(state)


def fleet_file(
    region: Annotated[str | None, typer.Option(metavar="R", help="The fleet's region, if its AZs do not tell.")] = None,
    yes: Yes = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Make fleet.toml anew from the storage nodes' directories on this machine; the old file is kept beside it."""
    from aurora_ray.ray.fleet import repair_file

    done = repair_file(options.settings(data_dir), region, write=yes)
    if json:
        write_json(done)
        return
    write_line(done["file"].rstrip())
    for node, problem in done["found"]["problems"].items():
        write_line(f"# {node}: {problem}")
    if not done["written"]:
        write_line("# nothing was changed: add --yes to write this file")


def _time(at_s: float | None) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at_s else "-"
