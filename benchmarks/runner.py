"""Runs a suite from its name and options: progress on the terminal, the result in a file from the first turn on.

A run that was interrupted goes on where it was: same suite, same options, same commit; anything else would mix figures
of different things in one result.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aurora_ray.errors import UsageError
from benchmarks import machine
from benchmarks.raw import OUT, end_in_order
from benchmarks.results import Result
from benchmarks.schedule import Run, out_path
from benchmarks.site import DISK, prepared, require_room
from benchmarks.suites import SUITES, Suite
from benchmarks.systems import SYSTEMS
from benchmarks.systems.server import template

_SEEDS: Final = 1_000_000
WIDTH_PIPED: Final = 140


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to run: a suite, and what is to be different from it."""

    suite: str
    systems: str | None = None
    workloads: str | None = None
    clients: str | None = None
    rounds: int | None = None
    scale: int | None = None
    warehouses: int | None = None
    seconds: float | None = None
    copies: int | None = None
    openings: int | None = None
    postgres: str | None = None
    seed: int | None = None
    work_dir: Path | None = None
    keep: bool = False
    keep_in: Path | None = None
    settings: Sequence[str] = field(default_factory=tuple)  # "system:name=value"
    out: Path | None = None
    resume: bool = False


def console_for(*, stderr: bool = False) -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH_PIPED)


def run_suite(request: Request, console: Console) -> tuple[Result, Path]:
    """The result, and the file that holds it. Raises UsageError, ConfigurationError before anything starts."""
    suite, parameters = tailored(request), parameters_of(request.settings)
    names = list(suite.systems) if request.systems is None else _names(request.systems)
    if parameters:
        suite = replace(suite, options={"settings": sorted(request.settings)})
    earlier, path = earlier_result(request, suite, names)
    if request.resume:
        console.print(f"Going on with {path}" if earlier else "Nothing to go on with: starting anew", highlight=False)
    minutes = suite.estimate_s(names) / 60
    console.print(f"{suite.name}: about {minutes:.0f} minutes, and some for preparing the data", highlight=False)
    # Not the same each time: on data that was kept, the rows that were changed first are no longer where they were.
    seed = earlier.seed if earlier else secrets.randbelow(_SEEDS) if request.seed is None else request.seed
    require_room(request.keep_in or request.work_dir or DISK, suite.data, names)
    if threading.current_thread() is threading.main_thread():
        end_in_order()
    with _bar(console) as progress:
        task = progress.add_task("prepare")
        begun = [0]

        def on_step(what: str) -> None:
            progress.update(task, description=what, completed=begun[0])
            begun[0] += 1
            if not console.is_terminal:
                console.print(f"{begun[0]:3}/{steps}  {what}", highlight=False)

        def save(result: Result) -> None:
            result.save(path or request.out or out_path(OUT, result))

        run = Run(suite, names, seed, on_step, save=save, earlier=earlier)
        steps = run.steps
        progress.update(task, total=steps)
        with prepared(
            data=suite.data,
            memory_bytes=suite.memory_bytes,
            version=request.postgres,
            work_dir=request.work_dir,
            keep=request.keep,
            keep_in=request.keep_in,
            parameters=parameters,
        ) as site:
            result = run(site)
        progress.update(task, completed=steps, description="done")
    return result, path or request.out or out_path(OUT, result)


def prepare_data(request: Request, console: Console) -> None:
    """Makes the data of all systems below `request.keep_in`, one after the other; what is there already stays."""
    suite = tailored(request)
    names = list(suite.systems) if request.systems is None else _names(request.systems)
    if request.keep_in is None:
        raise UsageError("say with --data where the data is to be kept")
    require_room(request.keep_in, suite.data, names)
    with prepared(
        data=suite.data, memory_bytes=suite.memory_bytes, version=request.postgres, keep_in=request.keep_in
    ) as site:
        for name in ("template", *names):
            started_s = time.monotonic()
            with console.status(f"{name} ({suite.data.nbytes / 1e9:.1f} GB)"):
                if name == "template":
                    template(site)
                else:
                    with SYSTEMS[name](site):
                        pass
            console.print(f"{name}: {time.monotonic() - started_s:.0f} s", highlight=False)


def tailored(request: Request) -> Suite:
    """The suite with the request's own numbers. Raises UsageError for what does not exist."""
    if request.suite not in SUITES:
        raise UsageError(f"there is no suite {request.suite}, only {', '.join(SUITES)}")
    suite = SUITES[request.suite]
    kept = suite.turns
    if request.workloads is not None:
        wanted = _listed(request.workloads)
        if unknown := set(wanted) - {each.workload.name for each in kept}:
            known = ", ".join(dict.fromkeys(each.workload.name for each in kept))
            raise UsageError(f"there is no workload {', '.join(sorted(unknown))} in {suite.name}, only {known}")
        kept = tuple(each for each in kept if each.workload.name in wanted)
    if request.clients is not None:
        numbers = _numbers(request.clients)
        first = {each.workload.name: each for each in reversed(kept)}  # a workload may stand there more than once
        kept = tuple(replace(each, clients=numbers) for each in kept if each is first[each.workload.name])
    if request.seconds is not None:
        kept = tuple(replace(each, run_s=request.seconds) for each in kept)
    data = replace(
        suite.data,
        scale=_or(request.scale, suite.data.scale),
        tpcc_warehouses=_or(request.warehouses, suite.data.tpcc_warehouses),
    )
    return replace(
        suite,
        turns=kept,
        data=data,
        rounds=_or(request.rounds, suite.rounds),
        copy_rounds=_or(request.copies, suite.copy_rounds),
        opening_rounds=_or(request.openings, suite.opening_rounds),
    )


def earlier_result(request: Request, suite: Suite, names: Sequence[str]) -> tuple[Result | None, Path | None]:
    """The newest unfinished result of this suite, and its file. Raises UsageError if it is of something else."""
    if not request.resume:
        return None, None
    paths = [request.out] if request.out else sorted(OUT.glob(f"{suite.name}-*.json"), reverse=True)
    for path in paths:
        if not path.exists():
            continue
        result = Result.load(path)
        if not result.finished:
            if result.options != options_of(suite, names) or request.seed not in (None, result.seed):
                raise UsageError(f"{path} was begun with other options: give the same ones, or begin anew")
            if result.commit != machine.commit():
                raise UsageError(f"{path} is of commit {result.commit['id']}: check that out, or begin anew")
            return result, path
    return None, None


def parameters_of(settings: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """By system. Raises UsageError for what is not "system:name=value"."""
    found: dict[str, dict[str, str]] = {}
    for each in settings:
        system, colon, rest = each.partition(":")
        name, equals, value = rest.partition("=")
        if not colon or not equals or system not in SYSTEMS:
            raise UsageError(f"{each} is not of the form SYSTEM:NAME=VALUE with a system of {', '.join(SYSTEMS)}")
        found.setdefault(system, {})[name] = value
    return found


def options_of(suite: Suite, names: Sequence[str]) -> dict[str, Any]:
    """As they are written into the result."""
    options: dict[str, Any] = json.loads(json.dumps({**suite.described(), "systems": list(names)}))
    return options


def _names(systems: str) -> list[str]:
    names = _listed(systems)
    if unknown := set(names) - SYSTEMS.keys():
        raise UsageError(f"there is no system {', '.join(sorted(unknown))}, only {', '.join(SYSTEMS)}")
    return names


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(each) for each in _listed(text))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{text} is not a list of numbers of clients like 1,32")
    return numbers


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _bar(console: Console) -> Progress:
    counts = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    return Progress(*columns, console=console)
