"""A snapshot as redo: the same table, the same pages, in no more redo than wrote them; and it can be broken off."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import StorageError
from aurora_ray.log import record
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.record import Record, apply_page
from aurora_ray.log.sizes import NO_GROUP
from aurora_ray.replication import seeding
from aurora_ray.replication.snapshot import is_page, page_record, table_records
from tests.replication.regions import Scribe, caught_up, content_of, ended, replicating, two_regions
from tests.support.timing import scaled
from tests.volume.cluster import PAGE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.allowed_logs("due to server stop")


def made(records: list[Record]) -> FileTable:
    table, lsn = FileTable(), 0
    for each in records:
        lsn += each.encoded_bytes
        table.apply(Record(each.type, each.flags, lsn, each.file_id, each.group, each.page, each.body, each.count))
    return table


def test_a_table_is_made_again_to_the_byte() -> None:
    table = made(
        [
            record.chmod(b"", 0o755),
            record.mkdir(b"base", 0o711),
            record.mkdir(b"base/1"),
            record.symlink(b"base/1", b"link"),
            record.create(7, b"base/1/a", 0o640),
            record.link(7, b"base/1/a", b"other"),
            record.extent(7, 2, 1),
            record.size(7, 99_999),
            record.create(8, b"base/open"),
            record.extent(8, 0, 0),
            record.size(8, 5),
            record.unlink(8, b"base/open"),  # somebody has it open still
            record.create(12, b"gone"),
            record.unlink(12, b"gone"),
            record.drop(12),
        ]
    )
    records = table_records(table)
    again = made(records)
    again.lsn = table.lsn
    assert again.pack() == table.pack()
    assert again.next_file_id == 13
    assert list(table.by_id(7).extents) == [NO_GROUP, NO_GROUP, 1]  # type: ignore[union-attr]
    assert len({(each.type, each.file_id, each.page, each.body) for each in records}) == len(records)
    assert table_records(FileTable()) == []


def test_a_page_takes_no_more_redo_than_any_that_made_it() -> None:
    choose = random.Random(1)
    for _ in range(300):
        page, spent = bytearray(PAGE), 0
        for _ in range(choose.randrange(1, 6)):
            offset = choose.randrange(PAGE - 600)
            data = choose.randbytes(choose.randrange(1, 500)).replace(b"\1", b"\0" * 9)
            change = record.page_delta(3, 4, [(offset, data[: PAGE - offset])])
            apply_page(change, page)
            spent += change.encoded_bytes
        said = page_record(3, 4, bytes(page), group=2)
        again = bytearray(PAGE)
        apply_page(said, again)
        assert again == page
        assert said.encoded_bytes <= spent
        assert (said.file_id, said.page, said.group) == (3, 4, 2)
    assert page_record(1, 0, bytes(PAGE), 0) == record.page_full(1, 0, b""), "written, and zeros"


@pytest.mark.parametrize(("pages", "tables"), [(3, 0), (99, 2)])
async def test_seeding_goes_on_where_it_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, tables: int
) -> None:
    """After so many flushes of pages, or of the table."""
    monkeypatch.setattr(seeding, "FLUSH_BYTES", 1000)
    monkeypatch.setattr(seeding, "TABLE_FLUSH_BYTES", 150)
    left = {True: pages, False: tables}
    whole = seeding._Seeding._append

    async def broken(self: Any, records: list[Record], end_lsn: int | None = None) -> None:
        kind = is_page(records[-1])
        left[kind] -= 1
        if left[kind] < 0:
            await self._volume.durable.wait_for(self._volume.tail_lsn, scaled(20))
            raise StorageError("broken off on purpose")
        await whole(self, records, end_lsn)

    async with two_regions(tmp_path) as (primary, copy):
        scribe = Scribe(await primary.cluster.open(), seed=11)
        copy.first_lsn = await scribe.write(60)
        with monkeypatch.context() as patch:
            patch.setattr(seeding._Seeding, "_append", broken)
            assert "on purpose" in str(await ended(primary, copy))
        lsn = await scribe.write(10)
        async with replicating(primary, copy) as replicator:
            await caught_up(replicator, lsn)
            for at in (copy.first_lsn, lsn):
                assert await content_of(copy, at) == await content_of(primary, at)
