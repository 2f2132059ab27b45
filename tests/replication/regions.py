"""Two regions in one process: six real storage nodes each, a volume in one and its copy in the other."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aurora_ray.log import record
from aurora_ray.log.batch import inflate, payload
from aurora_ray.log.filetable import FileKind
from aurora_ray.log.record import iter_records
from aurora_ray.log.sizes import EXTENT_PAGES, NO_GROUP
from aurora_ray.replication.replicator import Order, Replicator
from aurora_ray.replication.sides import RegionalVolume
from aurora_ray.replication.succession import Succession
from aurora_ray.rpc.link import HOME
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.spec import GroupPlacement
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import PAGE, Cluster, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aurora_ray.log.flush import Flush
    from aurora_ray.log.record import Record
    from aurora_ray.volume.spec import VolumeSpec
    from aurora_ray.volume.write.volume import Volume


class Copy:
    """A copy and what its region has noted of it: what `Notes` asks for."""

    def __init__(self, cluster: Cluster, held: Succession | None = None) -> None:
        self.cluster = cluster
        self.held = held or Succession()
        self.first_lsn = 0
        self.spec_count = 0
        self.abroad = HOME  # how it is reached from where it is copied

    async def place(self, group: int) -> GroupPlacement:
        return GroupPlacement(group, self.cluster.spec.placements[0].node_ids)

    async def note_spec(self, spec: VolumeSpec) -> None:
        self.cluster.spec = spec
        self.spec_count += 1

    async def note_succession(self, succession: Succession) -> None:
        self.held = succession

    @property
    def side(self) -> RegionalVolume:
        cluster = self.cluster
        return RegionalVolume(cluster.spec, tuple(cluster.addresses), self.first_lsn, self.abroad, az="a")


@asynccontextmanager
async def two_regions(directory: Path, **options: Any) -> AsyncIterator[tuple[Copy, Copy]]:
    """A primary and a copy that holds nothing yet."""
    for name in ("primary", "copy"):
        (directory / name).mkdir()
    async with running(directory / "primary", **options) as primary, running(directory / "copy", **options) as copy:
        yield Copy(primary), Copy(copy)


@asynccontextmanager
async def replicating(source: Copy, target: Copy) -> AsyncIterator[Replicator]:
    """A replicator at work; ended in the end, however it fared."""
    replicator = Replicator(Order(source.side, target.side, source.held, target.held), target)
    running_it = asyncio.create_task(replicator.run(), name="replicator")
    try:
        yield replicator
        if running_it.done():
            running_it.result()
    finally:
        running_it.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await running_it


async def ended(source: Copy, target: Copy) -> BaseException:
    """How a replicator ends that cannot go on."""
    replicator = Replicator(Order(source.side, target.side, source.held, target.held), target)
    try:
        async with asyncio.timeout(scaled(30)):
            await replicator.run()
    except TimeoutError:
        raise
    except Exception as error:
        return error
    raise AssertionError("it ended without an error")


async def caught_up(replicator: Replicator, lsn: int) -> None:
    """Until the copy is durable up to `lsn`."""
    await poll_until(lambda: replicator.status().lsn >= lsn, scaled(20), what=f"the copy is durable up to {lsn}")


def said(flush: Flush) -> tuple[int, int, dict[int, tuple[Record, ...]]]:
    """What a flush says, whoever says it: its place and the records of each group."""
    records = {group: tuple(iter_records(payload(inflate(batch)))) for group, batch in flush.batches.items()}
    return flush.start, flush.end, records


async def log_of(copy: Copy, after_lsn: int, up_to_lsn: int) -> list[tuple[int, int, dict[int, tuple[Record, ...]]]]:
    """All that a copy's log says in between."""
    found = []
    async with Follower.open(copy.cluster.spec, copy.cluster.addresses, after_lsn=after_lsn) as follower:
        async with asyncio.timeout(scaled(20)):
            while follower.lsn < up_to_lsn:
                found.append(said(await anext(follower)))
    return found


async def content_of(copy: Copy, lsn: int) -> tuple[bytes, dict[tuple[int, int], bytes]]:
    """The file table and all pages that were ever written, as of an LSN."""
    reader = await VolumeReader.open(copy.cluster.spec, copy.cluster.addresses, timeout_s=scaled(20))
    try:
        async with asyncio.timeout(scaled(20)):
            while reader.read_lsn < lsn:  # nodes hear of the end a moment later
                await reader.close()
                reader = await VolumeReader.open(copy.cluster.spec, copy.cluster.addresses, timeout_s=scaled(20))
        table = await reader.read_file_table(lsn)
        ranges = [
            PageRange(group, entry.file_id, number * EXTENT_PAGES, EXTENT_PAGES)
            for entry in table.entries()
            if entry.kind is FileKind.FILE
            for number, group in enumerate(entry.extents)
            if group != NO_GROUP
        ]
        pages: dict[tuple[int, int], bytes] = {}
        for wanted, run in zip(ranges, await reader.read_pages(ranges, lsn), strict=True):
            at = 0
            for number, kind in enumerate(run.kinds):
                if kind:
                    pages[wanted.file_id, wanted.first_page + number] = run.pages[at : at + PAGE]
                    at += PAGE
        return table.pack(), pages
    finally:
        await reader.close()


class Scribe:
    """Writes a small, lively tree: files of all kinds of pages that come, grow, are cut and go."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self._volume, self._random = volume, random.Random(seed)
        self._files: dict[int, int] = {}  # id -> group
        self._next_id = 1
        self.groups = [0]
        self._begun = volume.tail_lsn > 0

    async def write(self, flushes: int) -> int:
        """So many flushes, durable; the LSN."""
        lsn = 0
        for _ in range(flushes):
            lsn = await self._volume.append([*self._tree(), *self._some()], scaled(30))
        return lsn

    def _tree(self) -> list[Record]:
        if self._begun:
            return []
        self._begun = True
        return [record.mkdir(b"base"), record.symlink(b"base", b"link"), record.chmod(b"base", 0o750)]

    def _some(self) -> list[Record]:
        choose = self._random
        if len(self._files) < 3 or choose.random() < 0.1:
            return self._create()
        file_id = choose.choice(sorted(self._files))
        if choose.random() < 0.05:
            del self._files[file_id]
            copies = [record.drop(file_id, group=group) for group in self.groups if group]
            return [record.unlink(file_id, b"base/%d" % file_id), record.drop(file_id), *copies]
        page = choose.randrange(EXTENT_PAGES)
        offset = choose.randrange(PAGE - 100)
        ranges = [(offset, choose.randbytes(choose.randrange(1, 100)))]
        made = [record.page_delta(file_id, page, ranges, group=self._files[file_id])]
        if choose.random() < 0.3:
            made.append(
                record.page_full(file_id, choose.randrange(8), choose.randbytes(40), group=self._files[file_id])
            )
        return [record.size(file_id, (page + 1) * PAGE), *made]

    def _create(self) -> list[Record]:
        file_id, group = self._next_id, self._random.choice(self.groups)
        self._next_id += 1
        self._files[file_id] = group
        return [
            record.create(file_id, b"base/%d" % file_id),
            record.extent(file_id, 0, group),
            record.size(file_id, 8 * PAGE),
            record.page_full(file_id, 0, b"%d" % file_id * 1000, group=group),
        ]
