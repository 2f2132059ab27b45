"""`aurora bench`: load on a running cluster from many generators, and the suites beside stock PostgreSQL.

The benchmarks are part of the source tree, not of the package: this finds them beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora_ray.cli import options
from aurora_ray.cli.output import progress, write_json, write_line
from aurora_ray.errors import AuroraError, ConfigurationError, UsageError

if TYPE_CHECKING:
    from benchmarks.distributed import Job
    from benchmarks.generator import Generated
    from benchmarks.loads import LoadResult

SCRIPTS = {"tpcb": "tpcb-like", "select": "select-only"}
SUITES = {"quick": "in five minutes", "standard": "in an hour", "full": "in a night"}

app = typer.Typer(no_args_is_help=True, help="Measure.", rich_markup_mode=None)


def register(parent: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: aurora bench run --init 50 --tasks 4 --clients 8 --seconds 30")(run)
    for name, words in SUITES.items():
        text = f"Measure beside stock PostgreSQL and six synchronous standbys, all started here, {words}."
        app.command(name, help=text, epilog=f"Example: aurora bench {name} --rounds 5")(_suite(name))
    app.command(epilog="Example: aurora bench serverless --tenants 10")(serverless)
    app.command(epilog="Example: aurora bench report benchmarks/out/standard-*.json")(report)
    parent.add_typer(app, name="bench")


def run(  # noqa: PLR0917  (the command's options)
    name: options.Name = options.DEFAULT_NAME,
    dsn: Annotated[
        list[str] | None, typer.Option(metavar="DSN", help="Servers instead of the cluster's endpoint; repeatable.")
    ] = None,
    reader: Annotated[bool, typer.Option("--reader", help="Use the reader endpoint.")] = False,
    workload: Annotated[str, typer.Option(help="tpcb or select.")] = "tpcb",
    tasks: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Load generators, as Ray tasks.")] = 1,
    clients: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Clients of each generator.")] = 8,
    seconds: Annotated[float, typer.Option(metavar="S", min=1, max=86400)] = 10.0,
    rate: Annotated[
        float | None,
        typer.Option(metavar="TPS", min=0.1, help="Transactions a second of all together, not as many as can be."),
    ] = None,
    init: Annotated[int | None, typer.Option(metavar="SCALE", min=1, help="Make pgbench's tables anew first.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random numbers.")] = 1,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Load a running cluster from Ray tasks that spread over all machines; latencies in one histogram."""
    if workload not in SCRIPTS:
        raise UsageError(f"there is no workload {workload}, only {', '.join(SCRIPTS)}")
    _find_benchmarks()
    from benchmarks.loads import Load

    on_ray, dsns = _servers(name, dsn, data_dir, endpoint="reader" if reader else "cluster")
    scale = _prepare(dsns[0], init, quiet=json)
    load = Load(scripts=(SCRIPTS[workload],), clients=clients, seconds=seconds, scale=scale, seed=seed, rate_tps=rate)
    found = _generate(dsns, load, tasks, on_ray=on_ray, quiet=json)
    _show(
        found,
        {"workload": workload, "scale": scale, "clients": clients, "seconds": seconds, "rate_tps": rate},
        json=json,
    )


def serverless(
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Resumes.")] = 6,
    seconds: Annotated[float, typer.Option(metavar="S", min=2, help="Of each measurement under load.")] = 12.0,
    tenants: Annotated[int, typer.Option(metavar="N", min=1, help="Paused at once.")] = 4,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The figures, as JSON; the plot beside it.")] = None,
) -> None:
    """Measure capacity that follows the load, on a fleet of its own: resumes, steps, paused and noisy tenants."""
    _find_benchmarks()
    from benchmarks import serverless as suite

    suite.run(rounds=rounds, seconds=seconds, tenants=tenants, out=out)


def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results.", exists=True, dir_okay=False)],
    json: options.Json = False,
) -> None:
    """Print the tables of results; a comparison only where the difference is larger than the noise."""
    _find_benchmarks()
    from benchmarks.results import Result
    from benchmarks.runner import console_for
    from benchmarks.tables import show, summary

    results = [Result.load(path) for path in files]
    if json:
        write_json([summary(result) for result in results])
        return
    for result in results:
        show(result, console_for())


def _suite(suite: str) -> Callable[..., None]:
    def measure(  # noqa: PLR0917  (the command's options)
        systems: Annotated[str | None, typer.Option(help="As aurora,standbys,stock,nosync.")] = None,
        workloads: Annotated[str | None, typer.Option(help="As tpcb,select.")] = None,
        clients: Annotated[str | None, typer.Option(help="As 1,32.")] = None,
        rounds: Annotated[int | None, typer.Option(metavar="N", min=1)] = None,
        seconds: Annotated[float | None, typer.Option(metavar="S", min=1, help="Of each measurement.")] = None,
        scale: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of pgbench's tables.")] = None,
        data: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the data here for the next time.")] = None,
        out: Annotated[Path | None, typer.Option(metavar="FILE", help="The result, as JSON.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted.")] = False,
        json: options.Json = False,
    ) -> None:
        _find_benchmarks()
        from benchmarks.runner import Request, console_for, run_suite
        from benchmarks.tables import show, summary

        request = Request(
            suite=suite,
            systems=systems,
            workloads=workloads,
            clients=clients,
            rounds=rounds,
            seconds=seconds,
            scale=scale,
            keep_in=data,
            out=out,
            resume=resume,
        )
        result, path = run_suite(request, console_for(stderr=True))
        if json:
            write_json({**summary(result), "file": str(path)})
            return
        show(result, console_for())
        write_line(str(path))

    return measure


def _find_benchmarks() -> None:
    """Raises ConfigurationError if they, or what they need, are not there."""
    import aurora_ray

    root = Path(aurora_ray.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "runner.py").is_file():
        raise ConfigurationError("the benchmarks are in the source tree, not in the package: run this from a checkout")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        import hdrh.histogram  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is missing: pip install 'aurora-ray[bench]'") from error


def _servers(name: str, dsns: list[str] | None, data_dir: Path | None, endpoint: str) -> tuple[bool, list[str]]:
    """(whether there is a Ray cluster for the generators, DSNs). Raises NotRunningError without either, UsageError."""
    from aurora_ray.control.api.client import NotRunningError
    from aurora_ray.engine.registry import DEFAULT_ENGINE
    from aurora_ray.ray.fleet import connect_ray

    try:
        if not dsns:
            status = options.find(data_dir).status(name)
            if status["engine"] != DEFAULT_ENGINE:
                raise UsageError(f"{name} runs {status['engine']}: this load is for {DEFAULT_ENGINE} alone")
            dsns = [status["endpoints"][endpoint]["dsn"]]
        connect_ray(options.settings(data_dir).data_dir)
    except NotRunningError:
        if not dsns:
            raise
        return False, dsns
    return True, dsns


def _prepare(dsn: str, init: int | None, *, quiet: bool) -> int:
    """Makes pgbench's tables if asked; their scale. Raises UsageError if there are none."""
    import psycopg

    from aurora_ray.engine.postgres.install import find_install
    from benchmarks.data import fill_pgbench

    if init is not None:
        with progress(f"pgbench's tables at scale {init}", quiet=quiet):
            fill_pgbench(dsn, str(find_install(None).bin_dir), init)
    try:
        with psycopg.connect(dsn) as session:
            row = session.execute("SELECT count(*) FROM pgbench_branches").fetchone()
    except psycopg.errors.UndefinedTable:
        raise UsageError("there are no tables of pgbench: --init SCALE makes them") from None
    except psycopg.Error as error:
        raise AuroraError(str(error).strip().replace("\n", " ")) from error
    return int(row[0]) if row is not None else 0


def _generate(dsns: list[str], load: Any, tasks: int, *, on_ray: bool, quiet: bool) -> list[Generated]:
    from benchmarks.distributed import jobs_for, run_here, run_on_ray
    from benchmarks.generator import Target

    jobs: list[Job] = jobs_for([Target.parse(each) for each in dsns], load, max(tasks, len(dsns)))
    place = "Ray tasks" if on_ray else "threads here: there is no fleet"
    with progress(f"{len(jobs)} load generators, as {place}", quiet=quiet) as say:
        return (run_on_ray if on_ray else run_here)(jobs, lambda spent_s: say(f"{spent_s:.0f} of {load.seconds:g} s"))


def _show(found: list[Generated], facts: dict[str, Any], *, json: bool) -> None:
    from benchmarks.distributed import together
    from benchmarks.histograms import encode, percentiles

    machines = sorted({each.machine for each in found})
    results = together(found)
    latencies = {place: percentiles([encode(result.counts)]) for place, result in results.items()}
    if json:
        figures = {place: _figures(result, latencies[place]) for place, result in results.items()}
        histogram = encode(results["all"].counts)
        write_json({**facts, "tasks": len(found), "machines": machines, **figures, "histogram": histogram})
        return
    write_line(f"{len(found)} load generators on {len(machines)} machine(s), {facts['clients']} clients each")
    write_line(f"{'server':24} {'tps':>10} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'p99.9 ms':>9} {'failed':>7}")
    for place, result in results.items():
        columns = [f"{latencies[place][p] / 1000:8.1f}" for p in ("p50", "p95", "p99")]
        last = f"{latencies[place]['p99.9'] / 1000:9.1f} {result.failed:7}"
        write_line(f"{place:24} {result.tps:10,.0f} {' '.join(columns)} {last}")


def _figures(result: LoadResult, latency_us: dict[str, float]) -> dict[str, Any]:
    return {
        "transactions": result.transactions,
        "failed": result.failed,
        "tps": round(result.tps, 1),
        "client_cpu_s": round(result.client_cpu_s, 3),
        "latency_us": latency_us,
    }
