"""Serverless capacity as users meet it: how long whoever wakes a cluster waits, how soon a step of load is followed,
what scaling costs in throughput, what a paused tenant costs, and what a quiet one feels of a noisy one beside it.

`make bench-serverless`, `aurora bench serverless`, or `python -m benchmarks serverless`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from aurora_ray.telemetry.spanreader import StoredSpan, read_traces
from aurora_ray.telemetry.waterfall import CAPACITY, summarise
from benchmarks import machine
from benchmarks.data import fill_pgbench
from benchmarks.raw import OUT
from benchmarks.said import Said
from benchmarks.serverless_noise import beside_others
from benchmarks.serverless_subject import Subject, sessions
from benchmarks.serverless_tenants import paused_tenants
from benchmarks.serverless_trace import bursty, judge
from benchmarks.site import prepared

_PAUSE_AFTER_S: Final = 10
_LOOK_S: Final = 0.05
_REACHED: Final = (("first step", 1.0), ("half", 2.0), ("all", 4.0))  # ACUs
_REACHED_WITHIN_S: Final = 20.0
_CALM_S: Final = 3.0
_HELD_S: Final = 120  # for so long an endpoint holds who waits for a paused cluster
_WRITTEN_S: Final = 2.0  # by when spans are in their files
_STAGES: Final = (
    "capacity.decide",
    "capacity.place",
    "capacity.give",
    "control.ResumeCluster",
    "control.StartInstance",
    "control.OpenInstance",
    "capacity.lead",
)
_QUERY: Final = "select sum(i) from generate_series(1, 20000) i"


@dataclass
class Figures:
    """All that was measured; times in seconds."""

    resumes_s: list[float] = field(default_factory=list)
    large_resumes_s: list[float] = field(default_factory=list)  # with data in it that no cache of the engine holds
    step: dict[str, float] = field(default_factory=dict)
    timeline: list[tuple[float, float, int]] = field(default_factory=list)  # when, ACUs in force, sessions at work
    throughput: dict[str, float] = field(default_factory=dict)
    paused: dict[str, dict[str, float]] = field(default_factory=dict)  # by how many there were
    commits_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    days: list[dict[str, float]] = field(default_factory=list)
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict)  # of all steps and resumes, from their traces
    parts: dict[str, str] = field(default_factory=dict)  # of which commit each is, and how busy the machine was

    def take_over(self, kept: dict[str, Any]) -> None:
        """What an earlier run found; parts that are measured anew take its place."""
        for name in vars(self):
            setattr(self, name, kept.get(name, getattr(self, name)))


def large_resumes(subject: Subject, figures: Figures, rounds: int, scale: int) -> None:
    """The same with pgbench's tables."""
    fill_pgbench(subject.dsn, str(adapter(DEFAULT_ENGINE).find(None, None).bin_dir), scale)
    figures.large_resumes_s = resumes(subject, rounds)


def resumes(subject: Subject, rounds: int) -> list[float]:
    """From connecting to a paused cluster to the first answer."""
    took_s = []
    subject.scale("web", "--min", "0", "--max", "4", "--pause-after", str(_PAUSE_AFTER_S))
    for _ in range(rounds):
        subject.until_paused("web")
        time.sleep(1)
        began_s = time.monotonic()
        with psycopg.connect(subject.dsn, connect_timeout=_HELD_S) as session:
            session.execute("select 1")
        took_s.append(round(time.monotonic() - began_s, 3))
    return took_s


def by_stage(traces: Iterable[Sequence[StoredSpan]]) -> dict[str, dict[str, float]]:
    """Of the steps and the resumes among these: each part's times, of those that came to their end."""
    took: dict[str, list[float]] = {}
    for spans in traces:
        summary = summarise(spans)
        if summary.whole and summary.error is None and summary.name in CAPACITY:
            kind = summary.name.partition(".")[2]
            for span in (each for each in spans if each.name in _STAGES or each.name == summary.name):
                took.setdefault(f"{kind}: {span.name}", []).append(span.duration_ms)
    return {
        name: {"count": len(each), "p50": round(statistics.median(each), 1), "max": round(max(each), 1)}
        for name, each in sorted(took.items())
    }


def steps(subject: Subject, figures: Figures, seconds: float, rounds: int) -> None:
    """A step from nothing to four sessions that compute, and back: what is in force meanwhile. Then again and again,
    for as long as it takes."""
    subject.scale("web", "--min", "0.5", "--max", "4")
    figures.timeline.clear()
    began_s = time.monotonic()

    def watch(until_s: float, working: int) -> None:
        while time.monotonic() - began_s < until_s:
            acu = float(subject.status()["capacity"]["acu"])
            figures.timeline.append((round(time.monotonic() - began_s, 3), acu, working))
            time.sleep(_LOOK_S)

    watch(seconds / 4, 0)
    with sessions(subject.dsn, 4, _QUERY):
        watch(seconds, 4)
    found = [_reached([(when - seconds / 4, acu) for when, acu, working in figures.timeline if working])]
    for _ in range(rounds - 1):
        subject.scale("web", "--off")
        subject.scale("web", "--min", "0.5", "--max", "4")  # it begins with the least
        time.sleep(_CALM_S)
        found.append(_reached(list(_step(subject))))
    for name, _ in _REACHED:
        figures.step[name] = round(statistics.median(each[name] for each in found), 2)
        figures.step[f"{name}, max"] = round(max(each[name] for each in found), 2)


def _step(subject: Subject) -> Iterator[tuple[float, float]]:
    began_s = time.monotonic()
    with sessions(subject.dsn, 4, _QUERY):
        acu = 0.0
        while acu < _REACHED[-1][1] and time.monotonic() - began_s < _REACHED_WITHIN_S:
            acu = float(subject.status()["capacity"]["acu"])
            yield time.monotonic() - began_s, acu
            time.sleep(_LOOK_S)


def _reached(seen: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {name: next((when for when, acu in seen if acu >= wanted), math.inf) for name, wanted in _REACHED}


def throughput(subject: Subject, figures: Figures, seconds: float) -> None:
    """The same work with a capacity that is fixed, and with one that has to come up first."""
    for name, bounds in (("fixed at 4 ACU", ("4", "4")), ("from 0.5 to 4 ACU", ("0.5", "4"))):
        subject.scale("web", "--off")
        subject.scale("web", "--min", bounds[0], "--max", bounds[1])
        with sessions(subject.dsn, 4, _QUERY) as done:
            time.sleep(seconds)
            figures.throughput[name] = round(done() / seconds, 1)


def measure(
    figures: Figures,
    work_dir: Path | None,
    *,
    rounds: int,
    seconds: float,
    tenants: int,
    days: int,
    scale: int,
    only: str = "",
) -> Figures:
    """One after the other, on a fleet of its own; with `only`, the parts whose names begin so."""
    if not figures.days or not only:
        figures.days = [asdict(judge(bursty(seed))) for seed in range(days)]
    with prepared(work_dir=work_dir) as site:
        directory = site.directory("serverless") / "fleet"
        subject = Subject(directory)
        parts: tuple[tuple[str, Callable[[], None]], ...] = (
            ("resumes", lambda: setattr(figures, "resumes_s", resumes(subject, rounds))),
            ("steps of load", lambda: steps(subject, figures, 2 * seconds, rounds)),
            ("throughput", lambda: throughput(subject, figures, seconds)),
            ("noisy tenant", lambda: figures.commits_ms.update(beside_others(subject, seconds))),
            (
                "paused tenants",
                lambda: figures.paused.update({str(tenants): paused_tenants(subject, tenants, seconds)}),
            ),
            *([("large resumes", lambda: large_resumes(subject, figures, rounds, scale))] if scale else []),
        )
        try:
            for words, part in (each for each in parts if each[0].startswith(only)):
                typer.echo(f"  {words} (load {os.getloadavg()[0]:.1f})")
                commit = str(machine.commit()["id"])[:10]
                figures.parts[words] = f"{commit} at load {os.getloadavg()[0]:.1f}"
                part()
            time.sleep(_WRITTEN_S)
            if not figures.stages_ms or not only:
                figures.stages_ms = by_stage(read_traces(directory / "telemetry").values())
        finally:
            subject.fleet.destroy()
    return figures


def sentences(figures: Figures) -> Iterator[str]:
    """What was found."""
    for words, took_s in (("", figures.resumes_s), (" of a cluster with data", figures.large_resumes_s)):
        if took_s:
            p50, most = statistics.median(took_s), max(took_s)
            yield f"First query after a pause{words}, {len(took_s)} times: p50 {p50:.2f} s, max {most:.2f} s"
    for name, at_s in figures.step.items():
        yield f"After a step of load, {name} in effect: {at_s:.2f} s"
    for name, rate in figures.throughput.items():
        yield f"Queries a second, {name}: {rate:,.1f}"
    for name, found in figures.commits_ms.items():
        yield f"Commits of a quiet tenant, {name}: p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms"
    for count, costs in figures.paused.items():
        for name, value in costs.items():
            yield f"{count} paused tenants, {name}: {value:g}"
    for name, stage in figures.stages_ms.items():
        yield f"{name}, {stage['count']:g} times: p50 {stage['p50']:.1f} ms, max {stage['max']:.1f} ms"
    if figures.parts:
        yield f"Measured: {'; '.join(f'{name}: {each}' for name, each in figures.parts.items())}"
    for number, day in enumerate(figures.days):
        shares = {name: 100 * day[name] / day["oracle"] for name in ("over", "under", "peak")}
        yield (
            f"Day {number} of a bursty trace (the policy alone): {shares['over']:.0f} % more ACU-seconds than the "
            f"oracle's, {shares['under']:.1f} % less; a machine for the peak takes {shares['peak']:.0f} %"
        )


def plot(figures: Figures, path: Path) -> None:
    """Load against capacity."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 4.2), layout="constrained")
    axes = canvas.subplots()
    when = [row[0] for row in figures.timeline]
    axes.step(when, [row[1] for row in figures.timeline], where="post", label="ACU in effect", color="#1f6feb")
    axes.step(when, [row[2] for row in figures.timeline], where="post", label="sessions at work", color="#d29922")
    axes.set_xlabel("seconds")
    axes.legend(frameon=False)
    canvas.savefig(path, dpi=120)


def run(
    *,
    rounds: Annotated[int, typer.Option(help="resumes")] = 6,
    seconds: Annotated[float, typer.Option(help="of each measurement under load")] = 12.0,
    tenants: Annotated[int, typer.Option(help="that are paused at once")] = 4,
    days: Annotated[int, typer.Option(help="of a bursty trace, for the policy alone")] = 2,
    scale: Annotated[int, typer.Option(help="of pgbench's tables, for more resumes; 0: none (140 are 2 GB)")] = 0,
    only: Annotated[str, typer.Option(help="the part that begins so: resumes, steps, noisy, paused, ...")] = "",
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[
        Path | None, typer.Option(help="the JSON file (--only keeps its other parts); the plot beside it")
    ] = None,
) -> None:
    """Serverless capacity: resumes, steps, paused and noisy tenants. Example: python -m benchmarks serverless."""
    figures, path = Figures(), out or OUT / f"serverless-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if only and path.exists():
        figures.take_over(json.loads(path.read_text()))
    say = Said("serverless")
    try:
        measure(figures, work_dir, rounds=rounds, seconds=seconds, tenants=tenants, days=days, scale=scale, only=only)
    finally:
        say.all(sentences(figures))
        say.save(path, **vars(figures))
    plot(figures, path.with_suffix(".png"))
    typer.echo(f"Plot: {os.path.relpath(path.with_suffix('.png'))}")
