"""All pages as of an LSN: a block an extent, some blocks an object, and an index of where every extent lies.

An image takes over the blocks of the one before for every extent that no log since then has touched, so each costs what
changed; there is never another whole one, and none depends on a chain. Objects of which less than a quarter is still
used are not taken over: what is left of them is written anew, so that they can go.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from aurora_ray.backup.chunks import LogIndex, unpack
from aurora_ray.backup.manifest import Image, image_name
from aurora_ray.errors import UNDECODABLE, MalformedError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.replication.seeding import read_in_order
from aurora_ray.replication.snapshot import page_ranges
from aurora_ray.volume.read.pages import PageRange, PageRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.backup.manifest import Manifest
    from aurora_ray.backup.store import Store
    from aurora_ray.volume.read.source import PageSource

FORMAT: Final = 1
OBJECT_BYTES: Final = 16 << 20
REQUESTS: Final = 2
USED_AT_LEAST: Final = 0.25
BYTES_PER_S: Final = 64 << 20  # of pages read from storage nodes: what they do for commits comes first
_COLUMNS: Final = "QIIQI"


class Place(NamedTuple):
    """Where a block lies: which object of the index, and which bytes of it."""

    number: int
    at: int
    nbytes: int


@dataclass
class Index:
    """`places` by (file id, number of the extent); what is not there was never written."""

    lsn: int
    table: FileTable
    objects: list[str] = field(default_factory=list)
    places: dict[tuple[int, int], Place] = field(default_factory=dict)

    def used_bytes(self) -> list[int]:
        """Of each object."""
        used = [0] * len(self.objects)
        for place in self.places.values():
            used[place.number] += place.nbytes
        return used

    def pack(self) -> bytes:
        """Msgpack; columns of little-endian numbers."""
        rows = [(*extent, *place) for extent, place in sorted(self.places.items())]
        columns = [array(kind, [row[at] for row in rows]).tobytes() for at, kind in enumerate(_COLUMNS)]
        packed: bytes = msgpack.packb((FORMAT, self.lsn, self.table.pack(), self.objects, columns))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Index:
        """The inverse. Raises MalformedError."""
        try:
            written_by, lsn, table, objects, packed = msgpack.unpackb(data)
            columns = []
            for kind, column in zip(_COLUMNS, packed, strict=True):
                columns.append(array(kind))
                columns[-1].frombytes(column)
            places = {(row[0], row[1]): Place(*row[2:]) for row in zip(*columns, strict=True)}
            if written_by != FORMAT or any(not 0 <= place.number < len(objects) for place in places.values()):
                raise MalformedError(f"an image's index of format {written_by} does not hold what it says")
            return cls(lsn, FileTable.unpack(table), objects, places)
        except (*UNDECODABLE, msgpack.UnpackException) as error:
            raise MalformedError(f"an image's index does not parse: {error!r}") from error


def pack_block(run: PageRun) -> bytes:
    """An extent: a byte a page, then those that there are."""
    return run.kinds.ljust(EXTENT_PAGES, b"\0") + run.pages


def unpack_block(data: bytes, page_size: int) -> list[bytes | None]:
    """Its pages. Raises MalformedError."""
    kinds, pages, at = data[:EXTENT_PAGES], list[bytes | None](), EXTENT_PAGES
    if len(data) != EXTENT_PAGES + kinds.count(1) * page_size or kinds.count(0) + kinds.count(1) != EXTENT_PAGES:
        raise MalformedError("a block of an image does not hold what it says")
    for kind in kinds:
        pages.append(data[at : at + page_size] if kind else None)
        at += page_size if kind else 0
    return pages


def block_name(file_id: int, extent: int, lsn: int) -> str:
    """What a block is wrapped as; nobody can put another one in its place."""
    return f"block/{file_id}/{extent}/{lsn}"


class Imaging:
    """Makes one image. Everything that it puts carries the owner's name; nothing counts until a manifest names it."""

    def __init__(self, store: Store, owner: str, source: PageSource, lsn: int, before: Index | None) -> None:
        """`before`: the last image, if log without a gap leads from there to `lsn`."""
        self.extents_done = self.extents_total = self.read_bytes = self.put_bytes = 0
        self._store, self._owner, self._source, self._lsn, self._before = store, owner, source, lsn, before
        self._page_size = source.spec.page_size
        self._waiting: list[tuple[tuple[int, int], bytes]] = []
        self._waiting_bytes = 0

    async def make(self, log: LogIndex | None, stamp: tuple[int, int]) -> Image:
        """`log`: all from the image before up to this one; `stamp`: epoch and time of the last flush. Raises
        BackupError, StorageError."""
        table = await self._source.read_file_table(self._lsn)
        index = Index(self._lsn, table)
        wanted = self._take_over(index, page_ranges(table), log)
        self.extents_total = len(wanted)
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        async for each, run in read_in_order(self._source, wanted, self._lsn, REQUESTS):
            if any(run.kinds):
                await self._add(index, each, run)
            self.extents_done += 1
            self.read_bytes += len(run.pages)
            due_s = max(due_s, loop.time() - 1.0) + len(run.pages) / BYTES_PER_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
        await self._put(index)
        name = image_name(self._lsn, self._owner, "index")
        self.put_bytes += await self._store.put(name, await asyncio.to_thread(index.pack))
        used = index.used_bytes()
        objects = tuple((name, nbytes) for name, nbytes in zip(index.objects, used, strict=True))
        return Image(self._lsn, stamp[1], stamp[0], name, objects, sum(used))

    def _take_over(self, index: Index, ranges: Sequence[PageRange], log: LogIndex | None) -> list[PageRange]:
        """What has to be read; the rest is in the index."""
        before = self._before
        if before is None or log is None:
            return list(ranges)
        sizes: dict[int, int] = {}
        for place in before.places.values():
            sizes[place.number] = max(sizes.get(place.number, 0), place.at + place.nbytes)
        touched, numbers = log.extents(), dict[int, int]()
        kept, wanted = dict[tuple[int, int], tuple[Place, PageRange]](), list[PageRange]()
        for each in ranges:
            extent = each.file_id, each.first_page // EXTENT_PAGES
            if extent in touched or log.is_cut(*extent, self._page_size):
                wanted.append(each)
            elif extent in before.places:
                kept[extent] = before.places[extent], each
        used: dict[int, int] = {}
        for place, _ in kept.values():
            used[place.number] = used.get(place.number, 0) + place.nbytes
        for extent, (place, each) in kept.items():
            if used[place.number] < USED_AT_LEAST * sizes[place.number]:
                wanted.append(each)
                continue
            if place.number not in numbers:
                numbers[place.number] = len(index.objects)
                index.objects.append(before.objects[place.number])
            index.places[extent] = place._replace(number=numbers[place.number])
        return sorted(wanted, key=lambda each: (each.file_id, each.first_page))

    async def _add(self, index: Index, each: PageRange, run: PageRun) -> None:
        extent = each.file_id, each.first_page // EXTENT_PAGES
        data = await self._store.wrap(block_name(*extent, self._lsn), pack_block(run))
        self._waiting.append((extent, data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= OBJECT_BYTES:
            await self._put(index)

    async def _put(self, index: Index) -> None:
        if not self._waiting:
            return
        name = image_name(self._lsn, self._owner, f"{len(index.objects):06d}")
        await self._store.put_raw(name, b"".join(data for _, data in self._waiting))
        at = 0
        for extent, data in self._waiting:
            index.places[extent] = Place(len(index.objects), at, len(data))
            at += len(data)
        index.objects.append(name)
        self.put_bytes += at
        self._waiting, self._waiting_bytes = [], 0


async def read_index(store: Store, image: Image) -> Index:
    """Raises BackupError, MalformedError."""
    return Index.unpack(await store.get(image.index))


async def read_log(store: Store, manifest: Manifest, after_lsn: int, up_to_lsn: int) -> LogIndex:
    """The log (after_lsn, up_to_lsn] by page; both are ends of flushes, or the first lies within one that is wholly
    below. Raises BackupError, MalformedError if there is a gap."""
    log = LogIndex()
    chunks = await store.chunks(manifest, after_lsn, up_to_lsn)
    for at in range(0, len(chunks), 8):
        some = chunks[at : at + 8]
        for chunk, data in zip(some, await asyncio.gather(*(store.get(c.name) for c in some)), strict=True):
            for flush in await asyncio.to_thread(unpack, data, chunk.start, chunk.end):
                if after_lsn < flush.end <= up_to_lsn:
                    log.add(flush)
    return log


def lsn_of_object(name: str) -> int:
    """The LSN of the image for which an object was made."""
    return int(name.split("/")[1].partition("-")[0])
