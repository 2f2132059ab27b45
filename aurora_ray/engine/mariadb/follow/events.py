"""Events of a binary log, as far as whoever passes them on must know them. Pure.

    u32 timestamp   u8 type   u32 server   u32 length   u32 end in its file   u16 flags   body   u32 crc32

An event is whole when its checksum says so: of a file that is still being written, nothing else tells zeros that were
written from bytes that were not. Of the event that begins each file, the checksum leaves a flag out that is changed
when the file is complete.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"\xfebin"
HEADER: Final = struct.Struct("<IBIIIH")
HEADER_BYTES: Final = 19
CHECKSUM_BYTES: Final = 4
FLAGS_AT: Final = 17
IN_USE: Final = 0x01
ARTIFICIAL: Final = 0x20
_END_AT: Final = 13
_CREATED_AT: Final = HEADER_BYTES + 2 + 50
_ALGORITHM_CRC32: Final = 1
_STANDALONE: Final = 1


class EventType(IntEnum):
    """Those that count here."""

    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    APPEND_BLOCK = 9
    RAND = 13
    USER_VAR = 14
    FORMAT = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    TABLE_MAP = 19
    XA_PREPARE = 38
    ANNOTATE_ROWS = 160
    CHECKPOINT = 161
    GTID = 162
    GTID_LIST = 163


# They do not end a group of one statement.
_PARTS: Final = frozenset(
    {
        EventType.INTVAR,
        EventType.APPEND_BLOCK,
        EventType.RAND,
        EventType.USER_VAR,
        EventType.BEGIN_LOAD_QUERY,
        EventType.TABLE_MAP,
        EventType.ANNOTATE_ROWS,
    }
)


class Event(NamedTuple):
    """`offset`: in what was looked through."""

    kind: int
    offset: int
    nbytes: int


def whole_events(content: bytes | bytearray, offset: int = 0) -> Iterator[Event]:
    """Events from `offset` on, up to the first one that is not whole."""
    view = memoryview(content)
    while len(content) - offset >= HEADER_BYTES + CHECKSUM_BYTES:
        _, kind, _, nbytes, _, flags = HEADER.unpack_from(content, offset)
        end = offset + nbytes
        if nbytes < HEADER_BYTES + CHECKSUM_BYTES or end > len(content):
            return
        checksum = int.from_bytes(view[end - CHECKSUM_BYTES : end], "little")
        if checksum != _checksum(view[offset : end - CHECKSUM_BYTES], kind, flags):
            return
        yield Event(kind, offset, nbytes)
        offset = end


def _checksum(event: memoryview, kind: int, flags: int) -> int:
    if kind != EventType.FORMAT or not flags & IN_USE:
        return zlib.crc32(event)
    plain = bytearray(event)
    plain[FLAGS_AT] &= ~IN_USE
    return zlib.crc32(plain)


class Groups:
    """Follows whole events of one file: `end` is behind the last one at which no group is open. What a server recovers
    of a binary log are its whole groups."""

    def __init__(self, end: int) -> None:
        self.end = end
        self._open = self._standalone = False

    def take(self, content: bytes | bytearray, event: Event, position: int) -> None:
        """The next event, `position` in its file."""
        if event.kind == EventType.GTID:
            flags = content[event.offset + HEADER_BYTES + 12]
            self._open, self._standalone = True, bool(flags & _STANDALONE)
            return
        if self._open:
            if self._standalone:
                ends = event.kind not in _PARTS
            else:
                ends = event.kind in (EventType.XID, EventType.XA_PREPARE) or _ends_transaction(content, event)
            self._open = not ends
        if not self._open:
            self.end = position + event.nbytes


def _ends_transaction(content: bytes | bytearray, event: Event) -> bool:
    if event.kind != EventType.QUERY:
        return False
    body = event.offset + HEADER_BYTES
    database_bytes = content[body + 8]
    status_bytes = int.from_bytes(content[body + 11 : body + 13], "little")
    start = body + 13 + status_bytes + database_bytes + 1
    query = bytes(content[start : event.offset + event.nbytes - CHECKSUM_BYTES])
    return query in (b"COMMIT", b"ROLLBACK")


def rotation(server_id: int, name: str, position: int) -> bytes:
    """What a server says before it begins with another file."""
    body = struct.pack("<Q", position) + name.encode()
    nbytes = HEADER_BYTES + len(body) + CHECKSUM_BYTES
    return _sealed(HEADER.pack(0, EventType.ROTATE, server_id, nbytes, 0, ARTIFICIAL) + body)


def format_of(event: bytes, *, from_start: bool) -> bytes:
    """A file's first event as it is sent. Not from the file's start, it must not say that the server has just begun:
    whoever gets it would give up what it has in hand."""
    changed = bytearray(event[:-CHECKSUM_BYTES])
    changed[FLAGS_AT] &= ~IN_USE
    if not from_start:
        changed[_END_AT : _END_AT + 4] = bytes(4)
        changed[_CREATED_AT : _CREATED_AT + 4] = bytes(4)
    return _sealed(bytes(changed))


def has_checksums(event: bytes) -> bool:
    """Whether the events of a file with this first one have checksums."""
    return event[-CHECKSUM_BYTES - 1] == _ALGORITHM_CRC32


def _sealed(event: bytes) -> bytes:
    return event + zlib.crc32(event).to_bytes(CHECKSUM_BYTES, "little")
