"""A control volume in memory: a log of flushes, of which any tail may be lost, and what a reader makes of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import google_crc32c

from aurora_ray.control.model.state_file import FILE_PATH, FIRST_FILE_ID, FIRST_HEADER, FIRST_MAGIC
from aurora_ray.errors import QuorumLostError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import Record, apply_page, create, extent, page_full, size
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.volume.read.pages import PageRange, PageRun
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

NODES = ("a1", "a2", "b1", "b2", "c1", "c2")


class MemoryVolume:
    """As much of a Volume as a ControlStore uses. `durable` flushes are acknowledged; `unsure` ones may become so."""

    def __init__(self, spec: VolumeSpec, flushes: Sequence[Sequence[Record]] = ()) -> None:
        self.spec = spec
        self.flushes: list[Sequence[Record]] = list(flushes)
        self.acknowledged = len(self.flushes)
        self.next_outcome = "durable"
        self.epoch = 1

    @property
    def tail_lsn(self) -> int:
        return sum(record.encoded_bytes for flush in self.flushes for record in flush)

    async def append(self, records: Sequence[Record], timeout_s: float = 30.0) -> int:
        if self.next_outcome == "refused":
            raise QuorumLostError("no room: nothing was handed over")
        self.flushes.append(records)
        if self.next_outcome == "unknown":
            raise QuorumLostError("not durable in time")
        self.acknowledged = len(self.flushes)
        return self.tail_lsn

    def crashed(self, kept: int) -> MemoryVolume:
        """What a recovery finds that keeps so many flushes."""
        assert kept >= self.acknowledged
        return MemoryVolume(self.spec, self.flushes[:kept])

    async def read_file_table(self) -> FileTable:
        table = FileTable()
        for record in self._records():
            table.apply(record)
        return table

    async def read_pages(self, ranges: Sequence[PageRange]) -> list[PageRun]:
        pages: dict[tuple[int, int], bytes] = {}
        for record in self._records():
            if record.type is RecordType.PAGE:
                page = bytearray(self.spec.page_size)
                apply_page(record, page)
                pages[record.file_id, record.page] = bytes(page)
        runs = []
        for _, file_id, first, count in ranges:
            found = [pages.get((file_id, page)) for page in range(first, first + count)]
            runs.append(PageRun(bytes(p is not None for p in found), b"".join(p for p in found if p is not None)))
        return runs

    def _records(self) -> list[Record]:
        return [replace(record, lsn=at) for at, record in enumerate(r for flush in self.flushes for r in flush)]


def memory_spec(volume_id: object, page_size: int) -> VolumeSpec:
    return VolumeSpec(volume_id, page_size, 1 << 30, (GroupPlacement(0, NODES),))  # type: ignore[arg-type]


def write_first_format(state: bytes, page_size: int) -> list[Record]:
    """The records by which the first format made its file."""
    content = FIRST_HEADER.pack(FIRST_MAGIC, google_crc32c.value(state), len(state)) + state
    pages = [content[at : at + page_size].ljust(page_size, b"\0") for at in range(0, len(content), page_size)]
    extents = -(-len(pages) // EXTENT_PAGES)
    return [
        create(FIRST_FILE_ID, FILE_PATH),
        *(extent(FIRST_FILE_ID, number, 0) for number in range(extents)),
        size(FIRST_FILE_ID, len(pages) * page_size),
        *(page_full(FIRST_FILE_ID, number, page) for number, page in enumerate(pages)),
    ]
