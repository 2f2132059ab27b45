"""`python -m benchmarks`: run a suite, show or report what was measured, profile the data path."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.load import Load
from benchmarks.machine import ROOT
from benchmarks.results import Result
from benchmarks.schedule import Run, out_path
from benchmarks.site import prepared
from benchmarks.suites import SUITES, Suite
from benchmarks.systems import SYSTEMS
from benchmarks.systems.aurora import Aurora
from benchmarks.tables import frame_table
from benchmarks.tables import show as show_result

OUT = ROOT / "benchmarks" / "out"
SEED_DEFAULT = 1
WIDTH_PIPED = 140

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure aurora-ray beside stock PostgreSQL.")


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help=f"one of: {', '.join(SUITES)}")] = "quick",
    *,
    rounds: Annotated[int | None, typer.Option(help="how often each system is measured")] = None,
    scale: Annotated[int | None, typer.Option(help="pgbench's scale factor")] = None,
    clients: Annotated[str | None, typer.Option(help='for all workloads, as "1,32"')] = None,
    seconds: Annotated[float | None, typer.Option(help="of each measurement, for all workloads")] = None,
    systems: Annotated[str, typer.Option(help="which, in the order of their turns")] = ",".join(SYSTEMS),
    workloads: Annotated[str | None, typer.Option(help='which, as "tpcb,select"')] = None,
    openings: Annotated[int | None, typer.Option(help="rounds of opening, mounting and cold reads")] = None,
    postgres: Annotated[str | None, typer.Option(help="version; default: the newest that the wheel has")] = None,
    seed: Annotated[int, typer.Option(help="of the load's random numbers")] = SEED_DEFAULT,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave data and logs behind")] = False,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/<suite>-<time>.json")] = None,
) -> None:
    """Measure. Example: python -m benchmarks run quick --systems aurora,stock --rounds 2."""
    console = _console()
    chosen = _tailored(
        suite,
        rounds=rounds,
        scale=scale,
        clients=clients,
        seconds=seconds,
        workloads=workloads,
        openings=openings,
    )
    names = _names(systems)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is cleaned up
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar as progress:
        task = progress.add_task("prepare")
        begun = [0]

        def on_step(what: str) -> None:
            progress.update(task, description=what, completed=begun[0])
            begun[0] += 1
            if not console.is_terminal:
                console.print(f"{begun[0]:3}/{measured.steps}  {what}", highlight=False)

        measured = Run(chosen, names, seed, on_step)
        progress.update(task, total=measured.steps)
        with prepared(scale=chosen.scale, sizes=chosen.sizes, version=postgres, work_dir=work_dir, keep=keep) as site:
            result = measured(site)
        progress.update(task, completed=measured.steps, description="done")
    path = out or out_path(OUT, result)
    result.save(path)
    show_result(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


@app.command()
def show(files: list[Path]) -> None:
    """Print the tables of results measured before."""
    console = _console()
    for path in files:
        show_result(Result.load(path), console)


@app.command()
def report(
    files: list[Path],
    *,
    target: Annotated[Path, typer.Option(help="the file to write")] = ROOT / "benchmarks" / "RESULTS.md",
    charts: Annotated[Path, typer.Option(help="where charts go")] = ROOT / "benchmarks" / "results",
) -> None:
    """Write RESULTS.md and its charts from results. Example: python -m benchmarks report benchmarks/results/*.json."""
    from benchmarks.report import write

    write(files, target, charts)
    _console().print(f"Written: {os.path.relpath(target)}, charts in {os.path.relpath(charts)}", highlight=False)


@app.command()
def profile(
    *,
    scale: Annotated[int, typer.Option(help="pgbench's scale factor")] = 20,
    clients: Annotated[int, typer.Option(help="of the TPC-B load")] = 32,
    seconds: Annotated[float, typer.Option(help="of load")] = 15,
    native: Annotated[bool, typer.Option("--native", help="with the frames of C code")] = False,
    frames: Annotated[int, typer.Option(help="how many to print")] = 20,
    out: Annotated[Path, typer.Option(help="where the raw stacks go")] = OUT / "profile",
) -> None:
    """Sample the driver and a storage node under TPC-B with py-spy."""
    from benchmarks import profiling

    console = _console()
    try:
        profiling.find_profiler()
    except profiling.ProfilerMissingError as error:
        console.print(str(error))
        raise typer.Exit(1) from None
    load = Load(script="tpcb-like", clients=clients, seconds=seconds, scale=scale, seed=SEED_DEFAULT)
    ground = prepared(scale=scale, sizes=SUITES["quick"].sizes, version=None, work_dir=None, keep=False)
    with ground as site, Aurora(site) as system:
        system.warm_up()
        result, stacks = profiling.profile(system, load, out, native=native)
    console.print(f"{result.tps:,.0f} tps while sampled", highlight=False)
    for name, path in stacks.items():
        console.print(frame_table(name, profiling.heaviest(path, frames)))
    console.print(f"Raw stacks, for a flame graph: {os.path.relpath(out)}", highlight=False)


def _tailored(
    name: str,
    *,
    rounds: int | None,
    scale: int | None,
    clients: str | None,
    seconds: float | None,
    workloads: str | None,
    openings: int | None,
) -> Suite:
    if name not in SUITES:
        raise typer.BadParameter(f"there is no suite {name}, only {', '.join(SUITES)}")
    suite = SUITES[name]
    kept = suite.workloads
    if workloads is not None:
        wanted = [each for each in workloads.split(",") if each]
        unknown = set(wanted) - {each.name for each in kept}
        if unknown:
            raise typer.BadParameter(f"there is no workload {', '.join(sorted(unknown))}")
        kept = tuple(each for each in kept if each.name in wanted)
    if clients is not None:
        numbers = tuple(int(each) for each in clients.split(","))
        kept = tuple(replace(each, clients=numbers) for each in kept)
    if seconds is not None:
        kept = tuple(replace(each, run_s=seconds) for each in kept)
    return replace(
        suite,
        workloads=kept,
        rounds=suite.rounds if rounds is None else rounds,
        scale=suite.scale if scale is None else scale,
        opening_rounds=suite.opening_rounds if openings is None else openings,
    )


def _console() -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_PIPED)


def _names(systems: str) -> list[str]:
    names = [each for each in systems.split(",") if each]
    if unknown := set(names) - SYSTEMS.keys():
        raise typer.BadParameter(f"there is no system {', '.join(sorted(unknown))}, only {', '.join(SYSTEMS)}")
    return names


if __name__ == "__main__":
    app()
