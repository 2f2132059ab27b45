"""`aurora bench` as a user calls it: its help, what it refuses, and load on a fleet from several Ray tasks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.cli.main import FAILURE, WRONG_USE, run
from benchmarks.histograms import percentiles
from tests.cli.fleet import CliFleet, fleet_at

SCALE = 2


@pytest.fixture
def _no_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("command", ["run", "quick", "standard", "full", "report"])
def test_every_command_has_help_with_an_example_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example: aurora bench" in text
    assert "--json" in text


@pytest.mark.usefixtures("_no_fleet")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run"], FAILURE, "start it with `aurora up`"),
        (["run", "--workload", "tpcx"], WRONG_USE, "there is no workload tpcx"),
        (["run", "--tasks", "0"], WRONG_USE, "--tasks"),
        (["quick", "--systems", "oracle"], WRONG_USE, "there is no system oracle"),
        (["quick", "--workloads", "tpcx"], WRONG_USE, "there is no workload tpcx"),
        (["report", "nothing.json"], WRONG_USE, "nothing.json"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


@pytest.fixture
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "bench-fleet") as cli:
        yield cli


@pytest.mark.ray
@pytest.mark.postgres
@pytest.mark.timeout(300)
@pytest.mark.allowed_leaks("process", "shm", "tmp")
def test_several_ray_tasks_load_one_cluster(fleet: CliFleet) -> None:
    """What the generators say they did is what the database has."""
    missing = fleet.run("bench", "run", "--seconds", "1")
    assert missing.returncode == WRONG_USE
    assert "--init SCALE makes them" in missing.stderr

    made = ("--init", str(SCALE), "--tasks", "3", "--clients", "2", "--seconds", "2")
    result: dict[str, Any] = fleet.json("bench", "run", *made, timeout_s=180)
    assert (result["tasks"], result["clients"], result["scale"], len(result["machines"])) == (3, 2, SCALE, 1)
    assert result["all"]["transactions"] > 0
    assert result["all"]["failed"] == 0
    assert fleet.sql("select count(*) from pgbench_history") == [[result["all"]["transactions"]]]
    assert percentiles([result["histogram"]])["p50"] == result["all"]["latency_us"]["p50"] > 0

    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    twice = ("--dsn", dsn, "--dsn", dsn, "--workload", "select", "--rate", "50", "--seconds", "3")
    result = fleet.json("bench", "run", *twice, timeout_s=120)
    assert result["tasks"] == 2, "one for each server at least"
    assert 75 <= result["all"]["transactions"] <= 225, "50 a second by all together, not by each"

    refused = fleet.run("bench", "run", "--dsn", "postgresql://127.0.0.1:1/postgres", "--seconds", "1")
    assert refused.returncode == FAILURE
    assert refused.stderr.count("\n") == 1
    assert json.loads(fleet.check("status", "--json"))["state"] == "available"
