"""What the command refuses, asks and says about itself before and after it reached a fleet."""

from pathlib import Path
from typing import Any

import pytest

from aurora_ray.cli import options, output
from aurora_ray.cli.main import FAILURE, WRONG_USE, run


class Nothing:
    """A fleet in which there is nothing to strike, and whose answers nobody needs."""

    def chaos(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []

    def status(self, _: str) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def _fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(options, "find", lambda _: Nothing())


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
@pytest.mark.parametrize("arguments", [["down", "--destroy"], ["delete", "demo"]])
def test_a_no_removes_nothing_and_says_so(
    answer: str, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirm(*_: Any, **__: Any) -> bool:
        if not answer:
            raise output.typer.Abort
        return False

    monkeypatch.setattr(output.typer, "confirm", confirm)
    assert run(arguments) == FAILURE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == "aurora: nothing was removed."


@pytest.mark.parametrize("verb", ["heal", "resume"])
def test_what_ends_a_fault_takes_no_time(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chaos", verb, "--help"]) == 0
    assert "--for" not in capsys.readouterr().out
    assert run(["chaos", verb, "writer", "--for", "5"]) == WRONG_USE
    capsys.readouterr()
    assert run(["chaos", verb, "node:a-1"]) == 0
    assert capsys.readouterr().out == "nothing was in force\n"


@pytest.mark.parametrize("other", ["--json", "--watch"])
def test_metrics_are_text(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--metrics", other]) == WRONG_USE
    assert "leave out --json and --watch" in capsys.readouterr().err
