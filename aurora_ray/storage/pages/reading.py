"""Pages and the file table as of any LSN in the retention window."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import google_crc32c

from aurora_ray.errors import MalformedError, NotCompleteError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.layout import RECORD_HEADER, RECORD_HEADER_BYTES, RecordFlag
from aurora_ray.log.pages import apply_at, cut_page, fits
from aurora_ray.log.record import decode
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import content_of, lsn_key
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.versions import Versions
from aurora_ray.storage.segment.layers import page_number_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aurora_ray.log.pages import Change
    from aurora_ray.storage.segment.cuts import FileCut
    from aurora_ray.storage.segment.layers import LayerIndex
    from aurora_ray.storage.segment.segment import Segment

_FULL = int(RecordFlag.FULL)


def require_complete(segment: Segment, required_scl: int) -> None:
    """Raises NotCompleteError if the segment's log has a gap at or below `required_scl`."""
    if segment.scl < required_scl:
        raise NotCompleteError(
            f"incomplete: group {segment.group} reaches {segment.scl} here, {required_scl} is needed"
        )


async def read_pages(segment: Segment, lsn: int, ranges: Iterable[tuple[int, int, int]]) -> list[bytes | None]:
    """As `read_checked_pages`, without the checksums."""
    return [None if page is None else page[0] for page in await read_checked_pages(segment, lsn, ranges)]


async def read_checked_pages(
    segment: Segment, lsn: int, ranges: Iterable[tuple[int, int, int]]
) -> list[tuple[bytes, int] | None]:
    """The pages of (file id, first page, count), range after range, as of `lsn`, each with its CRC-32C, taken as soon
    as it is put together from what its own checksums have vouched for; None for one never written.

    Raises OutOfRangeError or DamagedError.
    """
    view = await View.of(segment, lsn)
    pacer = Pacer()
    pages: list[tuple[bytes, int] | None] = []
    for file_id, first_page, count in ranges:
        for page in range(first_page, first_page + count):
            if pacer.due:
                await pacer.rest()
                view = await View.of(segment, lsn)
            found = view.page(file_id, page)
            content = None if found is None else bytes(found)
            pages.append(None if content is None else (content, google_crc32c.value(content)))
    return pages


async def _base(segment: Segment, lsn: int) -> tuple[int, tuple[LayerIndex, ...]]:
    """Where to start from, and what comes on top, in LSN order. Raises OutOfRangeError, DamagedError."""
    assert segment.layers is not None  # noqa: S101 - set when the segment is opened
    while True:
        base_lsn, indexes = await segment.layers.at(lsn)
        if base_lsn >= segment.meta.floor_lsn:  # it may have risen while they were built
            return base_lsn, indexes


class View:
    """A segment as of an LSN: versions at `base_lsn` and the records of `indexes` up to `lsn` on top.

    Good until the next pause only: then layers may end, cuts be spent and versions go, so make it afresh.
    """

    @classmethod
    async def of(cls, segment: Segment, lsn: int) -> View:
        """The segment as of `lsn`. Raises OutOfRangeError or DamagedError."""
        base_lsn, indexes = await _base(segment, lsn)
        return cls(segment, base_lsn, lsn, indexes)

    def __init__(self, segment: Segment, base_lsn: int, lsn: int, indexes: Sequence[LayerIndex]) -> None:
        self._versions = Versions(segment)
        self._page_size = segment.meta.page_size
        self._base_lsn, self._lsn, self._indexes = base_lsn, lsn, indexes

    def changed(self) -> list[int]:
        """Page numbers (see `page_number_key`) with changes on top of the versions; those beyond `lsn` included."""
        return list(dict.fromkeys(chain.from_iterable(index.pages for index in self._indexes)))

    def page(self, file_id: int, page: int) -> bytearray | None:
        """A whole page; None if it was never written. Raises DamagedError."""
        changes: list[Change] = []
        cuts: list[FileCut] = []
        number = page_number_key(file_id, page)
        for index in self._indexes:
            changes += index.pages.get(number, ())
            cuts += index.cuts.get(file_id, ())
        if changes and changes[-1][0] > self._lsn:
            changes = [c for c in changes if c[0] <= self._lsn]
        if cuts:
            return self._replay(file_id, page, changes, [c for c in cuts if c.lsn <= self._lsn])
        try:
            return self._fast(file_id, page, changes)
        except MalformedError:
            return self._replay(file_id, page, changes, ())

    def _fast(self, file_id: int, page: int, changes: Sequence[Change]) -> bytearray | None:
        """From the last image on."""
        start = _last_image(changes)
        content = None if start is not None else self._versions.content(file_id, page, self._base_lsn)
        if content is None and changes:
            content = bytearray(self._page_size)
        for _, buf, at in changes[start or 0 :]:
            assert content is not None  # noqa: S101 - there are changes
            apply_at(buf, at, content)
        return content

    def _replay(self, file_id: int, page: int, changes: Sequence[Change], cuts: Sequence[FileCut]) -> bytearray | None:
        """Every change that fits and every cut, in LSN order; rare, so simple."""
        content = self._versions.content(file_id, page, self._base_lsn)
        steps: list[tuple[int, Change | None, int]] = [(cut.lsn, None, cut.new_size) for cut in cuts]
        steps += [(change[0], change, 0) for change in changes]
        for _, change, new_size in sorted(steps, key=lambda step: step[0]):
            if change is not None:
                if fits(change[1], change[2], self._page_size):
                    content = bytearray(self._page_size) if content is None else content
                    apply_at(change[1], change[2], content)
            elif content is not None:
                content = cut_page(content, new_size - page * self._page_size)
        return content


def _last_image(changes: Sequence[Change]) -> int | None:
    for number in range(len(changes) - 1, -1, -1):
        _, buf, at = changes[number]
        if buf[at + 5] & _FULL:
            return number
    return None


async def read_file_table(segment: Segment, lsn: int, anomalies: list[str]) -> FileTable:
    """The file table as of `lsn`; records that make no sense are skipped, the same on every copy, and named."""
    base_lsn, indexes = await _base(segment, lsn)
    table = stored_table(segment, base_lsn)
    pacer = Pacer()
    for record_lsn, buf, at in chain.from_iterable(index.table for index in indexes):
        if record_lsn > lsn:
            break
        apply_to_table(table, buf, at, anomalies)
        if pacer.due:
            await pacer.rest()
    table.lsn = lsn
    return table


def stored_table(segment: Segment, lsn: int) -> FileTable:
    """The snapshot at `lsn`, which is the end of a layer, or 0: then nothing was there. Raises DamagedError."""
    if lsn == 0:
        return FileTable()
    found = segment.store.table_before(lsn)
    try:
        if found is None or found[0] != lsn_key(lsn):
            raise MalformedError("it is gone")  # noqa: TRY301 - one way out
        return FileTable.unpack_compressed(content_of(*found))
    except MalformedError as error:
        raise DamagedError((segment.volume, segment.group), Damage("table", lsn), str(error)) from error


def apply_to_table(table: FileTable, buf: bytes, at: int, anomalies: list[str]) -> None:
    """Applies the record at offset `at` of a batch, or says in `anomalies` why it cannot be."""
    length = RECORD_HEADER.unpack_from(buf, at)[0]
    assert length >= RECORD_HEADER_BYTES  # noqa: S101 - checked when the batch came in
    try:
        table.apply(decode(buf, at, length))
    except MalformedError as error:
        anomalies.append(str(error))
