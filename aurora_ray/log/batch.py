"""Batches: what travels and is stored, guarded by a CRC. Layout in `layout.py`.

Large batches may carry their records compressed (bulk loads are mostly padding and repetition): `compress` and
`inflate`. Whatever stores or passes on a batch leaves it as it came.

A batch without records is a heartbeat: it carries only the writer's VDL, is checked like any other and never stored.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import google_crc32c
import zstandard

from aurora_ray.errors import MalformedError
from aurora_ray.log import compression
from aurora_ray.log._pages import walk
from aurora_ray.log.layout import (
    BATCH_BYTES_MAX,
    BATCH_COMPRESSED,
    BATCH_CRC_FROM,
    BATCH_GROUPS_MAX,
    BATCH_HEADER,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    BATCH_VERSION,
    RECORD_HEADER_BYTES,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.record import Buffer


COMPRESS_FROM_BYTES: Final = 16 << 10  # below, what is saved does not pay for the calls
_COMPRESSED_AT_MOST: Final = 0.75
_FLAGS: Final = struct.Struct("<H")
_FLAGS_OFFSET: Final = 10


class BatchHeader(NamedTuple):
    """A batch's header; LSNs in bytes of log, `time_us` in microseconds since 1970."""

    group: int
    volume: bytes
    epoch: int
    prev_lsn: int
    flush_start: int
    flush_end: int
    time_us: int
    vdl: int
    record_count: int
    payload_bytes: int
    groups: tuple[int, ...]
    compressed: bool


def encode_batch(
    *,
    group: int,
    volume: bytes,
    epoch: int,
    prev_lsn: int,
    flush_start: int,
    flush_end: int,
    time_us: int,
    vdl: int,
    record_count: int,
    groups: Sequence[int],
    records: Buffer,
) -> bytes:
    """One group's batch of the flush (flush_start, flush_end] that touches `groups` (ascending)."""
    ngroups = len(groups)
    head = bytearray(BATCH_HEADER_BYTES + padded(4 * ngroups))
    BATCH_HEADER.pack_into(
        head,
        0,
        BATCH_MAGIC,
        0,
        BATCH_VERSION,
        0,
        group,
        volume,
        epoch,
        prev_lsn,
        flush_start,
        flush_end,
        time_us,
        vdl,
        record_count,
        len(records),
        ngroups,
        0,
    )
    for i, member in enumerate(groups):
        head[BATCH_HEADER_BYTES + 4 * i : BATCH_HEADER_BYTES + 4 * i + 4] = member.to_bytes(4, "little")
    crc = google_crc32c.extend(google_crc32c.value(bytes(head[BATCH_CRC_FROM:])), bytes(records))
    head[4:8] = crc.to_bytes(4, "little")
    batch = bytes(head) + records
    if len(batch) > BATCH_BYTES_MAX:
        raise MalformedError(f"a batch of {len(batch)} bytes exceeds the limit of {BATCH_BYTES_MAX}")
    return batch


def decode_header(buf: Buffer) -> BatchHeader:
    """The header, its lengths checked against `buf`; the CRC is not. Raises MalformedError."""
    nbytes = len(buf)
    if nbytes < BATCH_HEADER_BYTES:
        raise MalformedError(f"a batch of {nbytes} bytes is shorter than its header")
    fields = BATCH_HEADER.unpack_from(buf)
    (
        magic,
        _,
        version,
        flags,
        group,
        volume,
        epoch,
        prev,
        start,
        end,
        time_us,
        vdl,
        count,
        payload_bytes,
        ngroups,
        zero,
    ) = fields
    if magic != BATCH_MAGIC or version != BATCH_VERSION or flags & ~BATCH_COMPRESSED or zero:
        raise MalformedError(f"not a batch: magic {magic:#x}, version {version}, flags {flags}")
    stored_bytes = nbytes - BATCH_HEADER_BYTES - padded(4 * ngroups)
    fits = 0 < stored_bytes < payload_bytes if flags else stored_bytes == payload_bytes
    if not 1 <= ngroups <= BATCH_GROUPS_MAX or not fits:
        raise MalformedError(f"a batch of {nbytes} bytes claims {ngroups} groups and {payload_bytes} bytes of records")
    if max(nbytes, payload_bytes) > BATCH_BYTES_MAX:
        raise MalformedError(f"a batch of {nbytes} bytes exceeds the limit of {BATCH_BYTES_MAX}")
    groups = tuple(memoryview(buf)[BATCH_HEADER_BYTES : BATCH_HEADER_BYTES + 4 * ngroups].cast("I"))
    return BatchHeader(group, volume, epoch, prev, start, end, time_us, vdl, count, payload_bytes, groups, bool(flags))


def verify(buf: bytes) -> BatchHeader:
    """The header of a batch whose lengths, CRC and LSN order hold. Raises MalformedError."""
    header = decode_header(buf)
    expected = int.from_bytes(buf[4:8], "little")
    actual = google_crc32c.value(buf[BATCH_CRC_FROM:])
    if actual != expected:
        raise MalformedError(f"batch ending at {header.flush_end}: CRC {actual:#010x}, {expected:#010x} expected")
    heartbeat = header.record_count == 0
    if not (header.prev_lsn <= header.flush_start <= header.flush_end) or heartbeat != (
        header.flush_start == header.flush_end and header.payload_bytes == 0
    ):
        raise MalformedError(
            f"batch claims {header.record_count} records in ({header.flush_start}, {header.flush_end}]"
            f" behind {header.prev_lsn}"
        )
    if header.group not in header.groups:
        raise MalformedError(f"batch of group {header.group} is not among its flush's groups")
    return header


def compress(buf: bytes) -> bytes:
    """The batch with its records compressed, if it is large and that pays; else the batch itself."""
    records = payload(buf)
    if len(records) < COMPRESS_FROM_BYTES:
        return buf
    squeezed = compression.compress(records)
    if len(squeezed) > _COMPRESSED_AT_MOST * len(records):
        return buf
    head = bytearray(buf[: len(buf) - len(records)])
    _FLAGS.pack_into(head, _FLAGS_OFFSET, BATCH_COMPRESSED)
    crc = google_crc32c.extend(google_crc32c.value(bytes(head[BATCH_CRC_FROM:])), squeezed)
    head[4:8] = crc.to_bytes(4, "little")
    return bytes(head) + squeezed


def inflate(buf: bytes) -> bytes:
    """A verified batch with its records as they are: for reading, not for passing on (the CRC is of the other form).

    Raises MalformedError if they cannot be inflated to the length that the header says.
    """
    if not _FLAGS.unpack_from(buf, _FLAGS_OFFSET)[0] & BATCH_COMPRESSED:
        return buf
    squeezed = payload(buf)
    payload_bytes = int.from_bytes(buf[84:88], "little")
    try:
        records = compression.decompress(squeezed, payload_bytes)
    except zstandard.ZstdError as error:
        raise MalformedError(f"a batch's records cannot be inflated: {error}") from error
    if len(records) != payload_bytes:
        raise MalformedError(f"a batch's records inflate to {len(records)} bytes, {payload_bytes} expected")
    return bytes(memoryview(buf)[: len(buf) - len(squeezed)]) + records


def check_records(buf: bytes, header: BatchHeader) -> None:
    """Walks the records' headers: lengths, types, group and ascending LSNs within the flush. Raises MalformedError."""
    if header.compressed:
        buf = inflate(buf)
    count, at, last_lsn = walk(buf, len(buf) - header.payload_bytes, header.group, header.flush_start)
    if at < len(buf):
        what = "is cut short" if len(buf) - at < RECORD_HEADER_BYTES else "is malformed"
        raise MalformedError(f"batch ending at {header.flush_end}: record {count} {what}")
    if count != header.record_count or last_lsn > header.flush_end:
        raise MalformedError(f"batch ending at {header.flush_end}: {count} records of {header.record_count} fit")


def payload(buf: Buffer) -> memoryview:
    """The records of a batch that has been verified, as they are stored; see `inflate`."""
    ngroups = int.from_bytes(buf[88:92], "little")
    return memoryview(buf)[BATCH_HEADER_BYTES + padded(4 * ngroups) :]
