"""The tree that a mount makes: names, sizes and modes, and nothing left where that fails."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import random
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import ConfigurationError, MalformedError
from aurora_ray.log import record
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.log.layout import RecordType
from aurora_ray.mount import discarding
from aurora_ray.mount.localtree import leave_in_waiting, make_tree

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


def look_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Of all below a directory: kind, mode and owner, a file's size and names, a link's target."""
    found: dict[str, tuple[object, ...]] = {}
    numbers: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        st = path.lstat()
        name = str(path.relative_to(root))
        more: tuple[object, ...] = ()
        if stat.S_ISREG(st.st_mode):
            more = st.st_size, st.st_blocks, numbers.setdefault(st.st_ino, name)
        elif stat.S_ISLNK(st.st_mode):
            more = (os.readlink(path),)
        found[name] = (st.st_mode, st.st_uid, st.st_gid, *more)
    return found


def inodes_of(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_ino for path in root.rglob("*")}


def random_table(rng: random.Random) -> FileTable:
    """Of few names, so that two tables have some in common, and the same name for other things."""
    table = FileTable()
    directories = [b""]
    for number in range(1, 60):
        path = rng.choice(directories) + b"%c" % rng.choice(b"abcdef")
        mode = rng.choice([0o600, 0o640, 0o700, 0o755])
        match rng.randrange(6):
            case 0:
                wanted = [record.mkdir(path, mode)]
            case 1:
                wanted = [record.symlink(b"somewhere", path)]
            case 2 if number > 1:
                known = [entry.paths[0] for entry in table.entries() if entry.kind is FileKind.FILE and entry.paths]
                wanted = [record.link(number, rng.choice(known), path)] if known else []
            case _:
                wanted = [record.create(number, path, mode), record.size(number, rng.choice([0, 1, 8192, 1 << 20]))]
        for each in wanted:
            with contextlib.suppress(MalformedError):
                table.apply(replace(each, lsn=number))
                if each.type is RecordType.MKDIR:
                    directories.append(path + b"/")
    return table


@pytest.mark.parametrize("seed", range(40))
def test_a_tree_in_waiting_becomes_whatever_the_volume_is_when_it_is_mounted(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    before, between, after = random_table(rng), random_table(rng), random_table(rng)
    mount = tmp_path / "mount"
    leave_in_waiting(before, mount, "v", None, None)
    number = discarding.waiting(mount, "v").stat().st_ino
    leave_in_waiting(between, mount, "v", None, None)
    make_tree(between, tmp_path / "fresh", None, None)
    assert look_of(discarding.waiting(mount, "v")) == look_of(tmp_path / "fresh"), "it follows"
    files = make_tree(after, mount, None, None, out_of=discarding.waiting(mount, "v"))
    made = make_tree(after, tmp_path / "fresh", None, None)
    assert mount.stat().st_ino == number, "the same tree all the time"
    assert look_of(mount) == look_of(tmp_path / "fresh")
    assert [file.entry.file_id for file in files] == [file.entry.file_id for file in made]
    numbers = inodes_of(mount)
    assert all(numbers[os.fsdecode(file.entry.paths[0])] == file.ino for file in files)
    assert discarding.in_waiting(mount) == []


def test_what_is_the_same_is_not_made_again(tmp_path: Path) -> None:
    table = table_of(record.mkdir(b"d", 0o750), record.create(1, b"d/f", 0o640), record.size(1, 100_000))
    mount = tmp_path / "mount"
    leave_in_waiting(table, mount, "v-1", None, None)
    leave_in_waiting(table, mount, "v-2", None, None)
    ready = discarding.waiting(mount, "v-2")
    assert discarding.in_waiting(mount) == [ready], "one waits"
    made = inodes_of(ready)
    times = {path: path.stat().st_ctime_ns for path in ready.rglob("*")}
    leave_in_waiting(table, mount, "v-2", None, None)
    assert {path: path.stat().st_ctime_ns for path in ready.rglob("*")} == times
    mount.mkdir()
    make_tree(table, mount, None, None, out_of=discarding.waiting(mount, "v-1"))
    assert inodes_of(mount) != made, "it is of another volume"
    make_tree(table, mount, None, None, out_of=ready)
    assert inodes_of(mount) == made


@pytest.mark.parametrize(
    "what", ["content", "another name", "a link out of it", "a link instead of a directory", "fifo"]
)
def test_of_a_tree_in_waiting_nothing_is_believed(tmp_path: Path, what: str) -> None:
    table = table_of(
        record.mkdir(b"d", 0o750), record.create(1, b"d/f", 0o640), record.size(1, 100_000), record.create(2, b"g")
    )
    mount, outside = tmp_path / "mount", tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("somebody's")
    leave_in_waiting(table, mount, "v", None, None)
    ready = discarding.waiting(mount, "v")
    planted = ready / "d" / "f"
    match what:
        case "content":
            planted.write_bytes(b"x")
        case "another name":
            os.link(planted, outside / "g")
        case "a link out of it":
            planted.unlink()
            planted.symlink_to(outside / "f")
        case "a link instead of a directory":
            planted.unlink()
            (ready / "d").rmdir()
            (ready / "d").symlink_to(outside)
        case _:
            planted.unlink()
            os.mkfifo(planted)
    make_tree(table, mount, None, None, out_of=ready)
    make_tree(table, tmp_path / "fresh", None, None)
    assert look_of(mount) == look_of(tmp_path / "fresh")
    assert (outside / "f").read_text() == "somebody's"
    assert not (outside / "g").exists() or (outside / "g").stat().st_nlink == 1
    assert not discarding.in_waiting(mount)


def test_files_are_for_the_account_that_runs_the_engine(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    table = table_of(record.mkdir(b"d", 0o750), record.create(1, b"d/f", 0o4640), record.symlink(b"d/f", b"link"))
    leave_in_waiting(table, tmp_path / "mount", "v", None, None)
    make_tree(table, tmp_path / "mount", 65534, 65534, out_of=discarding.waiting(tmp_path / "mount", "v"))
    make_tree(table, tmp_path / "fresh", 65534, 65534)
    assert look_of(tmp_path / "mount") == look_of(tmp_path / "fresh")
    assert {(uid, gid) for _, uid, gid, *_ in look_of(tmp_path / "mount").values()} == {(65534, 65534)}


@pytest.mark.parametrize("in_waiting", [False, True])
def test_work_that_is_ended_in_the_middle_leaves_nothing(tmp_path: Path, in_waiting: bool) -> None:
    table = table_of(*(record.create(number, b"%d" % number) for number in range(1, 31)))

    def end(_: int) -> None:
        raise KeyError

    if in_waiting:
        leave_in_waiting(table, tmp_path / "mount", "v", None, None)
    with pytest.raises(KeyError):
        leave_in_waiting(table, tmp_path / "mount", "v", None, None, made=end, at_once=10)
    assert os.listdir(tmp_path) == []


async def test_what_nobody_took_is_swept(tmp_path: Path) -> None:
    leave_in_waiting(table_of(record.create(1, b"f", 0o640)), tmp_path / "mount", "v", None, None)
    await discarding.sweep(tmp_path / "mount", 0)
    assert os.listdir(tmp_path) == []
