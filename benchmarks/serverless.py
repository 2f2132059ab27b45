"""Serverless capacity as users meet it: how long whoever wakes a cluster waits, how soon a step of load is followed,
what scaling costs in throughput, what a paused tenant costs, and what a quiet one feels of a noisy one beside it.

`make bench-serverless`, `aurora bench serverless`, or `python -m benchmarks serverless`.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer

from aurora_ray.cli import options
from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from aurora_ray.telemetry.spanreader import StoredSpan, read_traces
from aurora_ray.telemetry.waterfall import CAPACITY, summarise
from benchmarks.data import fill_pgbench
from benchmarks.fleet import FleetProcesses, UserFleet
from benchmarks.raw import OUT
from benchmarks.said import Said
from benchmarks.serverless_trace import bursty, judge
from benchmarks.site import prepared

_PAUSE_AFTER_S: Final = 10
_PAUSED_WITHIN_S: Final = 120.0
_LOOK_S: Final = 0.05
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
_COMMIT: Final = "insert into ticks values (1)"
_NOISE: Final = "insert into noise select i, repeat(md5(i::text), 8) from generate_series(1, 20000) i"


@dataclass
class Figures:
    """All that was measured; times in seconds."""

    resumes_s: list[float] = field(default_factory=list)
    large_resumes_s: list[float] = field(default_factory=list)  # with data in it that no cache of the engine holds
    step: dict[str, float] = field(default_factory=dict)
    timeline: list[tuple[float, float, int]] = field(default_factory=list)  # when, ACUs in force, sessions at work
    throughput: dict[str, float] = field(default_factory=dict)
    paused: dict[str, float] = field(default_factory=dict)
    commits_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    days: list[dict[str, float]] = field(default_factory=list)
    stages_ms: dict[str, dict[str, float]] = field(default_factory=dict)  # of all steps and resumes, from their traces
    load_averages: list[float] = field(default_factory=list)


class Subject:
    """A fleet, and what is asked of it."""

    def __init__(self, directory: Path) -> None:
        self.fleet = UserFleet(directory)
        self.dsn = self.fleet.up("--name", "web")["endpoints"]["cluster"]["dsn"]
        self._found = options.find(directory)

    def status(self, name: str = "web") -> dict[str, Any]:
        """As it is now, without starting a process for it."""
        return self._found.status(name)

    def scale(self, name: str, *words: str) -> None:
        """Other bounds."""
        self.fleet.run("scale", name, *words)

    def until_paused(self, name: str) -> None:
        """Raises RuntimeError, with what keeps it awake."""
        ends_s = time.monotonic() + _PAUSED_WITHIN_S
        while (now := self.status(name))["state"] != "paused" or any(each["pid"] for each in now["instances"]):
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{name} was not paused: {now['capacity']}")
            time.sleep(0.2)


@contextmanager
def sessions(dsn: str, count: int, statement: str) -> Iterator[Callable[[], int]]:
    """So many sessions that repeat a statement; how many were answered by now."""
    stop, done = threading.Event(), [0] * count

    def work(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not stop.is_set():
                session.execute(statement.encode())
                done[number] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


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
        with psycopg.connect(subject.dsn, connect_timeout=60) as session:
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


def steps(subject: Subject, figures: Figures, seconds: float) -> None:
    """A step from nothing to four sessions that compute, and back: what is in force meanwhile."""
    subject.scale("web", "--min", "0.5", "--max", "4")
    began_s = time.monotonic()

    def watch(until_s: float, working: int) -> None:
        while time.monotonic() - began_s < until_s:
            acu = float(subject.status()["capacity"]["acu"])
            figures.timeline.append((round(time.monotonic() - began_s, 3), acu, working))
            time.sleep(_LOOK_S)

    watch(seconds / 4, 0)
    with sessions(subject.dsn, 4, _QUERY):
        watch(seconds, 4)
    at = [(when - seconds / 4, acu) for when, acu, working in figures.timeline if working]
    for name, wanted in (("first step", 1.0), ("half", 2.0), ("all", 4.0)):
        reached = [when for when, acu in at if acu >= wanted]
        figures.step[name] = round(reached[0], 2) if reached else float("nan")


def throughput(subject: Subject, figures: Figures, seconds: float) -> None:
    """The same work with a capacity that is fixed, and with one that has to come up first."""
    for name, bounds in (("fixed at 4 ACU", ("4", "4")), ("from 0.5 to 4 ACU", ("0.5", "4"))):
        subject.scale("web", "--off")
        subject.scale("web", "--min", bounds[0], "--max", bounds[1])
        with sessions(subject.dsn, 4, _QUERY) as done:
            time.sleep(seconds)
            figures.throughput[name] = round(done() / seconds, 1)


def beside_a_noisy_one(subject: Subject, figures: Figures, seconds: float) -> None:
    """Commits of a quiet tenant, alone and beside one that writes as much as its capacity lets it."""
    noisy = subject.fleet.json("create", "noisy", timeout_s=120)
    noisy = noisy if "endpoints" in noisy else subject.status("noisy")
    subject.scale("noisy", "--min", "0.5", "--max", "1")
    dsn = noisy["endpoints"]["cluster"]["dsn"]
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("create table if not exists noise (i int, t text)")
    with psycopg.connect(subject.dsn, autocommit=True) as session:
        session.execute("create table if not exists ticks (i int)")
    figures.commits_ms["alone"] = _commits(subject.dsn, seconds)
    with sessions(dsn, 4, _NOISE):
        time.sleep(1)
        figures.commits_ms["beside a noisy one"] = _commits(subject.dsn, seconds)


def _commits(dsn: str, seconds: float) -> dict[str, float]:
    took: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as session:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            session.execute(_COMMIT)
            took.append(1000 * (time.monotonic() - began_s))
            time.sleep(0.01)
    ordered = sorted(took)
    return {
        "commits": len(ordered),
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }


def paused_tenants(subject: Subject, figures: Figures, tenants: int, seconds: float) -> None:
    """What more of them cost while they are paused, and how long it takes when all are woken at once."""
    whole = FleetProcesses(subject.fleet.data_dir)
    before = whole.memory_bytes()
    names = [f"tenant{number}" for number in range(tenants)]
    for name in names:
        subject.fleet.run("clone", "web", name, timeout_s=180)
        subject.scale(name, "--min", "0", "--max", "1", "--pause-after", str(_PAUSE_AFTER_S))
    for name in names:
        subject.until_paused(name)
    time.sleep(2)
    figures.paused["tenants"] = tenants
    figures.paused["MB each"] = round((whole.memory_bytes() - before) / tenants / 1e6, 1)
    began = whole.cpu_s()
    time.sleep(seconds)
    figures.paused["CPU % of all of it, while nobody works"] = round(100 * (whole.cpu_s() - began) / seconds, 1)
    dsns = [subject.status(name)["endpoints"]["cluster"]["dsn"] for name in names]
    took: list[float] = []

    def wake(dsn: str) -> None:
        began_s = time.monotonic()
        with psycopg.connect(dsn, connect_timeout=60) as session:
            session.execute("select 1")
        took.append(time.monotonic() - began_s)

    threads = [threading.Thread(target=wake, args=(dsn,)) for dsn in dsns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    figures.paused["woken at once, the last after s"] = round(max(took), 2) if len(took) == tenants else float("nan")


def measure(
    figures: Figures, work_dir: Path | None, *, rounds: int, seconds: float, tenants: int, days: int, scale: int
) -> Figures:
    """One after the other, on a fleet of its own."""
    figures.days = [asdict(judge(bursty(seed))) for seed in range(days)]
    with prepared(work_dir=work_dir) as site:
        directory = site.directory("serverless") / "fleet"
        subject = Subject(directory)
        parts: tuple[tuple[str, Callable[[], None]], ...] = (
            ("resumes", lambda: figures.resumes_s.extend(resumes(subject, rounds))),
            ("a step of load", lambda: steps(subject, figures, 2 * seconds)),
            ("throughput", lambda: throughput(subject, figures, seconds)),
            ("a noisy tenant", lambda: beside_a_noisy_one(subject, figures, seconds)),
            ("paused tenants", lambda: paused_tenants(subject, figures, tenants, seconds)),
            *([("resumes with data", lambda: large_resumes(subject, figures, rounds, scale))] if scale else []),
        )
        try:
            for words, part in parts:
                typer.echo(f"  {words} (load {os.getloadavg()[0]:.1f})")
                figures.load_averages.append(round(os.getloadavg()[0], 2))
                part()
            time.sleep(_WRITTEN_S)
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
    for name, value in figures.paused.items():
        yield f"Paused tenants, {name}: {value:g}"
    for name, stage in figures.stages_ms.items():
        yield f"{name}, {stage['count']:g} times: p50 {stage['p50']:.1f} ms, max {stage['max']:.1f} ms"
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
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file; the plot beside it")] = None,
) -> None:
    """Serverless capacity: resumes, steps, paused and noisy tenants. Example: python -m benchmarks serverless."""
    figures, path = Figures(), out or OUT / f"serverless-{time.strftime('%Y%m%d-%H%M%S')}.json"
    say = Said("serverless")
    try:
        measure(figures, work_dir, rounds=rounds, seconds=seconds, tenants=tenants, days=days, scale=scale)
    finally:
        say.all(sentences(figures))
        say.save(path, **vars(figures))
    plot(figures, path.with_suffix(".png"))
    typer.echo(f"Plot: {os.path.relpath(path.with_suffix('.png'))}")
