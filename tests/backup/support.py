"""A volume on six real storage nodes, its backup at work, and what a restore of it gives."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.manifest import Subject
from aurora_ray.backup.source import BackupSource
from aurora_ray.backup.store import Store
from aurora_ray.backup.stream import BackupStream, Rules
from aurora_ray.log.filetable import FileKind
from aurora_ray.log.sizes import EXTENT_PAGES, NO_GROUP
from aurora_ray.volume.read.pages import PageRange
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import PAGE, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.backup.frame import Key
    from aurora_ray.volume.read.source import PageSource

QUICK = Rules(chunk_bytes=4096, chunk_s=0.02, image_log_bytes=(100_000, 200_000), collect_every_s=0.2, chunks_max=8)
SUBJECT = Subject("demo", "postgres", "18", PAGE, 10 << 30)
WEEK_S = 7 * 86400

Content = tuple[bytes, dict[tuple[int, int], bytes]]


def store_of(cluster: Cluster, url: str, key: Key | None = None) -> Store:
    return Store(Bucket.at(url), f"fleet/{cluster.spec.volume_id}", key)


@asynccontextmanager
async def backing_up(
    cluster: Cluster, store: Store, *, rules: Rules = QUICK, retention_s: int = WEEK_S
) -> AsyncIterator[BackupStream]:
    """A stream at work; ended in the end as by a kill, however it fared."""
    stream = BackupStream(cluster.spec, tuple(cluster.addresses), store, SUBJECT, retention_s, rules=rules)
    running_it = asyncio.create_task(stream.run(), name="stream")
    try:
        yield stream
        if running_it.done():
            running_it.result()
    finally:
        running_it.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await running_it


async def backed_up(stream: BackupStream, lsn: int) -> None:
    """Until all up to `lsn` can be restored."""

    def done() -> bool:
        status = stream.status()
        return status.lsn >= lsn and 0 < status.restorable_lsn <= lsn

    await poll_until(done, scaled(30), what=f"LSN {lsn} is backed up: {stream.status()}")


async def content_in(source: PageSource) -> Content:
    """The file table, and all pages that were ever written."""
    table = await source.read_file_table()
    ranges = [
        PageRange(group, entry.file_id, number * EXTENT_PAGES, EXTENT_PAGES)
        for entry in table.entries()
        if entry.kind is FileKind.FILE
        for number, group in enumerate(entry.extents)
        if group != NO_GROUP
    ]
    pages: dict[tuple[int, int], bytes] = {}
    for wanted, run in zip(ranges, await source.read_pages(ranges), strict=True):
        at = 0
        for number, kind in enumerate(run.kinds):
            if kind:
                pages[wanted.file_id, wanted.first_page + number] = run.pages[at : at + PAGE]
                at += PAGE
    return table.pack(), pages


async def restored(store: Store, lsn: int) -> Content:
    """What a restore mounts."""
    source = await BackupSource.open(store, lsn)
    try:
        return await content_in(source)
    finally:
        await source.close()


def faster(**changes: object) -> Rules:
    return replace(QUICK, **changes)  # type: ignore[arg-type]
