"""Settings: the environment is read, options beat it, and what is wrong is said in one sentence."""

import ast
from pathlib import Path

import pytest

from aurora_ray.config import GIB, MIB, Settings, load_settings
from aurora_ray.engine.registry import ENGINES
from aurora_ray.errors import ConfigurationError
from aurora_ray.log.sizes import VOLUME_BYTES_MAX
from tests.house.source import PACKAGE, files, parse


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AURORA_{name.upper()}", raising=False)


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = load_settings()
    assert settings.data_dir == tmp_path / "aurora-ray"
    assert settings.telemetry_dir == tmp_path / "aurora-ray" / "telemetry"
    assert settings.group_bytes == 10 * GIB
    assert settings.volume_limit_bytes == VOLUME_BYTES_MAX
    assert settings.engine_user == "aurora-ray"
    assert settings.ray_address is None


def test_an_option_beats_the_environment_and_none_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AURORA_DATA_DIR", str(tmp_path / "environment"))
    monkeypatch.setenv("AURORA_GROUP_BYTES", "64MiB")
    settings = load_settings(data_dir=tmp_path / "option", group_bytes=None)
    assert settings.data_dir == tmp_path / "option"
    assert settings.group_bytes == 64 * MIB


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load_settings(data_dir="here/../there").data_dir == tmp_path / "there"
    assert load_settings(data_dir="~/data").data_dir == tmp_path / "me" / "data"


def test_every_wrong_value_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_CACHE_BYTES", "1 heap")
    monkeypatch.setenv("AURORA_HUNG_AFTER_S", "0")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    message = str(raised.value)
    assert message.count("\n") == 0
    assert "AURORA_CACHE_BYTES=1 heap (" in message
    assert "AURORA_HUNG_AFTER_S=0 (input should be greater than or equal to 1)" in message


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="AURORA_COLOUR=red"):
        load_settings(colour="red")


def test_every_setting_is_read_by_somebody() -> None:
    read = {
        node.attr
        for path in files(".py")
        if PACKAGE in path.parents and path != PACKAGE / "config.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    calls = {
        node.func.attr
        for path in files(".py")
        if PACKAGE in path.parents
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert "bin_dir" in calls  # by which an engine's own setting is read
    assert not Settings.model_fields.keys() - read - {f"{engine}_bin_dir" for engine in ENGINES}
