"""Small files of state: whole, private, and there after a power cut."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_ray.durable import make_file, move_tree, remove_file, replace_file


def _note(path: Path) -> str:
    """A name for what an fsync was about."""
    return "dir" if path.is_dir() else "file"


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs and renames, in order."""
    seen: list[str] = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def noted_fsync(descriptor: int) -> None:
        seen.append(f"sync {_note(Path(os.readlink(f'/proc/self/fd/{descriptor}')))}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        seen.append("rename")
        return replace(self, target)

    def noted_link(source: Path, target: Path) -> None:
        seen.append("rename")
        link(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(os, "link", noted_link)
    return seen


@pytest.mark.parametrize("write", [replace_file, make_file])
def test_content_is_synced_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, trace: list[str], write: Callable[[Path, str], object]
) -> None:
    write(tmp_path / "state.toml", "content")
    assert trace == ["sync file", "rename", "sync dir"]
    assert (tmp_path / "state.toml").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "state.toml").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state.toml"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "state"
    replace_file(path, "old")
    if step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(os, "fsync" if step == "fsync" else "fchmod", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    assert make_file(tmp_path / "token", "first")
    assert not make_file(tmp_path / "token", "second")
    assert (tmp_path / "token").read_text() == "first"
    remove_file(tmp_path / "token")
    remove_file(tmp_path / "token")
    assert os.listdir(tmp_path) == []


def test_a_tree_is_synced_before_it_gets_its_name(tmp_path: Path, trace: list[str]) -> None:
    source = tmp_path / "building"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "tool").write_text("x")
    (source / "bin" / "link").symlink_to("nowhere")
    move_tree(source, tmp_path / "tree")
    assert trace.count("sync file") == 1
    assert trace.count("sync dir") == 3
    assert (tmp_path / "tree" / "bin" / "tool").read_text() == "x"
