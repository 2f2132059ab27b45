"""A volume as of an LSN as redo that ends at that LSN: how a copy in a new region begins. Pure.

What a volume holds was written by its log, each byte at least once. So the redo that says only what is there in the
end, one record a page without its zeros, then the file table, is never longer than the log was: it fits below the LSN
that it stands for, and the log goes on behind it at its own LSNs. To the nodes it is redo like any other, and is
durable, recovered, repaired and read like it. Below that LSN, the copy's history is not the primary's, and nobody may
ask for it.

The order is fixed (pages by file and number, then the table), and so is what is said: a copy that was broken off goes
on behind the record that it ends with. Names come last. A copy that is not whole is an empty tree.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aurora_ray.log import record
from aurora_ray.log.filetable import ROOT_MODE, FileKind
from aurora_ray.log.layout import RANGE_BYTES, RecordType
from aurora_ray.log.record import Record
from aurora_ray.log.sizes import EXTENT_PAGES, NO_GROUP
from aurora_ray.volume.read.pages import PageRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.log.filetable import Entry, FileTable
    from aurora_ray.volume.read.pages import PageRun

# What is not zero, with gaps of zeros in it that cost no more than another range would.
_RUN: Final = re.compile(rb"[^\0]+(?:\0{1,%d}[^\0]+)*" % RANGE_BYTES, re.DOTALL)
_UNNAMED: Final = b".aurora-unnamed-%d"


def page_record(file_id: int, page: int, image: bytes, group: int) -> Record:
    """What makes a page of `image` out of zeros, in the fewest bytes."""
    full = record.page_full(file_id, page, image, group=group)
    ranges = [(match.start(), match.group()) for match in _RUN.finditer(image)]
    delta = record.page_delta(file_id, page, ranges, group=group)
    return delta if ranges and delta.encoded_bytes < full.encoded_bytes else full


def page_ranges(table: FileTable) -> list[PageRange]:
    """All that the files may hold, in the order of the snapshot, an extent each."""
    return [
        PageRange(group, entry.file_id, number * EXTENT_PAGES, EXTENT_PAGES)
        for entry in table.entries()
        if entry.kind is FileKind.FILE
        for number, group in enumerate(entry.extents)
        if group != NO_GROUP
    ]


def run_records(wanted: PageRange, run: PageRun, page_size: int) -> Iterator[Record]:
    """The records of a range's pages."""
    at = 0
    for number, kind in enumerate(run.kinds):
        if kind:
            image = run.pages[at : at + page_size]
            yield page_record(wanted.file_id, wanted.first_page + number, image, wanted.group)
            at += page_size


def table_records(table: FileTable) -> list[Record]:
    """What makes the table out of the empty one; no two records are alike."""
    records, highest = list[Record](), 0
    for entry in table.entries():
        path = entry.paths[0] if entry.paths else b""
        if entry.kind is FileKind.SYMLINK:
            records.append(record.symlink(entry.target, path))
        elif entry.kind is FileKind.FILE:
            records += _file_records(entry)
            highest = max(highest, entry.file_id)
        elif path:
            records.append(record.mkdir(path, entry.mode))
        elif entry.mode != ROOT_MODE:
            records.append(record.chmod(path, entry.mode))
    last = table.next_file_id - 1
    if last > highest:  # ids are never used again, be the file gone
        records += [*_created_without_name(last, 0), record.drop(last)]
    return records


def _file_records(entry: Entry) -> Iterator[Record]:
    """Content first, so that a file which has its name is whole."""
    file_id = entry.file_id
    if entry.paths:
        yield record.create(file_id, entry.paths[0], entry.mode)
        yield from (record.link(file_id, entry.paths[0], path) for path in entry.paths[1:])
    else:
        yield from _created_without_name(file_id, entry.mode)
    last = len(entry.extents) - 1
    for number, group in enumerate(entry.extents):
        if group != NO_GROUP or number == last:
            yield record.extent(file_id, number, group)
    if entry.size:
        yield record.size(file_id, entry.size)


def _created_without_name(file_id: int, mode: int) -> Iterator[Record]:
    name = _UNNAMED % file_id
    yield record.create(file_id, name, mode)
    yield record.unlink(file_id, name)


def is_page(last: Record) -> bool:
    """Whether a snapshot that ends with this record has not come to the table yet."""
    return last.type is RecordType.PAGE
