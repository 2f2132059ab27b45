"""The form of the declared state in the control volume: one file a saved version, never written twice.

A save whose wait was cut short has an unknown outcome. So no save builds on what another one left: each writes a whole
state to a file of its own, and takes the oldest file away, in one flush. Log order makes the rest: if a save is
durable, all before it are.

Version `n` is the file with id `n`, named `control-state.<n>`, in pages of the volume's page size:
  0 u32 magic "ARC2" | 4 u32 crc32c of all that follows | 8 u64 length of the state | 16 u64 n
  | 24 f64 when it was saved (Unix time, s) | 32 the state (see model.py), then zeros

Counts of what was used are saved in the same form, often, in files of their own (`usage.<n>`) that are numbered with
the others; one is kept, and the one before it. Programs from before there were any pass over them.

Format 1 ("ARC1") was a single file that was written over, id 1, named `control-state`, with a header of magic, crc32c
of the state, and its length as u64. It is read as version 1. The first save afterwards copies it to a version of this
format and drops it, so that a program that knows nothing else finds no state rather than an old one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import google_crc32c

from aurora_ray.errors import MalformedError
from aurora_ray.log.record import Record, create, drop, extent, page_full, size, unlink
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.volume.read.pages import PageRange, PageRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.filetable import FileTable


HEADER: Final = struct.Struct("<IIQQd")
MAGIC: Final = 0x32435241  # "ARC2"
_CRC_FROM: Final = 8
FILE_PATH: Final = b"control-state"
USAGE_PATH: Final = b"usage"  # counts of what was used (decide/metering.py), in files of the same form
STATE_BYTES_MAX: Final = 32 << 20  # one flush must carry it
VERSIONS_KEPT: Final = 20

FIRST_HEADER: Final = struct.Struct("<IIQ")
FIRST_MAGIC: Final = 0x31435241  # "ARC1"
FIRST_FILE_ID: Final = 1

assert HEADER.size == 32  # noqa: S101
assert STATE_BYTES_MAX * VERSIONS_KEPT < 1 << 30, "all versions must fit into the control volume's one group"  # noqa: S101


class Pages(Protocol):
    """What versions are read from: a `PageSource`, of which the newest state is enough here."""

    async def read_pages(self, ranges: Sequence[PageRange]) -> list[PageRun]:
        """The ranges, in the order asked. Raises QuorumLostError."""

    async def read_file_table(self) -> FileTable:
        """The file table. Raises QuorumLostError."""


@dataclass(frozen=True, slots=True)
class Content:
    """A version as it lies there. `state` is empty and `problem` says why if it cannot be read."""

    number: int
    saved_at_s: float
    state: bytes
    problem: str = ""
    first_format: bool = False


def path_of(number: int, name: bytes = FILE_PATH) -> bytes:
    """The name of a version's file."""
    return b"%s.%d" % (name, number)


def frame(state: bytes, number: int, saved_at_s: float, page_size: int) -> list[bytes]:
    """The file's pages, each of `page_size` bytes. Raises MalformedError if the state is too large."""
    if len(state) > STATE_BYTES_MAX:
        raise MalformedError(f"The control state has {len(state)} bytes, {STATE_BYTES_MAX} is the limit.")
    checked = HEADER.pack(MAGIC, 0, len(state), number, saved_at_s)[_CRC_FROM:] + state
    content = struct.pack("<II", MAGIC, google_crc32c.value(checked)) + checked
    return [content[at : at + page_size].ljust(page_size, b"\0") for at in range(0, len(content), page_size)]


def unframe(content: bytes, number: int) -> tuple[bytes, float]:
    """The state from the file's bytes, and when it was saved. Raises MalformedError."""
    if len(content) < HEADER.size:
        raise MalformedError("The control state is damaged: it is cut short.")
    magic, crc, length, written_as, saved_at_s = HEADER.unpack_from(content)
    if magic != MAGIC:
        raise MalformedError("The control state is damaged: it does not begin as one.")
    if length > STATE_BYTES_MAX or len(content) < HEADER.size + length:
        raise MalformedError("The control state is damaged: it is cut short.")
    if google_crc32c.value(content[_CRC_FROM : HEADER.size + length]) != crc or written_as != number:
        raise MalformedError("The control state is damaged: its CRC does not match.")
    return content[HEADER.size : HEADER.size + length], saved_at_s


def unframe_first(content: bytes) -> bytes:
    """The state from the bytes of a file of format 1. Raises MalformedError."""
    if len(content) < FIRST_HEADER.size:
        raise MalformedError("The control state is damaged: it is cut short.")
    magic, crc, length = FIRST_HEADER.unpack_from(content)
    if magic != FIRST_MAGIC or length > STATE_BYTES_MAX:
        raise MalformedError("The control volume does not hold a control state.")
    state = content[FIRST_HEADER.size : FIRST_HEADER.size + length]
    if len(state) != length or google_crc32c.value(state) != crc:
        raise MalformedError("The control state is damaged: its CRC does not match.")
    return state


def writing(number: int, pages: Sequence[bytes], page_size: int, name: bytes = FILE_PATH) -> list[Record]:
    """The records that make a version's file."""
    extents = -(-len(pages) // EXTENT_PAGES)
    return [
        create(number, path_of(number, name)),
        *(extent(number, each, 0) for each in range(extents)),
        size(number, len(pages) * page_size),
        *(page_full(number, at, page) for at, page in enumerate(pages)),
    ]


def removing(number: int, name: bytes = FILE_PATH, *, first_format: bool = False) -> list[Record]:
    """The records that take a version's file away."""
    return [unlink(number, FILE_PATH if first_format else path_of(number, name)), drop(number)]


@dataclass(frozen=True, slots=True)
class Listing:
    """The versions that there are, oldest first, the number of the next one, and whether number 1 has format 1.
    `usage`: the counts of what was used, as `numbers`."""

    numbers: tuple[int, ...] = ()
    next_number: int = 1
    first_format: bool = False
    usage: tuple[int, ...] = ()


async def listing(source: Pages) -> Listing:
    """What the file table tells. Raises QuorumLostError."""
    table = await source.read_file_table()
    numbers = {e.file_id for e in table.entries() if e.file_id and path_of(e.file_id) in e.paths}
    first = table.by_id(FIRST_FILE_ID)
    first_format = first is not None and FILE_PATH in first.paths
    if first_format:
        numbers.add(FIRST_FILE_ID)
    usage = sorted(e.file_id for e in table.entries() if path_of(e.file_id, USAGE_PATH) in e.paths)
    return Listing(tuple(sorted(numbers)), table.next_file_id, first_format, tuple(usage))


async def read(source: Pages, there: Listing, number: int, page_size: int) -> Content:
    """One version. Raises QuorumLostError if no copy of it answers; damage is no error, but a `problem`."""
    first_format = there.first_format and number == FIRST_FILE_ID
    try:
        head = await _read_run(source, number, 0, 1, page_size)
        count = _pages_needed(head, page_size, first_format=first_format)
        content = head if count == 1 else head + await _read_run(source, number, 1, count - 1, page_size)
        if first_format:
            return Content(number, 0.0, unframe_first(content), first_format=True)
        state, saved_at_s = unframe(content, number)
        return Content(number, saved_at_s, state)
    except MalformedError as error:
        return Content(number, 0.0, b"", str(error), first_format)


def _pages_needed(head: bytes, page_size: int, *, first_format: bool) -> int:
    """How many pages the file has, from its first; a wild length is cut, the CRC then tells."""
    header = FIRST_HEADER if first_format else HEADER
    length = min(int(header.unpack_from(head)[2]), STATE_BYTES_MAX)
    return -(-(header.size + length) // page_size)


async def _read_run(source: Pages, number: int, first_page: int, count: int, page_size: int) -> bytes:
    (run,) = await source.read_pages([PageRange(0, number, first_page, count)])
    if run.kinds.count(1) == count:
        return run.pages
    pages, at = [], 0
    for kind in run.kinds:
        pages.append(run.pages[at : at + page_size] if kind else bytes(page_size))
        at += page_size if kind else 0
    return b"".join(pages)
