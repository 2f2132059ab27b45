import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from aurora_ray.engine.image import Patch, import_records, tree_records
from aurora_ray.errors import MalformedError
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import Record
from tests.engine.plain import PAGE_BYTES, build_tree


class Sink:
    """Remembers what was appended, as one list a call."""

    def __init__(self) -> None:
        self.calls: list[list[Record]] = []

    async def append(self, records: Sequence[Record]) -> int:
        self.calls.append(list(records))
        return sum(len(call) for call in self.calls)


@pytest.fixture
def tree(data_dir: Path) -> Path:
    root = data_dir / "tree"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "a" / "small").write_bytes(b"hello")
    (root / "a" / "deep" / "holes").write_bytes(
        b"x" * 10 + bytes(PAGE_BYTES * 70) + b"y" * PAGE_BYTES + bytes(PAGE_BYTES // 2)
    )
    (root / "a" / "link").symlink_to("small")
    (root / "a" / "small").chmod(0o640)
    return root


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes()) for path in files}


def test_a_tree_comes_back_as_it_was(tree: Path, data_dir: Path) -> None:
    copy = data_dir / "copy"
    table = build_tree(tree_records(tree, page_size=PAGE_BYTES), copy)
    assert contents(copy) == contents(tree)
    assert (copy / "a" / "link").readlink() == Path("small")
    assert table.next_file_id == 4


def test_pages_of_zeros_are_not_sent_and_extents_only_where_pages_are(tree: Path) -> None:
    groups = iter([7, 8, 9, 10])
    records = list(tree_records(tree, page_size=PAGE_BYTES, assign_extent=lambda: next(groups)))
    pages = [(record.page, record.group) for record in records if record.type is RecordType.PAGE]
    assert pages == [(0, 7), (70, 8), (71, 8), (0, 9)]
    extents = [(record.page, record.group) for record in records if record.type is RecordType.EXTENT]
    assert extents == [(0, 0), (1, 0), (0, 0)]


def test_the_same_tree_gives_the_same_records(tree: Path) -> None:
    assert list(tree_records(tree, page_size=PAGE_BYTES)) == list(tree_records(tree, page_size=PAGE_BYTES))


def test_some_files_come_last_and_patched(tree: Path, data_dir: Path) -> None:
    records = list(
        tree_records(tree, page_size=PAGE_BYTES, patches=[Patch(b"a/small", 1, b"u")], last=[b"a/small", b"empty"])
    )
    created = [record.body for record in records if record.type is RecordType.CREATE]
    assert created == [b"a/deep/holes", b"a/small", b"empty"]
    build_tree(records, data_dir / "copy")
    assert (data_dir / "copy" / "a" / "small").read_bytes() == b"hullo"
    assert (tree / "a" / "small").read_bytes() == b"hello"


def test_what_cannot_be_in_a_volume_is_refused(tree: Path) -> None:
    with pytest.raises(MalformedError, match="no file nowhere"):
        list(tree_records(tree, page_size=PAGE_BYTES, last=[b"nowhere"]))
    os.mkfifo(tree / "pipe")
    with pytest.raises(MalformedError, match="neither a file"):
        list(tree_records(tree, page_size=PAGE_BYTES))


async def test_an_import_goes_in_chunks_and_in_order(tree: Path) -> None:
    records = list(tree_records(tree, page_size=PAGE_BYTES))
    sink = Sink()
    lsn = await import_records(records, sink, chunk_bytes=200)
    assert lsn == len(records)
    assert len(sink.calls) > 3
    assert [record for call in sink.calls for record in call] == records
    assert await import_records([], Sink()) == 0
