"""Of the benchmark of serverless capacity, what can be judged without a fleet."""

from __future__ import annotations

from pathlib import Path

from aurora_ray.telemetry.spanreader import StoredSpan
from benchmarks.serverless import Figures, by_stage, plot, sentences
from benchmarks.serverless_trace import bursty, judge


def test_a_trace_is_the_same_for_the_same_seed_and_the_policy_stays_near_the_oracle() -> None:
    trace = bursty(1, 7200)
    assert trace == bursty(1, 7200)
    day = judge(trace)
    assert day.oracle <= day.peak
    assert day.under < 0.1 * day.oracle
    assert day.over < day.peak - day.oracle, "cheaper than a machine for the peak"
    assert day.short_s < 600


def test_a_load_that_stays_the_same_costs_what_the_oracle_gives() -> None:
    day = judge([0.5] * 3600)
    assert day.over <= 0.25 * day.oracle
    assert day.under <= 10


def test_what_is_said(tmp_path: Path) -> None:
    figures = Figures(resumes_s=[0.5, 0.7, 0.6], timeline=[(0.0, 0.5, 0), (1.0, 2.0, 4)])
    figures.step["all"] = 1.5
    figures.days = [{"oracle": 100.0, "over": 20.0, "under": 1.0, "peak": 400.0, "short_s": 3.0}]
    figures.commits_ms["alone"] = {"p50": 2.0, "p99": 5.0, "max": 9.0, "commits": 10}
    figures.take_over({"paused": {"50": {"MB each": 20.5}}, "commits_ms": figures.commits_ms})
    told = "\n".join(sentences(figures))
    assert "p50 0.60 s, max 0.70 s" in told
    assert "20 % more ACU-seconds than the oracle's, 1.0 % less; a machine for the peak takes 400 %" in told
    assert "50 paused tenants, MB each: 20.5" in told
    assert "Commits of a quiet tenant, alone: p50 2.0 ms" in told
    plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def step(trace: str, took_ms: int, error: str | None = None) -> list[StoredSpan]:
    def span(name: str, parent: str, end_ms: int) -> StoredSpan:
        return StoredSpan(trace, f"{trace}-{name}", parent, name, "test", 0, end_ms * 10**6, {}, {}, error)

    return [span("capacity.step", "", took_ms), span("capacity.give", f"{trace}-capacity.step", took_ms // 2)]


def test_stages_are_told_of_those_that_came_to_their_end() -> None:
    remnant = step("c", 1000)[1:]
    found = by_stage([step("a", 100), step("b", 300), remnant, step("d", 9000, "no answer")])
    assert found == {
        "step: capacity.give": {"count": 2, "p50": 100, "max": 150},
        "step: capacity.step": {"count": 2, "p50": 200, "max": 300},
    }
