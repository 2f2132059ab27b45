"""The fixed layouts of the redo log, little-endian, byte by byte.

Record: a 32-byte header, a body, zeros up to a multiple of 8.

    0 u32 length (whole, with header and padding)   4 u8 type   5 u8 flags   6 u16 count   8 u64 lsn
    16 u64 file_id   24 u32 group   28 u32 page

Batch: a 96-byte header, u32 groups[ngroups] padded to 8 bytes, then the records of one group in LSN order.

    0 u32 magic   4 u32 crc32c over bytes [8:] of the whole batch   8 u16 version   10 u16 flags   12 u32 group
    16 volume[16]   32 u64 epoch   40 u64 prev_lsn (flush_end of this group's batch before; 0 for the first)
    48 u64 flush_start   56 u64 flush_end   64 u64 time_us (unix)   72 u64 vdl (the writer's, at encoding)
    80 u32 record_count   84 u32 payload_bytes (records only)   88 u32 ngroups   92 u32 reserved (0)

Flag 1 of a batch: the records are compressed (one zstd frame); payload_bytes is their length when inflated.

The interposer's C fills the same layouts; this file and its tests are the reference.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum, IntFlag
from typing import Final

RECORD_HEADER: Final = struct.Struct("<IBBHQQII")
RECORD_HEADER_BYTES: Final = 32
RECORD_ALIGN: Final = 8
RANGE: Final = struct.Struct("<HH")  # offset and length of a changed range within a page
RANGE_BYTES: Final = 4
IMAGE_LENGTH: Final = struct.Struct("<I")
SIZE_BODY: Final = struct.Struct("<Q")
EXTENT_BODY: Final = struct.Struct("<II")

BATCH_HEADER: Final = struct.Struct("<IIHHI16sQQQQQQIIII")
BATCH_HEADER_BYTES: Final = 96
BATCH_MAGIC: Final = 0x31425241  # "ARB1"
BATCH_VERSION: Final = 1
BATCH_COMPRESSED: Final = 1
BATCH_CRC_OFFSET: Final = 4
BATCH_CRC_FROM: Final = 8
BATCH_BYTES_MAX: Final = 64 << 20
BATCH_GROUPS_MAX: Final = 1 << 20


class RecordType(IntEnum):
    """What a record does."""

    PAGE = 1
    CREATE = 2
    UNLINK = 3
    RENAME = 4
    TRUNCATE = 5
    SIZE = 6
    MKDIR = 7
    RMDIR = 8
    SYMLINK = 9
    LINK = 10
    CHMOD = 11
    EXTENT = 12
    DROP = 13


class RecordFlag(IntFlag):
    """Bit 0, whose meaning depends on the type."""

    FULL = 1  # PAGE: the body is an image, not ranges
    COPY = 1  # TRUNCATE, DROP: a copy for a group other than 0; the file table ignores it


RECORD_TYPE_MAX: Final = max(RecordType)

if sys.byteorder != "little":  # pragma: no cover - extents are stored as arrays of the machine's own u32
    raise ImportError("aurora-ray needs a little-endian machine")
assert RECORD_HEADER.size == RECORD_HEADER_BYTES  # noqa: S101
assert BATCH_HEADER.size == BATCH_HEADER_BYTES  # noqa: S101
assert RANGE.size == RANGE_BYTES  # noqa: S101


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of records."""
    return (nbytes + RECORD_ALIGN - 1) & -RECORD_ALIGN
