"""Pass files follow what is declared, whatever became of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.control.perform import passfiles
from aurora_ray.control.report.status import passfile
from tests.control.fleets import running_fleet

WHOLE = "*:*:*:postgres:declared\n"


@pytest.mark.parametrize("damage", [None, b"", b"*:*:*", b"\xff\xfe garbage"])
def test_what_is_gone_or_damaged_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    path = passfile(tmp_path, "demo", "postgres")
    path.parent.mkdir()
    if damage is not None:
        path.write_bytes(damage)
    follow(tmp_path)
    assert path.read_text() == WHOLE
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_password_stays_and_is_hidden_from_others(tmp_path: Path) -> None:
    path = passfile(tmp_path, "demo", "postgres")
    path.parent.mkdir()
    path.write_text("# mine\n*:*:*:postgres:changed\n")
    path.chmod(0o644)
    follow(tmp_path)
    assert path.read_text() == "# mine\n*:*:*:postgres:changed\n"
    assert path.stat().st_mode & 0o777 == 0o600


def follow(data_dir: Path) -> None:
    fleet = running_fleet()
    said: list[str] = []
    declared = replace(fleet.cluster("demo"), superuser_password="declared")  # noqa: S106
    passfiles.follow(data_dir, fleet.with_cluster(declared), said.append)
    assert not said
