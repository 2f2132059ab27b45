"""The part of PostgreSQL's replication protocol that a standby's WAL receiver speaks, as bytes.

See "Streaming Replication Protocol" and "Message Formats" in PostgreSQL's documentation.
"""

from __future__ import annotations

import re
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Sequence

SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
PROTOCOL_3: Final = 3
MESSAGE_BYTES_MAX: Final = 64 << 10  # of what a WAL receiver says
CHUNK_BYTES: Final = 128 << 10  # of WAL in a message
_TEXT, _INT8 = 25, 20  # types of columns
_EPOCH_2000_S: Final = 946684800
_START = re.compile(
    r"START_REPLICATION\s+(?:SLOT\s+\S+\s+)?(?:PHYSICAL\s+)?([0-9A-F]+)/([0-9A-F]+)(?:\s+TIMELINE\s+(\d+))?"
)
_HISTORY = re.compile(r"TIMELINE_HISTORY\s+(\d+)")


@dataclass(frozen=True, slots=True)
class StartReplication:
    """WAL from this position on, of this timeline (0: the newest)."""

    position: int
    timeline: int


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """The history file of a timeline."""

    timeline: int


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """Up to where a standby has written, flushed and replayed WAL; whether it wants an answer."""

    written: int
    flushed: int
    applied: int
    answer: bool


@dataclass(frozen=True, slots=True)
class Feedback:
    """The oldest transactions of which the standby's sessions need rows; 0: none."""

    xmin: int
    catalog_xmin: int


def parse_command(text: str) -> StartReplication | TimelineHistory | None:
    """A command that takes an argument; None for any other."""
    if (match := _START.match(text)) is not None:
        return StartReplication(int(match[1], 16) << 32 | int(match[2], 16), int(match[3] or 0))
    if (match := _HISTORY.match(text)) is not None:
        return TimelineHistory(int(match[1]))
    return None


def parse_update(body: bytes) -> StatusUpdate | Feedback | None:
    """What stands in a copy message of a standby; None for what is not known. Raises MalformedError."""
    try:
        if body[:1] == b"r":
            written, flushed, applied, _, answer = struct.unpack(">QQQqB", body[1:])
            return StatusUpdate(written, flushed, applied, bool(answer))
        if body[:1] == b"h":
            _, xmin, _, catalog_xmin, _ = struct.unpack(">qIIII", body[1:])
            return Feedback(xmin, catalog_xmin)
    except struct.error as error:
        raise MalformedError(f"a standby's message of {len(body)} bytes: {error}") from error
    return None


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def welcome(server_version: str) -> bytes:
    """The standby is admitted, and may ask."""
    told = {
        "server_version": server_version,
        "client_encoding": "UTF8",
        "server_encoding": "UTF8",
        "integer_datetimes": "on",
        "standard_conforming_strings": "on",
        "DateStyle": "ISO, MDY",
    }
    parameters = b"".join(_message(b"S", f"{name}\0{value}\0".encode()) for name, value in told.items())
    return _message(b"R", struct.pack(">I", 0)) + parameters + ready()


def ready() -> bytes:
    """The next query may come."""
    return _message(b"Z", b"I")


def rows(columns: Sequence[tuple[str, int]], values: Sequence[bytes | None], *tags: str) -> bytes:
    """One row, and the end of its command: a message for each of `tags`."""
    fields = b"".join(name.encode() + b"\0" + struct.pack(">IHIhih", 0, 0, kind, -1, -1, 0) for name, kind in columns)
    cells = b"".join(
        struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value for value in values
    )
    return (
        _message(b"T", struct.pack(">H", len(columns)) + fields)
        + _message(b"D", struct.pack(">H", len(values)) + cells)
        + b"".join(_message(b"C", tag.encode() + b"\0") for tag in tags)
        + ready()
    )


def identify_system(system_identifier: int, timeline: int, position: int) -> bytes:
    """The answer to IDENTIFY_SYSTEM."""
    columns = (("systemid", _TEXT), ("timeline", _INT8), ("xlogpos", _TEXT), ("dbname", _TEXT))
    where = f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
    values = (str(system_identifier).encode(), str(timeline).encode(), where.encode(), None)
    return rows(columns, values, "IDENTIFY_SYSTEM")


def timeline_history(timeline: int, content: bytes) -> bytes:
    """The answer to TIMELINE_HISTORY."""
    columns = (("filename", _TEXT), ("content", _TEXT))
    return rows(columns, (f"{timeline:08X}.history".encode(), content), "TIMELINE_HISTORY")


def refusal(sentence: str) -> bytes:
    """A command that is not carried out, and why."""
    fields = (b"SERROR", b"VERROR", b"C0A000", b"M" + sentence.encode())
    return _message(b"E", b"\0".join(fields) + b"\0\0") + ready()


def copy_both() -> bytes:
    """WAL follows."""
    return _message(b"W", struct.pack(">bH", 0, 0))


def copy_done() -> bytes:
    """No more WAL follows."""
    return _message(b"c", b"")


def streaming_ended() -> bytes:
    """The end of a START_REPLICATION that was ended by both sides."""
    return _message(b"C", b"START_STREAMING\0") + ready()


def timeline_left(following: int, position: int) -> bytes:
    """The end of a START_REPLICATION, or all of its answer: its timeline was left at `position` for another one."""
    columns = (("next_tli", _INT8), ("next_tli_startpos", _TEXT))
    where = f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
    # Twice, as servers do: receivers take one as the end of the row and one as that of the stream.
    return rows(columns, (str(following).encode(), where.encode()), "START_STREAMING", "START_REPLICATION")


def wal_message(position: int, wal: bytes | memoryview) -> bytes:
    """WAL from a position on."""
    end = position + len(wal)
    return b"".join(
        (b"d", struct.pack(">I", 4 + 25 + len(wal)), b"w", struct.pack(">QQq", position, end, _now_us()), wal)
    )


def keepalive(position: int, *, answer: bool) -> bytes:
    """Says that there is WAL up to `position` only; `answer`: the standby shall say at once how far it is."""
    return _message(b"d", b"k" + struct.pack(">QqB", position, _now_us(), answer))


def _now_us() -> int:
    return int((time.time() - _EPOCH_2000_S) * 1e6)
