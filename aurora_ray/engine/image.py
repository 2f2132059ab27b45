"""A directory tree as redo records: how a prepared data directory becomes the first content of a volume."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from aurora_ray.errors import MalformedError
from aurora_ray.log import record
from aurora_ray.log.sizes import EXTENT_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from aurora_ray.log.record import Record

IMPORT_CHUNK_BYTES: Final = 4 << 20  # a batch large enough to be cheap, small enough to keep six copies busy in turn


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that replace those at `offset` of the file at `path` (relative) on the way into the volume."""

    path: bytes
    offset: int
    data: bytes


class RecordSink(Protocol):
    """Takes records in order and answers with the LSN at which they are durable (a volume's client)."""

    async def append(self, records: Sequence[Record]) -> int:
        """Makes `records`, in this order, durable; the LSN of the last one."""


def tree_records(
    root: Path,
    *,
    page_size: int,
    patches: Sequence[Patch] = (),
    last: Sequence[bytes] = (),
    first_file_id: int = 1,
    assign_extent: Callable[[], int] = lambda: 0,
) -> Iterator[Record]:
    """The records that build the tree below `root` in an empty volume; `root` itself is the volume's root.

    Directories come before what lies in them, names in sorted order, so the same tree gives the same records. The files
    named in `last` come at the very end: a tree whose import was cut short lacks them. Pages of zeros are left out, the
    size alone speaks for them. `assign_extent` gives the group for each extent that holds a page. Raises MalformedError
    for anything but directories, regular files and symbolic links, and for a patch that meets no file.
    """
    directories, files = _walk(root)
    names = {path for path, _ in files}
    for path in [*last, *(patch.path for patch in patches)]:
        if path not in names:
            raise MalformedError(f"{root} has no file {os.fsdecode(path)}")
    yield from directories
    postponed = {path: position for position, path in enumerate(last)}
    files.sort(key=lambda item: (postponed.get(item[0], -1), item[0]))
    for file_id, (path, entry) in enumerate(files, first_file_id):
        yield record.create(file_id, path, stat.S_IMODE(entry.stat().st_mode))
        own = [patch for patch in patches if patch.path == path]
        yield from _content_records(file_id, entry, own, page_size, assign_extent)


def _walk(root: Path) -> tuple[list[Record], list[tuple[bytes, Path]]]:
    """Records for directories and symbolic links, parents first; the regular files."""
    records: list[Record] = []
    files: list[tuple[bytes, Path]] = []
    for entry in sorted(root.rglob("*")):
        path = os.fsencode(entry.relative_to(root))
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            records.append(record.mkdir(path, stat.S_IMODE(mode)))
        elif stat.S_ISLNK(mode):
            records.append(record.symlink(os.fsencode(entry.readlink()), path))
        elif stat.S_ISREG(mode):
            files.append((path, entry))
        else:
            raise MalformedError(f"{entry} is neither a file, a directory nor a symbolic link")
    return records, files


def _content_records(
    file_id: int, entry: Path, patches: Sequence[Patch], page_size: int, assign_extent: Callable[[], int]
) -> Iterator[Record]:
    """Page by page: an engine's log may be large, and is zeros for the most part."""
    with entry.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return
        yield record.size(file_id, size)
        zeros = bytes(page_size)
        assigned: tuple[int, int] | None = None
        for page, offset in enumerate(range(0, size, page_size)):
            image = _patched(file.read(page_size), offset, patches)
            if image == zeros[: len(image)]:
                continue
            extent_no = page // EXTENT_PAGES
            if assigned is None or assigned[0] != extent_no:
                assigned = (extent_no, assign_extent())
                yield record.extent(file_id, extent_no, assigned[1])
            yield record.page_full(file_id, page, image, group=assigned[1])


def _patched(image: bytes, offset: int, patches: Sequence[Patch]) -> bytes:
    """The part of a file from `offset` on, with what the patches change of it."""
    for patch in patches:
        begin, end = max(patch.offset, offset), min(patch.offset + len(patch.data), offset + len(image))
        if begin < end:
            new = patch.data[begin - patch.offset : end - patch.offset]
            image = image[: begin - offset] + new + image[end - offset :]
    return image


async def import_records(records: Iterable[Record], sink: RecordSink, *, chunk_bytes: int = IMPORT_CHUNK_BYTES) -> int:
    """Appends `records` to `sink` in chunks of about `chunk_bytes`; the LSN at which all is durable, 0 if none."""
    lsn = 0
    chunk: list[Record] = []
    size = 0
    for item in records:
        chunk.append(item)
        size += item.encoded_bytes
        if size >= chunk_bytes:
            lsn = await sink.append(chunk)
            chunk, size = [], 0
    if chunk:
        lsn = await sink.append(chunk)
    return lsn
