"""WAL as PostgreSQL writes it, made by hand: pages with headers, records with CRCs."""

from __future__ import annotations

import struct

import google_crc32c

PAGE = 8192
SEGMENT = 4 * PAGE
FIRST_IS_CONTRECORD, LONG_HEADER, OVERWRITE = 1, 2, 8
XLOG_SWITCH, XLOG_PARAMETER_CHANGE = 0x40, 0x60
RM_DBASE, XLOG_DBASE_CREATE_WAL_LOG, XLOG_DBASE_CREATE_FILE_COPY = 4, 0x10, 0x00


class Wal:
    """Grows by records. `content` begins at `base`; `ends` are the positions behind each record."""

    def __init__(self, base: int = 10 * SEGMENT, *, segment: int = SEGMENT) -> None:
        self.base, self.segment = base, segment
        self.content = bytearray()
        self.ends: list[int] = []
        self.starts: list[int] = []

    @property
    def at(self) -> int:
        return self.base + len(self.content)

    def _header(self, rest: int, info: int = 0) -> None:
        long = self.at % self.segment == 0
        info |= (FIRST_IS_CONTRECORD if rest else 0) | (LONG_HEADER if long else 0)
        self.content += struct.pack("<HHIQI4x", 0xD116, info, 1, self.at, rest)
        if long:
            self.content += struct.pack("<QII", 77, self.segment, PAGE)

    def _put(self, data: bytes, *, upto: int | None = None) -> None:
        left = len(data)
        while left:
            if self.at % PAGE == 0:
                self._header(left if left < len(data) else 0)
            room = PAGE - self.at % PAGE
            step = min(room, left)
            self.content += data[len(data) - left :][:step]
            left -= step

    def add(self, body: bytes, *, info: int = 0, rmid: int = 10, prev: int | None = None) -> None:
        """A record with this body."""
        if self.at % PAGE == 0:
            self._header(0)
        last = self.starts[-1] if self.starts else 0
        head = struct.pack("<IIQBBxx", 24 + len(body), 5, last if prev is None else prev, info, rmid)
        crc = google_crc32c.extend(google_crc32c.value(body), head)
        self.starts.append(self.at)
        self._put(head + struct.pack("<I", crc) + body)
        self.content += bytes(-len(self.content) % 8)
        if rmid == 0 and info == XLOG_SWITCH:
            self.content += bytes(-len(self.content) % self.segment)
        self.ends.append(self.at)

    def overwrite(self, body: bytes) -> None:
        """A recovery goes on at the next page, behind a record of which the rest was never written."""
        self.content += bytes(-len(self.content) % PAGE)
        self._header(0, OVERWRITE)
        self.add(body, prev=123)

    def pages(self) -> bytes:
        """Whole pages."""
        return bytes(self.content) + bytes(-len(self.content) % PAGE)


def parameter_change(values: tuple[int, int, int, int, int]) -> bytes:
    """The body of the record by which a server tells of its settings."""
    data = struct.pack("<5iiBB2x", *values, 1, 0, 0)
    return bytes((255, len(data))) + data
