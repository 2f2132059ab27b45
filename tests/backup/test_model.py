"""Random writes, truncations, images, ends of retention, collections, deaths: what can be restored is the model's.

The volume is a model here (its pages are put together from all of its log), the rest is real: objects, manifests,
images out of images, and what a restore reads.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from aurora_ray.backup import chunks
from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.catalogue import Entry, find
from aurora_ray.backup.chunks import LogIndex
from aurora_ray.backup.collect import collect
from aurora_ray.backup.frame import Key
from aurora_ray.backup.images import Imaging, read_index, read_log
from aurora_ray.backup.manifest import Chunk, Manifest, span_name
from aurora_ray.backup.source import BackupSource
from aurora_ray.backup.store import Store, claim, new_owner
from aurora_ray.log import record
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.flush import Flush
from aurora_ray.log.record import Record, RecordBuilder
from aurora_ray.log.sizes import EXTENT_PAGES
from aurora_ray.volume.read.pages import PageRun
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
from tests.backup.support import SUBJECT, content_in
from tests.volume.cluster import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.volume.read.pages import PageRange

VOLUME = UUID(int=7)
GROUPS = (0, 1)
TICK_US = 1000  # between two flushes
RETENTION_US = 60 * TICK_US


class Model:
    """A `PageSource` of a volume as of an LSN, out of all of its log."""

    spec = VolumeSpec(VOLUME, PAGE, 10 << 30, tuple(GroupPlacement(group, ("x",)) for group in GROUPS))

    def __init__(self, flushes: Sequence[Flush], lsn: int) -> None:
        self.read_lsn, self._log = lsn, LogIndex()
        for flush in flushes:
            if flush.end <= lsn:
                self._log.add(flush)

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = 0) -> FileTable:
        table = FileTable()
        self._log.apply_to(table)
        table.lsn = self.read_lsn
        return table

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = 0
    ) -> list[PageRun]:
        runs = []
        for each in ranges:
            numbers = range(each.first_page, each.first_page + each.page_count)
            pages = [self._log.page(each.file_id, number, None, PAGE) for number in numbers]
            runs.append(PageRun(bytes(page is not None for page in pages), b"".join(page for page in pages if page)))
        return runs


class World:
    """A volume that is written to, and whoever backs it up."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.flushes: list[Flush] = []
        self._files: dict[int, int] = {}  # id -> group
        self._waiting: list[Flush] = []
        self.store = Store(Bucket(MemoryStore(), None, "memory"), "fleet/volume", Key(bytes(32)))
        self.now: Manifest
        self.owner = ""

    async def begin(self) -> None:
        """Another process goes on; what the one before had not named is forgotten."""
        self.owner = new_owner()
        begun = Manifest(1, self.owner, str(VOLUME), SUBJECT, 1, groups=GROUPS, begun_s=1.0)
        self.now = await claim(self.store, begun)
        self._waiting = [flush for flush in self.flushes if flush.end > self.now.end_lsn]

    async def _put(self, wanted: Manifest) -> None:
        following = wanted.next(self.owner)
        await self.store.put_manifest(following)
        self.now = following

    def write(self) -> None:
        start = self.flushes[-1].end if self.flushes else 0
        builder = RecordBuilder(start)
        for each in self._records():
            builder.add(each)
        parts = builder.take()
        batches = {
            part.group: encode_batch(
                group=part.group,
                volume=VOLUME.bytes,
                epoch=1,
                prev_lsn=0,
                flush_start=start,
                flush_end=builder.end_lsn,
                time_us=self.now_us,
                vdl=0,
                record_count=part.record_count,
                groups=[each.group for each in parts],
                records=part.payload,
            )
            for part in parts
        }
        self.flushes.append(Flush(start, builder.end_lsn, batches))
        self._waiting.append(self.flushes[-1])

    @property
    def now_us(self) -> int:
        return (len(self.flushes) + 1) * TICK_US

    def _records(self) -> list[Record]:
        choose = self.choose
        if len(self._files) < 3 or choose.random() < 0.1:
            file_id = len(self.flushes) + 1
            group = self._files[file_id] = choose.choice(GROUPS)
            extents = [record.extent(file_id, number, group) for number in range(2)]
            return [
                record.create(file_id, b"file-%d" % file_id),
                *extents,
                record.size(file_id, 2 * EXTENT_PAGES * PAGE),
            ]
        file_id = choose.choice(sorted(self._files))
        group = self._files[file_id]
        what = choose.random()
        if what < 0.05:
            del self._files[file_id]
            name = b"file-%d" % file_id
            return [record.unlink(file_id, name), record.drop(file_id), record.drop(file_id, group=1)]
        if what < 0.2:
            cut = choose.randrange(2 * EXTENT_PAGES * PAGE)
            return [record.truncate(file_id, cut), record.truncate(file_id, cut, group=1)]
        page = choose.choice((0, 1, 2, EXTENT_PAGES - 1, EXTENT_PAGES))
        if what < 0.5:
            return [record.page_full(file_id, page, choose.randbytes(50), group=group)]
        ranges = [(choose.randrange(PAGE - 9), choose.randbytes(9))]
        return [record.page_delta(file_id, page, ranges, group=group)]

    async def put_log(self) -> None:
        some, self._waiting = self._waiting, []
        if some:
            start, end = some[0].start, some[-1].end
            name = span_name("log", start, end, self.owner)
            nbytes = await self.store.put(name, chunks.pack(some))
            if self.choose.random() < 0.1:  # it dies before the manifest
                await self.begin()
                return
            times = [chunks.stamp(flush)[1] for flush in some]
            await self._put(self.now.with_chunk(Chunk(start, end, 1, min(times), max(times), nbytes, name)))

    async def make_image(self) -> None:
        lsn, before, log = self.now.end_lsn, None, None
        if not lsn:
            return
        if self.now.images:
            last = self.now.images[-1]
            before, log = await read_index(self.store, last), await read_log(self.store, self.now, last.lsn, lsn)
        time_us = next(chunks.stamp(flush)[1] for flush in self.flushes if flush.end == lsn)
        image = await Imaging(self.store, self.owner, Model(self.flushes, lsn), lsn, before).make(log, (1, time_us))
        if self.choose.random() < 0.1:
            await self.begin()
            return
        await self._put(self.now.with_image(image))

    async def expire(self) -> None:
        await self._put(self.now.expired(self.now_us - RETENTION_US))
        await collect(self.store, self.now)

    async def check(self) -> None:
        """A moment of retention that the backup says it has."""
        for first, last in self.now.ranges():
            ends = [flush.end for flush in self.flushes if first <= flush.end <= last]
            lsn = self.choose.choice(ends)
            source = await BackupSource.open(self.store, lsn)
            try:
                assert await content_in(source) == await content_in(Model(self.flushes, lsn))
            finally:
                await source.close()
            flush = next(each for each in self.flushes if each.end == lsn)
            found = await find([Entry(self.store, self.now)], "", chunks.stamp(flush)[1], None, None)
            assert found.lsn == lsn
        images = [image.time_us for image in self.now.images]
        if images and min(images) <= self.now_us - RETENTION_US:
            oldest = max(time for time in images if time <= self.now_us - RETENTION_US)
            assert self.now.ranges()[0][0] <= next(i.lsn for i in self.now.images if i.time_us == oldest)


async def run(choose: random.Random) -> None:
    world = World(choose)
    await world.begin()
    for _ in range(60):
        for _ in range(choose.randrange(6)):
            world.write()
        step = choose.random()
        if step < 0.5:
            await world.put_log()
        elif step < 0.7:
            await world.make_image()
        elif step < 0.8:
            await world.expire()
        elif step < 0.85:
            await world.begin()
        else:
            await world.check()
    await world.put_log()
    await world.make_image()
    await world.expire()
    await world.check()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_what_is_restored_is_what_was(seed: int) -> None:
    asyncio.run(run(random.Random(seed)))
