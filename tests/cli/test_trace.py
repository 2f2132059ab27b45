"""`aurora trace`: what is listed and shown of traces that are there."""

import json
from pathlib import Path

import pytest

from aurora_ray.cli import trace
from aurora_ray.cli.main import run
from aurora_ray.telemetry import spanreader
from aurora_ray.telemetry.spanreader import StoredSpan

WHY = "the writer was lost because " + "of this and that and " * 8 + "nothing else"


def span(trace_id: str, name: str, parent: str, end_ms: float, **attributes: str) -> StoredSpan:
    facts = {f"aurora.{key}": value for key, value in attributes.items()}
    return StoredSpan(trace_id, f"{trace_id}-{name}", parent, name, "test", 0, int(end_ms * 1e6), facts, {}, None)


@pytest.fixture(autouse=True)
def _traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = [
        span("aa", "failover", "", 1500, cluster="demo", why=WHY),
        span("aa", "failover.detect", "aa-failover", 400, why=WHY),
        span("aa", "control.OpenInstance", "aa-failover", 1000),
    ]
    remnant = [span("bb", "failover.detect", "bb-failover", 98.8)]
    flushes = {f"f{number}": [span(f"f{number}", "volume.flush", "", number + 1)] for number in range(30)}
    opened = [span("cc", "writer.open", "", 7)]
    step = [
        span("dd", "capacity.step", "", 90, cluster="demo", why="0.5 to 1 ACU"),
        span("dd", "capacity.decide", "dd-capacity.step", 40),
        span("dd", "control.ScaleInstance", "dd-capacity.step", 90),
    ]
    traces = {"aa": whole, "bb": remnant, "cc": opened, "dd": step, **flushes}
    monkeypatch.setenv("AURORA_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(spanreader, "read_traces", lambda *_: traces)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["trace", *arguments]) == 0
    return capsys.readouterr().out


def test_sampled_flushes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "volume.flush" not in told(capsys, "list")
    text = told(capsys, "list", "--all")
    assert text.count("volume.flush") == 1
    assert "and 30 sampled flushes (volume.flush), the longest took 30.0 ms: f29" in text
    assert "writer.open" in text
    assert len(json.loads(told(capsys, "list", "--all", "--json", "-n", "100"))) == 34


def test_a_trace_without_its_root_is_unfinished(capsys: pytest.CaptureFixture[str]) -> None:
    assert "≥ 98.8 ms, unfinished" in told(capsys, "list")
    assert "≥ 98.8 ms, unfinished" in told(capsys, "show", "bb")


def test_the_reason_is_told_whole_and_beside_a_bar_as_far_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "show", "aa")
    assert f"why={WHY}" in text
    assert f"why={WHY[: trace.VALUE_COLUMNS - 1]}…" in text


def test_the_stages_come_last_the_longest_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "show", "aa").splitlines()[-3:]
    assert [" ".join(line.split()) for line in lines] == [
        "control.OpenInstance 1.00 s",
        "nothing recorded 500.0 ms",
        "failover.detect 400.0 ms",
    ]


def test_steps_of_a_capacity_are_listed_and_drawn_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert "capacity.step" not in told(capsys, "list")
    listed = told(capsys, "list", "--capacity")
    assert "capacity.step demo  0.5 to 1 ACU" in listed
    assert "failover" not in listed
    assert "control.ScaleInstance" in told(capsys, "show", "--capacity")


def test_without_traces_that_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spanreader, "read_traces", lambda *_: {})
    assert "no failover was traced yet" in told(capsys, "list")
    assert told(capsys, "list", "--all") == f"{trace._NOTHING_AT_ALL}\n"
    assert "no step of a capacity was traced yet" in told(capsys, "list", "--capacity")
