"""A step of a capacity is one trace, and so is a resume: from the need to what is in force."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_ray import telemetry
from aurora_ray.control.decide.reconcile import OpenInstance
from aurora_ray.control.decide.serverless import ResumeCluster, ScaleInstance
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.report.capacities import Capacities
from aurora_ray.telemetry.spanreader import StoredSpan, read_traces
from aurora_ray.telemetry.waterfall import summarise, waterfall
from tests.control.fleets import running_fleet

STEP = ScaleInstance("0.5 to 1 ACU: busy", "demo", "demo-1", 1.0)
RESUME = ResumeCluster("somebody waits", "demo")
OPEN = OpenInstance("it shall serve", "demo", "demo-1", False)
SECOND_NS = 10**9


class Watched:
    """What the traces are told of, and the spans that came of it."""

    def __init__(self, directory: Path) -> None:
        fleet = running_fleet()
        self.paused = fleet.with_cluster(
            replace(fleet.clusters[0], capacity=Capacity(0, 8), paused_since_s=time.time() - 60)
        )
        self.runs = fleet.with_cluster(replace(fleet.clusters[0], capacity=Capacity(0, 8)))
        self.now_ns = time.time_ns()
        status = SimpleNamespace(stats={"looked_at_unix_s": self.now_ns / 1e9 - 0.25})
        in_force = SimpleNamespace(seen=SimpleNamespace(capacity=SimpleNamespace(acu=1.0)))
        self.declared = SimpleNamespace(fleet=self.runs)
        self.endpoints = SimpleNamespace(held_since_ns={"demo": self.now_ns - SECOND_NS}, serves=lambda _: self.leads)
        processes = SimpleNamespace(last_status=lambda _: status, instances={"demo-1": in_force})
        self.leads = False
        parts: Any = (self.declared, processes, self.endpoints)
        self.capacities = Capacities(*parts, clock_ns=lambda: self.now_ns)
        self._directory = directory

    def carries_out(self, action: Any, name: str) -> None:
        with self.capacities.around(action), telemetry.span(name):
            self.now_ns += SECOND_NS
        self.capacities.done(action)

    def traces(self) -> list[list[StoredSpan]]:
        telemetry.flush()
        return list(read_traces(self._directory).values())


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    telemetry.configure("test", span_dir=tmp_path)
    yield Watched(tmp_path)
    telemetry.shutdown()


def names(spans: list[StoredSpan]) -> list[tuple[int, str]]:
    return [(row.depth, row.span.name) for row in waterfall(spans) if row.span is not None]


def test_a_step_begins_with_the_look_that_showed_the_need(watched: Watched) -> None:
    watched.carries_out(STEP, "control.ScaleInstance")
    (spans,) = watched.traces()
    assert names(spans) == [(0, "capacity.step"), (1, "capacity.decide"), (1, "control.ScaleInstance")]
    step = summarise(spans)
    assert step.whole
    assert step.duration_ms == pytest.approx(1250, abs=1)
    assert (step.attributes["aurora.acu"], step.attributes["aurora.acu.in_force"]) == (1, 1)


def test_a_step_that_fails_says_so(watched: Watched) -> None:
    with pytest.raises(TimeoutError), watched.capacities.around(STEP):
        raise TimeoutError("no answer")
    (spans,) = watched.traces()
    assert summarise(spans).error is not None


def test_a_resume_lasts_until_whoever_waits_is_led_to_the_engine(watched: Watched) -> None:
    watched.declared.fleet = watched.paused
    with watched.capacities.around(RESUME), telemetry.span("control.ResumeCluster"):
        watched.capacities.done(STEP)  # something else, before it is declared
        watched.declared.fleet = watched.runs
    watched.capacities.done(RESUME)
    watched.carries_out(OPEN, "control.OpenInstance")
    assert watched.traces() == [] or not any(summarise(spans).whole for spans in watched.traces())
    watched.now_ns += SECOND_NS
    watched.leads = True
    watched.capacities.done(STEP)
    (spans,) = watched.traces()
    assert [name for _, name in names(spans)] == [
        "capacity.resume",
        "capacity.decide",
        "control.ResumeCluster",
        "control.OpenInstance",
        "capacity.lead",
    ]
    assert summarise(spans).duration_ms == pytest.approx(3000, abs=1)


def pauses_again(watched: Watched) -> None:
    watched.declared.fleet = watched.paused


def is_deleted(watched: Watched) -> None:
    watched.declared.fleet = replace(watched.runs, clusters=())


@pytest.mark.parametrize("becomes", [pauses_again, is_deleted])
def test_a_resume_that_came_to_nothing_is_not_kept(watched: Watched, becomes: Callable[[Watched], object]) -> None:
    with watched.capacities.around(RESUME):
        pass
    watched.capacities.done(RESUME)
    becomes(watched)
    watched.capacities.done(STEP)
    (spans,) = watched.traces()
    assert summarise(spans).whole
    assert watched.capacities._resumes == {}
