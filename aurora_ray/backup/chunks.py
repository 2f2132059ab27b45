"""Log in the bucket: whole flushes, as the volume's nodes tell them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from aurora_ray.errors import UNDECODABLE, MalformedError
from aurora_ray.log.batch import decode_header, inflate, payload, verify
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.flush import Flush
from aurora_ray.log.layout import RECORD_HEADER, RECORD_HEADER_BYTES, SIZE_BODY, RecordType
from aurora_ray.log.pages import Change, apply_at, cut_page, fits, scan
from aurora_ray.log.record import decode
from aurora_ray.log.sizes import EXTENT_PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT: Final = 1
_TRUNCATE: Final = int(RecordType.TRUNCATE)
_DROP: Final = int(RecordType.DROP)


def pack(flushes: Sequence[Flush]) -> bytes:
    """Flushes that follow each other, as one object's content."""
    plain = [(flush.start, flush.end, list(flush.batches.values())) for flush in flushes]
    packed: bytes = msgpack.packb((FORMAT, plain))
    return packed


def unpack(data: bytes, start: int, end: int) -> list[Flush]:
    """The flushes (start, end] of an object. Every batch's CRC is checked, and that none is missing.

    Raises MalformedError.
    """
    try:
        written_by, plain = msgpack.unpackb(data, use_list=False)
        flushes = [Flush(first, last, {verify(batch).group: batch for batch in some}) for first, last, some in plain]
    except (*UNDECODABLE, msgpack.UnpackException) as error:
        raise MalformedError(f"log ({start}, {end}] of a backup does not parse: {error!r}") from error
    at = start
    for flush in flushes:
        header = decode_header(next(iter(flush.batches.values())))
        if flush.start != at or set(header.groups) != flush.batches.keys() or header.flush_end != flush.end:
            raise MalformedError(f"log ({start}, {end}] of a backup lacks a part behind LSN {at}")
        at = flush.end
    if at != end or written_by != FORMAT:
        raise MalformedError(f"log ({start}, {end}] of a backup ends at LSN {at}, format {written_by}")
    return flushes


def stamp(flush: Flush) -> tuple[int, int]:
    """The epoch of a flush, and when it was written (microseconds since 1970)."""
    header = decode_header(next(iter(flush.batches.values())))
    return header.epoch, header.time_us


class Cut(NamedTuple):
    """From `lsn` on, bytes of the file from `new_size` on are zeros until written again."""

    lsn: int
    new_size: int


class LogIndex:
    """Records of flushes, by page: what comes on top of an image. Holds the inflated log in memory."""

    def __init__(self) -> None:
        self.pages: dict[int, list[Change]] = {}
        self.cuts: dict[int, list[Cut]] = {}
        self._table: list[Change] = []

    def add(self, flush: Flush) -> None:
        """The next flush. Raises MalformedError."""
        for group, stored in flush.batches.items():
            batch = inflate(stored)
            for kind, lsn, file_id, at, length in scan(batch, len(batch) - len(payload(batch)), self.pages):
                if group == 0:
                    self._table.append((lsn, batch, at))
                if kind == _TRUNCATE and length >= RECORD_HEADER_BYTES + SIZE_BODY.size:
                    new_size = SIZE_BODY.unpack_from(batch, at + RECORD_HEADER_BYTES)[0]
                    self.cuts.setdefault(file_id, []).append(Cut(lsn, new_size))
                elif kind == _DROP:
                    self.cuts.setdefault(file_id, []).append(Cut(lsn, 0))

    def extents(self) -> set[tuple[int, int]]:
        """(file id, number) of the extents of which pages were written."""
        return {(number >> 32, (number & 0xFFFFFFFF) // EXTENT_PAGES) for number in self.pages}

    def is_cut(self, file_id: int, extent: int, page_size: int) -> bool:
        """Whether a truncation may have taken anything of an extent."""
        return any((extent + 1) * EXTENT_PAGES * page_size > cut.new_size for cut in self.cuts.get(file_id, ()))

    def page(self, file_id: int, page: int, base: bytes | None, page_size: int) -> bytes | None:
        """A page with all its changes on top of `base`; None: never written. As storage nodes do it: what does not fit
        is left out."""
        content = None if base is None else bytearray(base)
        steps: list[tuple[int, Change | None, int]] = [
            (cut.lsn, None, cut.new_size) for cut in self.cuts.get(file_id, ())
        ]
        steps += [(change[0], change, 0) for change in self.pages.get(file_id << 32 | page, ())]
        for _, change, new_size in sorted(steps, key=lambda step: step[0]):
            if change is not None:
                if fits(change[1], change[2], page_size):
                    content = bytearray(page_size) if content is None else content
                    apply_at(change[1], change[2], content)
            elif content is not None:
                content = cut_page(content, new_size - page * page_size)
        return None if content is None else bytes(content)

    def apply_to(self, table: FileTable) -> None:
        """The file table, brought up to the end; a record that makes no sense changes nothing, as on the nodes."""
        for _, batch, at in self._table:
            length = RECORD_HEADER.unpack_from(batch, at)[0]
            try:
                table.apply(decode(batch, at, length))
            except MalformedError:
                continue


def flush_ends(flushes: Sequence[Flush]) -> Iterator[tuple[int, int]]:
    """(end, time) of each."""
    return ((flush.end, stamp(flush)[1]) for flush in flushes)
