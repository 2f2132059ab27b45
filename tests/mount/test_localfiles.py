"""Local files are found wherever they are, and looking for them stops nobody."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from aurora_ray.mount import localfiles
from aurora_ray.mount.localfiles import LocalFiles, files_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aurora_ray.interposer.region import Region


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[LocalFiles, dict[int, int]]]:
    """Looks below `tmp_path` for files by slot; the dictionary says which inode a slot has."""
    inodes: dict[int, int] = {}
    region = SimpleNamespace(slot=lambda slot: SimpleNamespace(ino=inodes[slot]))
    it = LocalFiles(cast("Region", region), tmp_path)
    yield it, inodes
    it.close()


def test_directories_that_go_away_during_a_look_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "gone", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
    scan = os.scandir

    def scan_late(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(localfiles.os, "scandir", scan_late)
    assert sorted(files_below(str(tmp_path)).values()) == [str(tmp_path / "a" / "f"), str(tmp_path / "z" / "f")]


async def test_a_file_is_found_by_a_look_in_a_thread_and_never_by_one_in_the_event_loop(
    tmp_path: Path, tree: tuple[LocalFiles, dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, inodes = tree
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"here")
    inodes[3] = (tmp_path / "d" / "f").stat().st_ino
    looks = []
    look = files_below
    monkeypatch.setattr(localfiles, "files_below", lambda root: looks.append(root) or look(root))
    assert files.get(3) is None
    assert looks == []
    fd = await files.find(3)
    assert fd is not None
    assert os.pread(fd, 9, 0) == b"here"
    assert files.get(3) == fd
    assert len(looks) == 1
    inodes[4] = 1 << 60
    assert files.get(4) is None
    await files.refresh()  # too soon after the last one
    assert len(looks) == 1


async def test_a_renamed_file_is_found_again(tmp_path: Path, tree: tuple[LocalFiles, dict[int, int]]) -> None:
    files, inodes = tree
    (tmp_path / "old").touch()
    inodes[1] = (tmp_path / "old").stat().st_ino
    files.know(1, b"old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert files.get(1) is None
    assert await files.find(1) is not None


async def test_a_file_of_a_process_is_found_through_its_descriptor(
    tmp_path: Path, tree: tuple[LocalFiles, dict[int, int]]
) -> None:
    files, inodes = tree
    with (tmp_path / "f").open("wb") as open_file:
        inodes[1] = os.fstat(open_file.fileno()).st_ino
        (tmp_path / "f").unlink()
        assert files.get(1, pid=os.getpid(), fd=open_file.fileno()) is not None
