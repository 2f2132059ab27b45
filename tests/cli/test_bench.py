"""`aurora bench` as a user calls it: its help, and what it refuses. (`test_fleet.py` has load on a fleet.)"""

from pathlib import Path

import pytest

from aurora_ray.cli.main import FAILURE, WRONG_USE, run


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
