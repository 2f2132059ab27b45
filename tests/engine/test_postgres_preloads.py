"""When a server is asked for the libraries that its owner has it load."""

from pathlib import Path

import pytest

from aurora_ray.engine.postgres.commit import may_preload
from aurora_ray.engine.postgres.configuration import AUTO, CONF, Rung, conf_text
from aurora_ray.engine.postgres.settings import default_settings
from aurora_ray.engine.sizes import LEAST_SIZE

SAMPLE = """\
#shared_preload_libraries = ''          # (change requires restart)
#include_dir = '...'                    # include files ending in '.conf' from
max_connections = 100  # include nothing
session_preload_libraries = 'auto_explain'
"""
NAMES = (
    "shared_preload_libraries = 'auto_explain'",
    "\tShared_Preload_Libraries 'auto_explain'",
    "shared_preload_libraries=auto_explain",
    "include 'other.conf'",
    "  INCLUDE_IF_EXISTS 'other.conf'",
    "include_dir='conf.d'",
)


def ours(data_dir: Path, parameters: dict[str, str], rung: Rung = Rung.ALL) -> Path:
    path = data_dir.parent / "ours.conf"
    defaults = default_settings(major=18, size=LEAST_SIZE)
    path.write_text(conf_text(data_dir, rung, hba=None, defaults=defaults, parameters=parameters))
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    (path / CONF).write_text(SAMPLE)
    (path / AUTO).write_text("work_mem = '8MB'\n")
    return path


def test_it_is_not_asked_where_nothing_names_any(data_dir: Path) -> None:
    assert not may_preload(ours(data_dir, {"work_mem": "8MB"}), data_dir)
    (data_dir / AUTO).unlink()
    (data_dir / CONF).unlink()
    assert not may_preload(ours(data_dir, {}), data_dir)


@pytest.mark.parametrize("line", NAMES)
@pytest.mark.parametrize("name", [CONF, AUTO])
def test_it_is_asked_where_a_file_names_some_or_takes_in_another(data_dir: Path, name: str, line: str) -> None:
    (data_dir / name).write_text(f"{SAMPLE}{line}\n")
    assert may_preload(ours(data_dir, {}), data_dir)


def test_it_is_asked_where_a_parameter_names_some(data_dir: Path) -> None:
    assert may_preload(ours(data_dir, {"shared_preload_libraries": "auto_explain"}), data_dir)


def test_it_is_asked_where_a_file_is_not_here_yet(data_dir: Path) -> None:
    (data_dir / CONF).write_bytes(bytes(8192))
    assert may_preload(ours(data_dir, {}), data_dir)
