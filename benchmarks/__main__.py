"""`python -m benchmarks`: run a suite, show or report what was measured, profile the data path."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from aurora_ray.errors import AuroraError, UsageError
from benchmarks import (
    against,
    backup,
    cache,
    failover,
    forks,
    mounting,
    mysql,
    neighbours,
    readers,
    regions,
    serverless,
    space,
    tracing,
)
from benchmarks.data import DataSpec
from benchmarks.loads import Load
from benchmarks.machine import ROOT
from benchmarks.raw import OUT
from benchmarks.results import Result
from benchmarks.runner import Request, console_for, prepare_data, run_suite
from benchmarks.site import prepared
from benchmarks.suites import SUITES
from benchmarks.systems import SYSTEMS
from benchmarks.systems.aurora import Aurora
from benchmarks.tables import frame_table
from benchmarks.tables import show as show_result

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure aurora-ray beside stock PostgreSQL.",
)
app.add_typer(failover.app, name="failover")
app.command("tracing")(tracing.run)
app.command("against")(against.run)
app.command("space")(space.run)
app.command("cache")(cache.run)
app.command("mounting")(mounting.run)
app.command("readers")(readers.main)
app.command("global")(regions.main)
app.command("mysql")(mysql.main)
app.command("backup")(backup.run)
app.command("fork")(forks.run)
app.command("neighbours")(neighbours.run)
app.command("serverless")(serverless.run)


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help=f"one of: {', '.join(SUITES)}")] = "quick",
    *,
    rounds: Annotated[int | None, typer.Option(help="how often each system is measured")] = None,
    scale: Annotated[int | None, typer.Option(help="pgbench's scale factor")] = None,
    warehouses: Annotated[int | None, typer.Option(help="of the TPC-C-like mix")] = None,
    clients: Annotated[str | None, typer.Option(help='for all workloads, as "1,32"')] = None,
    seconds: Annotated[float | None, typer.Option(help="of each measurement, for all workloads")] = None,
    systems: Annotated[str | None, typer.Option(help=f"in the order of their turns: {', '.join(SYSTEMS)}")] = None,
    workloads: Annotated[str | None, typer.Option(help='which, as "tpcb,select"; "" for none')] = None,
    copies: Annotated[int | None, typer.Option(help="rounds of bulk load")] = None,
    openings: Annotated[int | None, typer.Option(help="rounds of opening, mounting and cold reads")] = None,
    postgres: Annotated[str | None, typer.Option(help="version; default: the newest that the wheel has")] = None,
    seed: Annotated[int | None, typer.Option(help="of the load's random numbers; default: a new one")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SYSTEM:NAME=VALUE", help="an engine's setting; repeatable")
    ] = None,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    data: Annotated[Path | None, typer.Option(help="keep all data here, and find it here the next time")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave files and logs behind")] = False,
    out: Annotated[Path | None, typer.Option(help="the JSON file; default: benchmarks/out/<suite>-<time>.json")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run that was interrupted")] = False,
) -> None:
    """Measure. Example: python -m benchmarks run quick --systems aurora,stock --rounds 2."""
    console = console_for()
    request = Request(
        suite=suite,
        rounds=rounds,
        scale=scale,
        warehouses=warehouses,
        clients=clients,
        seconds=seconds,
        systems=systems,
        workloads=workloads,
        copies=copies,
        openings=openings,
        postgres=postgres,
        seed=seed,
        settings=tuple(settings or ()),
        work_dir=work_dir,
        keep=keep,
        keep_in=data,
        out=out,
        resume=resume,
    )
    result, path = run_suite(request, console)
    show_result(result, console)
    console.print(f"Raw figures: {os.path.relpath(path)}", highlight=False)


@app.command()
def prepare(
    suite: Annotated[str, typer.Argument(help=f"one of: {', '.join(SUITES)}")],
    *,
    data: Annotated[Path, typer.Option(help="where to keep it; give the same to `run`")],
    scale: Annotated[int | None, typer.Option(help="pgbench's scale factor")] = None,
    systems: Annotated[str | None, typer.Option(help="which; default: the suite's")] = None,
) -> None:
    """Make the data of a suite, so that `run` begins at once. Example: python -m benchmarks prepare full --data D."""
    request = Request(suite=suite, scale=scale, systems=systems, keep_in=data)
    prepare_data(request, console_for())


@app.command()
def show(files: list[Path]) -> None:
    """Print the tables of results measured before."""
    console = console_for()
    for path in files:
        show_result(Result.load(path), console)


@app.command()
def report(
    files: Annotated[list[Path] | None, typer.Argument(help="default: all of benchmarks/results")] = None,
    *,
    target: Annotated[Path, typer.Option(help="the file to write")] = ROOT / "benchmarks" / "RESULTS.md",
    charts: Annotated[Path, typer.Option(help="where charts go")] = ROOT / "benchmarks" / "results",
) -> None:
    """Write RESULTS.md and its charts from results. Example: python -m benchmarks report benchmarks/results/*.json."""
    from benchmarks.report import write

    there = (ROOT / "benchmarks" / "results").glob("*.json")
    found = files or sorted(
        there, key=lambda path: (not path.name.startswith(tuple(SUITES)), path.name)
    )  # suites first
    if not found:
        raise UsageError("there is no result in benchmarks/results: copy one there, or name the files")
    write(found, target, charts)
    console_for().print(f"Written: {os.path.relpath(target)}, charts in {os.path.relpath(charts)}", highlight=False)


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

    console = console_for()
    try:
        profiling.find_profiler()
    except profiling.ProfilerMissingError as error:
        console.print(str(error))
        raise typer.Exit(1) from None
    load = Load(scripts=("tpcb-like",), clients=clients, seconds=seconds, scale=scale, seed=1)
    with prepared(data=DataSpec(scale=scale)) as site, Aurora(site) as system:
        system.warm_up()
        result, stacks = profiling.profile(system, load, out, native=native)
    console.print(f"{result.tps:,.0f} tps while sampled", highlight=False)
    for name, path in stacks.items():
        console.print(frame_table(name, profiling.heaviest(path, frames)))
    console.print(f"Raw stacks, for a flame graph: {os.path.relpath(out)}", highlight=False)


def main() -> None:
    """Errors that have a reason are one sentence; 2 for wrong use, 1 for failure."""
    try:
        app()
    except AuroraError as error:
        sys.exit(f"benchmarks: {error}" if not isinstance(error, UsageError) else _wrong_use(error))


def _wrong_use(error: UsageError) -> int:
    sys.stderr.write(f"benchmarks: {error}\n")
    return 2


if __name__ == "__main__":
    main()
