"""Keys and values of a segment's RocksDB directory, byte by byte.

Integers in keys are big-endian, so that byte order is numeric order. Column families:

    default  b"meta" -> u32 CRC, SegmentMeta (msgpack)
             b"folded" -> u32 CRC, u64 lsn (little-endian): the end of the last layer when all pages had been folded; if
                 it is absent, or another layer's, they have to be looked at (leftovers.py)
             b"cut" + u64 file_id + u64 lsn -> u32 CRC, u64 new_size (little-endian) + u8 dropped
    log      u64 flush_end -> batch, as received (it carries a CRC of its own)
    pages    u64 file_id + u32 page + u64 lsn -> u32 CRC, u8 kind, then
                 IMAGE: the page without trailing zeros
                 DELTA: u8 0, u16 deltas since the image (with this), u32 their bytes, then a delta as in log/pages.py;
                        where a node has just started the two may count from what was assumed (chains.py)
    tables   u64 lsn -> u32 CRC, the file table, zstd of its packed form (group 0 only)
    marks    b"pages" -> u32 CRC, u64 lsn (little-endian): all page versions up to here were flushed before this was
    page-marks  the same, written after the one in marks

"pages" and "page-marks" are in a database of their own (see store.py).

Each CRC is CRC-32C, little-endian, over the key and what follows the CRC: a value in the wrong place is damaged too.
"""

from __future__ import annotations

import struct
from typing import Final

import google_crc32c

from aurora_ray.errors import MalformedError

META_KEY: Final = b"meta"
CUT_PREFIX: Final = b"cut"
FOLDED_KEY: Final = b"folded"
MARK_KEY: Final = b"pages"
LOG_FAMILIES: Final = ("log", "tables", "marks")  # besides "default"
PAGE_FAMILIES: Final = ("pages", "page-marks")

LSN_KEY: Final = struct.Struct(">Q")
PAGE_KEY: Final = struct.Struct(">QIQ")
CUT_KEY: Final = struct.Struct(">QQ")
CUT_VALUE: Final = struct.Struct("<QB")
MARK_VALUE: Final = struct.Struct("<Q")

IMAGE: Final = 1
DELTA: Final = 2
IMAGE_HEAD: Final = b"\x01"
DELTA_HEAD: Final = struct.Struct("<BBHI")

CRC_BYTES: Final = 4

LSN_MAX: Final = (1 << 64) - 1
FILE_ID_MAX: Final = (1 << 64) - 1


def lsn_key(lsn: int) -> bytes:
    """Key in the families log and tables."""
    return LSN_KEY.pack(lsn)


def page_key(file_id: int, page: int, lsn: int) -> bytes:
    """Key of one version of a page."""
    return PAGE_KEY.pack(file_id, page, lsn)


def cut_key(file_id: int, lsn: int) -> bytes:
    """Key of a cut: a truncation or drop that hides older versions of pages."""
    return CUT_PREFIX + CUT_KEY.pack(file_id, lsn)


def guarded(key: bytes, content: bytes) -> bytes:
    """`content` as it is stored under `key`: behind a CRC of both."""
    crc: int = google_crc32c.extend(google_crc32c.value(key), content)
    return crc.to_bytes(CRC_BYTES, "little") + content


def content_of(key: bytes, value: bytes) -> bytes:
    """The content of a stored value. Raises MalformedError if the CRC does not hold."""
    content = value[CRC_BYTES:]
    actual = google_crc32c.extend(google_crc32c.value(key), content)
    if len(value) < CRC_BYTES or actual != int.from_bytes(value[:CRC_BYTES], "little"):
        raise MalformedError(f"CRC {actual:#010x} does not match {value[:CRC_BYTES].hex()}")
    return content
