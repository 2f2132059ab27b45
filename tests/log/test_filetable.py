"""The file table does what a file system does; it is compared with a plain dictionary of paths."""

from __future__ import annotations

import random

import pytest

from aurora_ray.errors import MalformedError
from aurora_ray.log import record as rec
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.log.sizes import NO_GROUP


def table(*records: rec.Record) -> FileTable:
    built = FileTable()
    for record in records:
        built.apply(record)
    return built


def names(built: FileTable) -> dict[bytes, str]:
    return {path: entry.kind.value for entry in built.entries() for path in entry.paths}


def test_a_directory_moves_with_all_below():
    built = table(
        rec.mkdir(b"a"),
        rec.mkdir(b"a/b"),
        rec.create(1, b"a/b/f"),
        rec.symlink(b"b/f", b"a/s"),
        rec.rename(0, b"a", b"c"),
    )
    assert names(built) == {b"": "dir", b"c": "dir", b"c/b": "dir", b"c/b/f": "file", b"c/s": "symlink"}
    entry = built.by_id(1)
    assert entry is not None
    assert entry.paths == (b"c/b/f",)
    assert [e.paths[0] for e in built.entries() if e.kind is FileKind.DIRECTORY] == [b"", b"c", b"c/b"], "parents first"


def test_a_rename_replaces_and_the_old_file_waits_for_its_drop():
    built = table(rec.create(1, b"old"), rec.create(2, b"new"), rec.rename(2, b"new", b"old"))
    assert names(built) == {b"": "dir", b"old": "file"}
    found, orphan = built.lookup(b"old"), built.by_id(1)
    assert found is not None
    assert found.file_id == 2
    assert orphan is not None
    assert orphan.paths == ()
    built.apply(rec.drop(1))
    assert built.by_id(1) is None
    assert built.next_file_id == 3


def test_links_sizes_modes_and_extents():
    built = table(
        rec.create(5, b"f", 0o640), rec.link(5, b"f", b"g"), rec.size(5, 100), rec.truncate(5, 40),
        rec.chmod(b"g", 0o600), rec.extent(5, 2, 7), rec.unlink(5, b"f"),
    )  # fmt: skip
    entry = built.lookup(b"g")
    assert entry is not None
    assert (entry.paths, entry.size, entry.mode, list(entry.extents)) == ((b"g",), 40, 0o600, [NO_GROUP, NO_GROUP, 7])
    assert built.lookup(b"f") is None


@pytest.mark.parametrize(
    "record",
    [
        rec.create(1, b"no/such/dir"), rec.create(9, b"f"), rec.unlink(3, b"nothing"), rec.rmdir(b"full"),
        rec.rename(0, b"full", b"full/x/y"), rec.mkdir(b"full"), rec.unlink(0, b"full"), rec.drop(44), rec.size(44, 1),
        rec.mkdir(b""), rec.mkdir(b"a/../b"), rec.link(0, b"full", b"z"), rec.rename(9, b"f", b"full"),
    ],
)  # fmt: skip
def test_what_a_file_system_refuses_changes_nothing(record):
    built = table(rec.mkdir(b"full"), rec.mkdir(b"full/x"), rec.create(9, b"f"))
    before = built.pack()
    with pytest.raises(MalformedError):
        built.apply(record)
    assert built.pack() == before


@pytest.mark.parametrize("seed", range(20))
def test_random_operations_pack_and_unpack(seed):
    choose = random.Random(seed)
    built, model = FileTable(), {b"": "dir"}
    for step in range(1, 200):
        parents = [path for path, kind in model.items() if kind == "dir"]
        path = (choose.choice(parents) + b"/%d" % choose.randrange(12)).lstrip(b"/")
        kind = model.get(path)
        if kind is None:
            made = choose.choice(["file", "dir", "symlink"])
            model[path] = made
            built.apply(
                {"file": rec.create(step, path), "dir": rec.mkdir(path), "symlink": rec.symlink(b"t", path)}[made]
            )
        elif kind == "dir" and choose.random() < 0.5:
            target = b"moved%d" % step
            built.apply(rec.rename(0, path, target))
            below = [p for p in model if p == path or p.startswith(path + b"/")]
            for old in below:
                model[target + old[len(path) :]] = model.pop(old)
        elif kind != "dir":
            built.apply(rec.unlink(0, path))
            del model[path]
        if step % 50 == 0:
            packed = built.pack()
            built = FileTable.unpack(packed)
            assert built.pack() == packed
    assert names(built) == model


def test_damaged_packs_are_refused():
    packed = table(rec.mkdir(b"d"), rec.create(1, b"d/f")).pack()
    for nbytes in range(len(packed)):
        with pytest.raises(MalformedError):
            FileTable.unpack(packed[:nbytes])
