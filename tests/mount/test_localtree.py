"""The tree that a mount makes: names, sizes and modes, and nothing left where that fails."""

from __future__ import annotations

import array
import fcntl
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import ConfigurationError
from aurora_ray.log import record
from aurora_ray.log.filetable import FileTable
from aurora_ray.mount import discarding
from aurora_ray.mount.localtree import leave_in_waiting, make_tree, take_waiting

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.log.record import Record


def table_of(*records: Record) -> FileTable:
    table = FileTable()
    for lsn, each in enumerate(records, 1):
        table.apply(replace(each, lsn=lsn))
    return table


def test_names_sizes_and_modes_are_those_of_the_table(tmp_path: Path) -> None:
    table = table_of(
        record.mkdir(b"d", 0o750),
        record.create(1, b"d/f", 0o640),
        record.size(1, 100_000),
        record.link(1, b"d/f", b"other"),
        record.create(2, b"empty", 0o666),
        record.symlink(b"d/f", b"link"),
    )
    umask = os.umask(0o077)
    try:
        files = make_tree(table, tmp_path / "deep" / "mount", None, None)
    finally:
        os.umask(umask)
    root = tmp_path / "deep" / "mount"
    assert sorted(os.listdir(root)) == ["d", "empty", "link", "other"]
    assert os.listdir(tmp_path / "deep") == ["mount"]
    assert (root / "d" / "f").samefile(root / "other")
    assert os.readlink(root / "link") == "d/f"
    modes = {name: stat.S_IMODE((root / name).lstat().st_mode) for name in ("", "d", "d/f", "empty")}
    assert modes == {"": 0o700, "d": 0o750, "d/f": 0o640, "empty": 0o666}
    found = {file.entry.file_id: (file.ino, file.entry.size) for file in files}
    assert found == {1: ((root / "d" / "f").stat().st_ino, 100_000), 2: ((root / "empty").stat().st_ino, 0)}
    assert (root / "other").stat().st_blocks == 0


def test_a_tree_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    table = table_of(record.create(1, b"a"), record.create(2, b"x" * 300))
    with pytest.raises(ConfigurationError, match="cannot mount"):
        make_tree(table, tmp_path / "mount", None, None)
    assert os.listdir(tmp_path) == []


def test_the_old_tree_is_set_aside_and_what_was_left_half_made_is_swept(tmp_path: Path) -> None:
    first, second = table_of(record.create(1, b"one")), table_of(record.create(1, b"two"))
    make_tree(first, tmp_path / "mount", None, None)
    discarding.unfinished(tmp_path / "mount").mkdir()
    make_tree(second, tmp_path / "mount", None, None)
    assert os.listdir(tmp_path / "mount") == ["two"]
    waiting = discarding._waiting(tmp_path / "mount")
    assert len(waiting) == 2
    assert len(os.listdir(tmp_path)) == 3


def test_trees_are_kept_apart_where_the_file_system_can(tmp_path: Path) -> None:
    make_tree(table_of(), tmp_path / "mount", None, None)
    flags = array.array("L", [0])
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x80086601, flags)
    except OSError:
        return  # such a file system makes inodes in its own way
    finally:
        os.close(fd)
    assert flags[0] & 0x20000


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[int] = []
    table = table_of(*(record.create(number, b"%d" % number) for number in range(1, 1301)))
    make_tree(table, tmp_path / "mount", None, None, made=told.append)
    assert told == [512, 1024, 1300]


def test_a_tree_in_waiting_is_taken_by_who_mounts_the_same_and_by_nobody_else(tmp_path: Path) -> None:
    table = table_of(record.mkdir(b"d", 0o750), record.create(1, b"d/f", 0o640), record.size(1, 100_000))
    mount = tmp_path / "mount"
    leave_in_waiting(table, mount, "v-1", None, None)
    leave_in_waiting(table, mount, "v-2", None, None)
    assert [path.name for path in discarding.in_waiting(mount)] == ["mount.ready-v-2"], "one waits"
    assert take_waiting(table, mount, "v-1") is None
    assert not mount.exists()
    mount.mkdir()
    files = take_waiting(table, mount, "v-2")
    assert files is not None
    assert [(file.ino, file.entry.file_id) for file in files] == [((mount / "d" / "f").stat().st_ino, 1)]
    assert (mount / "d" / "f").stat().st_size == 100_000
    assert take_waiting(table, mount, "v-2") is None


async def test_what_nobody_took_is_swept(tmp_path: Path) -> None:
    leave_in_waiting(table_of(record.create(1, b"f", 0o640)), tmp_path / "mount", "v-1", None, None)
    await discarding.sweep(tmp_path / "mount", 0)
    assert os.listdir(tmp_path) == []
