"""A volume as of an LSN, read out of a backup: what a restore mounts and fills from.

A page is looked up in the image below the LSN, and the records of the log from there on are put on top. So the first
page can be read once the log of at most one image's distance is here; blocks come when they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgpack  # type: ignore[import-untyped]

from aurora_ray.backup.images import block_name, lsn_of_object, read_index, read_log, unpack_block
from aurora_ray.errors import BackupError, UsageError
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.volume.read.pages import READ_TIMEOUT_S, PageRun
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.backup.chunks import LogIndex
    from aurora_ray.backup.images import Index
    from aurora_ray.backup.manifest import Manifest
    from aurora_ray.backup.store import Store
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.volume.read.pages import PageRange

BLOCKS_KEPT: Final = 128  # extents of 512 KiB
HOLD_S: Final = 900.0
RENEW_S: Final = 120.0


class Hold:
    """While it stands, nothing is removed from a backup (`collect.py`). Whoever stops renewing it holds nothing."""

    def __init__(self, store: Store, lsn: int) -> None:
        self._store, self._lsn = store, lsn
        self._name = f"holds/{secrets.token_hex(8)}"
        self._task: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Raises BackupError. Only what is looked up afterwards is held."""
        await self._renew()
        self._task = asyncio.create_task(self._keep(), name="hold a backup")

    async def release(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(BackupError):  # it runs out
                await self._store.delete([self._name])

    async def _renew(self) -> None:
        await self._store.put(self._name, msgpack.packb({"lsn": self._lsn, "until_s": time.time() + HOLD_S}))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(BackupError):
                await self._renew()


class BackupSource:
    """A `PageSource` that stays at one LSN."""

    @classmethod
    async def open(cls, store: Store, lsn: int) -> BackupSource:
        """At `lsn`, the end of a flush; what is needed of the backup is held until `close`.

        Raises OutOfRangeError, which names what can be had, BackupError, MalformedError, ConfigurationError.
        """
        hold = Hold(store, lsn)
        await hold.take()
        try:
            manifest = await store.present()
            image = manifest.image_for(lsn)
            index = await read_index(store, image)
            log = await read_log(store, manifest, image.lsn, lsn)
        except BaseException:
            await hold.release()
            raise
        return cls(store, hold, _spec_of(manifest), (lsn, index, log))

    def __init__(self, store: Store, hold: Hold, spec: VolumeSpec, content: tuple[int, Index, LogIndex]) -> None:
        """Not to be called: `open` does."""
        self.read_lsn, self._index, self._log = content
        self.fetched_bytes = self.fetched_blocks = 0
        self._store, self._hold, self._spec = store, hold, spec
        self._blocks: OrderedDict[tuple[int, int], asyncio.Task[list[bytes | None]]] = OrderedDict()

    @property
    def spec(self) -> VolumeSpec:
        """The volume's shape; its copies are in no node's."""
        return self._spec

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges, in the order asked. Raises BackupError, MalformedError, UsageError for another LSN."""
        self._check(lsn)
        async with asyncio.timeout(timeout_s):
            return [await self._run(each) for each in ranges]

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """A table of the caller's own, of what is here already; `timeout_s` is of no account."""
        del timeout_s
        self._check(lsn)
        table = type(self._index.table).unpack(self._index.table.pack())
        self._log.apply_to(table)
        table.lsn = self.read_lsn
        return table

    async def close(self) -> None:
        """Lets go of the backup."""
        for task in self._blocks.values():
            task.cancel()
        await asyncio.gather(*self._blocks.values(), return_exceptions=True)
        await self._hold.release()

    def _check(self, lsn: int | None) -> None:
        if lsn not in (None, self.read_lsn):
            raise UsageError(f"this backup is read as of LSN {self.read_lsn}, not {lsn}")

    async def _run(self, each: PageRange) -> PageRun:
        kinds, pages = bytearray(), []
        for number in range(each.first_page, each.first_page + each.page_count):
            block = await self._block(each.file_id, number // EXTENT_PAGES)
            base = block[number % EXTENT_PAGES]
            page = self._log.page(each.file_id, number, base, self._spec.page_size)
            kinds.append(page is not None)
            if page is not None:
                pages.append(page)
        return PageRun(bytes(kinds), b"".join(pages))

    async def _block(self, file_id: int, extent: int) -> list[bytes | None]:
        where = file_id, extent
        task = self._blocks.get(where)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._blocks[where] = asyncio.create_task(self._fetch(file_id, extent), name="fetch a block")
        self._blocks.move_to_end(where)
        while len(self._blocks) > BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return await asyncio.shield(task)

    async def _fetch(self, file_id: int, extent: int) -> list[bytes | None]:
        place = self._index.places.get((file_id, extent))
        if place is None:
            return [None] * EXTENT_PAGES
        name = self._index.objects[place.number]
        inner = block_name(file_id, extent, lsn_of_object(name))
        data = await self._store.get_part(name, place.at, place.nbytes, inner)
        self.fetched_blocks += 1
        self.fetched_bytes += place.nbytes
        return unpack_block(data, self._spec.page_size)


def _spec_of(manifest: Manifest) -> VolumeSpec:
    subject = manifest.subject
    groups = tuple(GroupPlacement(group, ("backup",)) for group in manifest.groups)
    return VolumeSpec(UUID(manifest.volume_id), subject.page_size, subject.group_bytes, groups)
