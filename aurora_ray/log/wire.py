"""The protobuf wire format of the few messages that carry log, by hand.

Redo passes through as the same bytes that the writer encoded. The generated classes would copy each batch into a
message and out again; these functions slice. Tests hold them against the generated classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError
from aurora_ray.log.layout import BATCH_HEADER, BATCH_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

_BATCHES_TAG: Final = 0x0A  # field 1, length-delimited: AppendRequest.batches, LogChunk.batches
_ACKED_TAG: Final = b"\x08"  # field 1, varint: AppendReply.acked_lsn
_SUBSCRIBED: Final = b"\x10\x01"  # field 2, varint: AppendReply.subscribed
_VDL_TAG: Final = b"\x10"  # field 2, varint: LogChunk.vdl


def varint(value: int) -> bytes:
    """A base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def split_append(message: bytes) -> list[bytes]:
    """The batches of an AppendRequest. Raises MalformedError."""
    batches = []
    at, end = 0, len(message)
    while at < end:
        if message[at] != _BATCHES_TAG:
            raise MalformedError(f"an append request carries an unknown field at offset {at}")
        at += 1
        nbytes = shift = 0
        while True:
            if at >= end or shift > 28:
                raise MalformedError("an append request is cut short")
            byte = message[at]
            at += 1
            nbytes |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if nbytes > end - at:
            raise MalformedError("an append request is cut short")
        batches.append(message[at : at + nbytes])
        at += nbytes
    return batches


def aim_of(message: bytes) -> tuple[bytes, bool]:
    """The volume of an AppendRequest's first batch, and whether that has records; (b"", False) of anything else."""
    at = 1
    while at < len(message) and message[at] & 0x80:
        at += 1
    header = message[at + 1 : at + 1 + BATCH_HEADER_BYTES]
    if len(header) < BATCH_HEADER_BYTES:
        return b"", False
    _, _, _, _, _, volume, *_, record_count, _, _, _ = BATCH_HEADER.unpack(header)
    return volume, record_count > 0


def join_append(batches: Iterable[bytes]) -> bytes:
    """An AppendRequest. May be concatenated with others: field 1, repeated, wire type 2."""
    parts: list[bytes] = []
    for batch in batches:
        parts += (b"\x0a" + varint(len(batch)), batch)
    return b"".join(parts)


def append_reply(acked_lsn: int, *, subscribed: bool = False) -> bytes:
    """An AppendReply."""
    return _ACKED_TAG + varint(acked_lsn) + (_SUBSCRIBED if subscribed else b"")


def log_chunk(batches: Iterable[bytes], vdl: int) -> bytes:
    """A LogChunk."""
    return join_append(batches) + _VDL_TAG + varint(vdl)
