"""Garbage in the files of page images: collected when there is enough of it, and images move for nothing else."""

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from aurora_ray.log import record as rec
from aurora_ray.storage.disk import store as store_module
from aurora_ray.storage.disk.store import SegmentStore
from tests.storage.harness import Writer
from tests.support.polling import poll_until

IMAGE_BYTES = 8000
PAGES = 500


class Images:
    """Writes random images, which do not compress, as layers do."""

    def __init__(self, store: SegmentStore) -> None:
        self._store, self._choose, self._layer = store, random.Random(1), 0
        self.newest: dict[bytes, bytes] = {}

    async def layer(self, pages: Iterable[int]) -> None:
        """An image of each."""
        batch = self._store.page_batch()
        for page in pages:
            key = b"%08d" % page
            self.newest[key] = self._choose.randbytes(IMAGE_BYTES)
            batch.put("pages", key, self.newest[key])
        batch.write_without_log()
        self._layer += 1
        await self._store.flush_pages(self._layer)
        await poll_until(self._merged, 60, interval_s=0.001, what="RocksDB has merged what it wants to merge")
        self._store.mind_garbage()

    def _merged(self) -> bool:
        pages = self._store._pages.families["pages"]
        busy = ("rocksdb.compaction-pending", "rocksdb.num-running-compactions")
        return not any(pages.property_int_value(name) for name in busy)


@pytest.fixture
def store(tmp_path: Path):
    store = SegmentStore(tmp_path / "0", write_buffer_bytes=8 << 20)
    yield store
    store.close()


def image_files(store: SegmentStore) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (store.path / "pages").glob("*.blob")}


@pytest.mark.long
async def test_pages_that_change_again_and_again_do_not_fill_the_disk(store: SegmentStore) -> None:
    images = Images(store)
    choose = random.Random(2)
    await images.layer(range(PAGES))
    for _ in range(150):  # pages that change seldom keep files alive which hold little else
        await images.layer(int(PAGES * choose.random() ** 4) for _ in range(60))
    alive = PAGES * IMAGE_BYTES
    assert sum(image_files(store).values()) < 3.5 * alive
    assert dict(store.scan("pages", b"")) == images.newest


async def test_images_of_pages_that_nobody_changes_stay_where_they_are(store: SegmentStore) -> None:
    images = Images(store)
    for first in range(0, PAGES, 50):
        await images.layer(range(first, first + 50))
    loaded = set(image_files(store))
    assert loaded
    for number in range(60):  # merges come by, over keys of all pages, for the first page and for the last
        await images.layer(range(number % 2 * (PAGES - 1), number % 2 * (PAGES - 1) + 1))
    assert loaded <= set(image_files(store))
    assert dict(store.scan("pages", b"")) == images.newest


async def test_layers_wait_for_merges_that_cannot_keep_up(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their CPU is what nobody else wants: without end, layers would put images upon images."""
    monkeypatch.setattr(store_module, "_BEHIND_BYTES", 2 << 20)
    monkeypatch.setattr(store_module, "_GROWN_BYTES", 1 << 20)
    server = await start(layer_bytes=10_000, retention_s=0.0, retention_bytes=0)
    writer, noise = await Writer().open(server), random.Random(1)
    segment, background = server.segment(writer), server.server.background
    volume = server.server.node.volumes[writer.volume]
    turn, compact = asyncio.Event(), segment.store.compact_pages

    async def starved(**options: bool) -> None:
        await turn.wait()
        await compact(**options)

    monkeypatch.setattr(segment.store, "compact_pages", starved)

    async def rewrite() -> int:
        """Every page, again and again; how many layers were made of it."""
        before = server.server.node.counters["layers"]
        for _ in range(20):
            await server.send(writer.flush(*(rec.page_full(1, page, noise.randbytes(1000)) for page in range(400))))
            await server.send([writer.heartbeat()])
            segment.last_append_s -= 10.0  # it need not mind commits
            await background._tend(volume, segment)
            writer.records.clear()
        return server.server.node.counters["layers"] - before

    await rewrite()
    held = segment.store.page_bytes
    assert 2 << 20 < held < 4 << 20
    assert await rewrite() == 0
    assert segment.store.page_bytes == held
    turn.set()
    assert background._compaction is not None
    await background._compaction
    assert await rewrite() > 0
