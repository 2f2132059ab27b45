"""The command without a fleet: help, errors, exit codes, start-up time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_ray.cli.main import FAILURE, WRONG_USE, run

COMMANDS = ("up", "status", "down", "list", "create", "delete", "sql", "events")


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example: aurora" in text
    assert "--json" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from aurora_ray.cli.main import run\n"
        "run(['--help'])\n"
        "heavy = {'ray', 'grpc', 'psycopg', 'pydantic', 'numpy', 'rocksdict'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["create"],
        ["create", "demo", "more"],
        ["up", "--readers", "-1"],
        ["up", "--readers", "many"],
        ["add-reader", "demo", "--tier", "16"],
        ["remove-reader"],
        ["autoscale-readers", "demo", "--min", "1"],
        ["endpoint", "create", "demo"],
        ["endpoint", "create", "demo", "some", "--members", "a", "--exclude", "b"],
        ["autoscale-readers", "demo", "--min", "3", "--max", "2", "--target", "50"],
    ],
)
def test_wrong_use_has_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == WRONG_USE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["status"], ["list"], ["sql", "-c", "select 1"], ["create", "x"]])
def test_without_a_fleet_the_way_on_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == FAILURE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "does not exist; start it with `aurora up`" in captured.err


def test_why_idle_sessions_are_not_held_over_a_pause_is_said_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["scale", "demo", "--min", "0", "--max", "4", "--pause-idle-sessions"]) == WRONG_USE
    told = capsys.readouterr().err
    assert "open sessions always keep a cluster awake" in told
    assert "idle_session_timeout" in told


def test_down_without_a_fleet_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is False
    assert run(["down", "--destroy", "--yes"]) == 0


def test_a_region_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: object) -> None:
    assert run(["up", "--region", "atlantis-1"]) in (FAILURE, WRONG_USE)
    assert "atlantis-1" in capsys.readouterr().err


def test_bad_settings_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_GROUP_BYTES", "plenty")
    assert run(["status"]) == FAILURE
    assert "AURORA_GROUP_BYTES=plenty" in capsys.readouterr().err


def test_a_data_directory_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert run(["up", "--data-dir", str(path)]) == FAILURE
    assert str(path) in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs engines as another account")
def test_a_missing_engine_account_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AURORA_ENGINE_USER", "nobody-of-that-name")
    assert run(["up"]) == FAILURE
    assert "make account" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_nothing_is_said_to_be_removed_where_nothing_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--destroy", "--yes", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"there was no fleet in {tmp_path}\n"
