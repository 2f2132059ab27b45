"""Redo records: construct, encode, decode, apply to a page.

A record's LSN is the position in the volume's log of its END. Constructors leave the LSN at 0; `RecordBuilder` assigns
it. Paths are bytes relative to the mount's root, without a leading slash.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import MalformedError
from aurora_ray.log.layout import (
    EXTENT_BODY,
    IMAGE_LENGTH,
    RANGE,
    RANGE_BYTES,
    RECORD_ALIGN,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    RECORD_TYPE_MAX,
    SIZE_BODY,
    RecordFlag,
    RecordType,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Record:
    """One redo record; `body` without padding. Which fields mean what depends on the type, see the constructors."""

    type: RecordType
    flags: int = 0
    lsn: int = 0
    file_id: int = 0
    group: int = 0
    page: int = 0
    body: bytes = b""
    count: int = 0

    @property
    def encoded_bytes(self) -> int:
        """Length in the log."""
        return padded(RECORD_HEADER_BYTES + len(self.body))


def page_full(file_id: int, page: int, image: Buffer, *, group: int = 0) -> Record:
    """The whole page; trailing zeros are left out."""
    content = bytes(image).rstrip(b"\0")
    return Record(RecordType.PAGE, RecordFlag.FULL, 0, file_id, group, page, IMAGE_LENGTH.pack(len(content)) + content)


def page_delta(file_id: int, page: int, ranges: Sequence[tuple[int, Buffer]], *, group: int = 0) -> Record:
    """Byte ranges (offset, bytes) of a page, in order."""
    heads = b"".join(RANGE.pack(offset, len(data)) for offset, data in ranges)
    body = heads + b"".join(bytes(data) for _, data in ranges)
    return Record(RecordType.PAGE, 0, 0, file_id, group, page, body, len(ranges))


def create(file_id: int, path: bytes, mode: int = 0o600) -> Record:
    """A regular file of size 0."""
    return Record(RecordType.CREATE, 0, 0, file_id, 0, mode, path, len(path))


def unlink(file_id: int, path: bytes) -> Record:
    """Removes a name; the file lives until its DROP."""
    return Record(RecordType.UNLINK, 0, 0, file_id, 0, 0, path, len(path))


def rename(file_id: int, src: bytes, dst: bytes) -> Record:
    """Moves a name atomically, replacing `dst`; file_id 0 for a directory or a symbolic link."""
    return _two_paths(RecordType.RENAME, file_id, src, dst)


def link(file_id: int, src: bytes, dst: bytes) -> Record:
    """A second name for a file."""
    return _two_paths(RecordType.LINK, file_id, src, dst)


def symlink(target: bytes, path: bytes) -> Record:
    """A symbolic link."""
    return _two_paths(RecordType.SYMLINK, 0, target, path)


def truncate(file_id: int, new_size: int, *, group: int = 0) -> Record:
    """Cuts a file; with `group` other than 0, the copy for that group's pages."""
    flags = RecordFlag.COPY if group else 0
    return Record(RecordType.TRUNCATE, flags, 0, file_id, group, 0, SIZE_BODY.pack(new_size))


def size(file_id: int, new_size: int) -> Record:
    """Lengthens a file."""
    return Record(RecordType.SIZE, 0, 0, file_id, 0, 0, SIZE_BODY.pack(new_size))


def mkdir(path: bytes, mode: int = 0o700) -> Record:
    """A directory."""
    return Record(RecordType.MKDIR, 0, 0, 0, 0, mode, path, len(path))


def rmdir(path: bytes) -> Record:
    """Removes an empty directory."""
    return Record(RecordType.RMDIR, 0, 0, 0, 0, 0, path, len(path))


def chmod(path: bytes, mode: int) -> Record:
    """Sets the mode of a file or directory."""
    return Record(RecordType.CHMOD, 0, 0, 0, 0, mode, path, len(path))


def extent(file_id: int, extent_no: int, assigned_group: int) -> Record:
    """Assigns 64 pages of a file to a protection group."""
    return Record(RecordType.EXTENT, 0, 0, file_id, 0, extent_no, EXTENT_BODY.pack(assigned_group, 0))


def drop(file_id: int, *, group: int = 0) -> Record:
    """Ends a file without names; with `group` other than 0, the copy for that group's pages."""
    return Record(RecordType.DROP, RecordFlag.COPY if group else 0, 0, file_id, group)


def _two_paths(kind: RecordType, file_id: int, first: bytes, second: bytes) -> Record:
    body = first + b"\0" + second
    return Record(kind, 0, 0, file_id, 0, 0, body, len(body))


def encode(record: Record) -> bytes:
    """The record's bytes, padded."""
    length = record.encoded_bytes
    header = RECORD_HEADER.pack(
        length, record.type, record.flags, record.count, record.lsn, record.file_id, record.group, record.page
    )
    return (header + record.body).ljust(length, b"\0")


def decode(buf: Buffer, offset: int, length: int) -> Record:
    """The record at `offset`, whose `length` the caller has checked against the buffer. Raises MalformedError."""
    _, kind, flags, count, lsn, file_id, group, page = RECORD_HEADER.unpack_from(buf, offset)
    if not 1 <= kind <= RECORD_TYPE_MAX:
        raise MalformedError(f"record at offset {offset} has unknown type {kind}")
    body = bytes(buf[offset + RECORD_HEADER_BYTES : offset + length])
    body = body[: _body_bytes(kind, flags, count, body, offset)]
    return Record(RecordType(kind), flags, lsn, file_id, group, page, body, count)


def _body_bytes(kind: int, flags: int, count: int, body: bytes, offset: int) -> int:
    """Length of the body without padding."""
    if kind == RecordType.PAGE:
        need = IMAGE_LENGTH.size if flags & RecordFlag.FULL else RANGE_BYTES * count
        if len(body) >= need:
            if flags & RecordFlag.FULL:
                need += IMAGE_LENGTH.unpack_from(body)[0]
            else:
                need += sum(RANGE.unpack_from(body, RANGE_BYTES * i)[1] for i in range(count))
    elif kind in (RecordType.TRUNCATE, RecordType.SIZE, RecordType.EXTENT):
        need = SIZE_BODY.size
    elif kind == RecordType.DROP:
        need = 0
    else:
        need = count
    if need > len(body) or padded(need) != len(body):
        raise MalformedError(f"record at offset {offset}: body of {len(body)} bytes, {need} expected")
    return need


def iter_records(buf: Buffer, offset: int = 0) -> Iterator[Record]:
    """Decodes records up to the end of `buf`. Raises MalformedError."""
    end = len(buf)
    while offset < end:
        length = record_length(buf, offset, end)
        yield decode(buf, offset, length)
        offset += length


def record_length(buf: Buffer, offset: int, end: int) -> int:
    """Length of the record at `offset`, checked against `end`. Raises MalformedError."""
    if end - offset < RECORD_HEADER_BYTES:
        raise MalformedError(f"record at offset {offset} is cut short")
    length = int.from_bytes(buf[offset : offset + 4], "little")
    if length < RECORD_HEADER_BYTES or length % RECORD_ALIGN or length > end - offset:
        raise MalformedError(f"record at offset {offset} claims {length} bytes of {end - offset}")
    return length


def apply_page(record: Record, page: bytearray) -> None:
    """Applies a PAGE record to a page's content. Raises MalformedError and leaves the page alone if it does not fit."""
    body, page_size = record.body, len(page)
    if record.flags & RecordFlag.FULL:
        image = body[IMAGE_LENGTH.size :]
        if len(image) > page_size:
            raise MalformedError(f"image of {len(image)} bytes for a page of {page_size}")
        page[:] = image.ljust(page_size, b"\0")
        return
    ranges = [RANGE.unpack_from(body, RANGE_BYTES * i) for i in range(record.count)]
    if any(offset + nbytes > page_size for offset, nbytes in ranges):
        raise MalformedError(f"a range reaches beyond the page of {page_size} bytes")
    at = RANGE_BYTES * record.count
    for offset, nbytes in ranges:
        page[offset : offset + nbytes] = body[at : at + nbytes]
        at += nbytes


class GroupRecords(NamedTuple):
    """The records of one group in one flush, ready for `encode_batch`."""

    group: int
    payload: bytes
    record_count: int


class RecordBuilder:
    """Assigns LSNs to records in the order they are added and sorts them by group.

    >>> builder = RecordBuilder(0)
    >>> builder.add(create(1, b"base/1"))
    40
    """

    def __init__(self, start_lsn: int) -> None:
        self.start_lsn = start_lsn
        self.end_lsn = start_lsn
        self._parts: dict[int, list[bytes]] = {}

    def add(self, record: Record) -> int:
        """Appends `record`; its LSN."""
        self.end_lsn += record.encoded_bytes
        self._parts.setdefault(record.group, []).append(encode(replace(record, lsn=self.end_lsn)))
        return self.end_lsn

    def take(self) -> list[GroupRecords]:
        """The flush (start_lsn, end_lsn], a part a group, ascending; the builder goes on behind it."""
        taken = [GroupRecords(group, b"".join(parts), len(parts)) for group, parts in sorted(self._parts.items())]
        self._parts = {}
        self.start_lsn = self.end_lsn
        return taken
