"""How much the local cache may hold."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.mount.evictor import default_cache_bytes, within_disk

if TYPE_CHECKING:
    from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(("free", "expected"), [(100 * MIB, 256 * MIB), (40 * GIB, 10 * GIB), (4000 * GIB, 64 * GIB)])
def test_a_cache_is_a_quarter_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    asked = []
    disk = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=1 << 40)
    monkeypatch.setattr(os, "statvfs", lambda path: asked.append(path) or disk)
    assert default_cache_bytes(tmp_path / "not" / "made" / "yet") == expected
    assert asked == [tmp_path]


def test_a_cache_gives_way_when_its_disk_runs_full() -> None:
    disk = 100 * GIB
    assert within_disk(10 * GIB, 3 * GIB, 50 * GIB, disk) == 10 * GIB
    assert within_disk(10 * GIB, 3 * GIB, 5 * GIB, disk) == 6 * GIB
    assert within_disk(10 * GIB, 3 * GIB, 2 * GIB, disk) == 3 * GIB
    assert within_disk(10 * GIB, 3 * GIB, 1 * GIB, disk) == 2 * GIB
    assert within_disk(10 * GIB, 1 * GIB, 0, disk) == 16 * MIB
    assert within_disk(8 * MIB, 8 * MIB, 0, disk) == 8 * MIB
