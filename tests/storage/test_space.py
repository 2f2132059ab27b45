"""Space: old versions of pages and collected log leave the disk, and what can still be read stays what it was."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shutil
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import UnknownVolumeError
from aurora_ray.log import record as rec
from aurora_ray.storage.disk.effects import tree_bytes
from aurora_ray.storage.disk.keys import IMAGE_HEAD, guarded, page_key
from aurora_ray.storage.disk.rocks import held_open
from aurora_ray.storage.pages.garbage import collect
from aurora_ray.storage.segment import leftovers
from aurora_ray.storage.segment.leftovers import Leftovers, Range
from tests.storage.harness import PAGE_SIZE, ServerHandle, Writer
from tests.storage.test_history import PAGES, Workload, check, sample, write
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.storage.segment.segment import Segment


async def reclaim(server: ServerHandle, writer: Writer, *, compact: bool = False, fold: bool = True) -> None:
    """A turn's last part, as often as there is anything to do."""
    background, segment = server.server.background, server.segment(writer)
    async with segment.background:
        while True:
            background._fold_from_s = 0.0 if fold else math.inf
            before = background._node.counters["folded_bytes"]
            await background.fold_once(segment)
            await background.reclaim_once(segment)
            if background._compaction is not None:
                await background._compaction
            if background._node.counters["folded_bytes"] == before:
                break
        if compact:
            await segment.store.compact_pages(thorough=True)


def versions(segment: Segment, file_id: int, page: int) -> list[tuple[bytes, bytes]]:
    """Stored ones of a page, the oldest first."""
    return list(segment.store.scan("pages", page_key(file_id, page, 0), page_key(file_id, page + 1, 0)))


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_cleared_away_content_at_readable_lsns_equals_a_replay(start, seed: int) -> None:
    server = await start(retention_bytes=6_000, fold_bytes_per_s=1 << 40, idle_s=0.0)
    writer, workload = await Writer().open(server), Workload(seed)
    choose = random.Random(seed)
    for step in range(10):
        await write(server, writer, workload, choose.randint(1, 4))
        if choose.random() < 0.8:
            await server.coalesce(writer)
        if choose.random() < 0.6:
            await server.collect(writer)
        if choose.random() < 0.6:
            await reclaim(server, writer, compact=choose.random() < 0.3)
        if step in (3, 7):
            await server.restart()
        floor_lsn = server.segment(writer).meta.floor_lsn
        await check(server, writer, workload, sample(workload, writer, floor_lsn, 2))
    segment = server.segment(writer)
    await server.coalesce(writer)
    await raise_floor(server, writer)
    await reclaim(server, writer, compact=True)
    assert segment.meta.floor_lsn == writer.lsn
    await check(server, writer, workload, [writer.lsn])
    for file_id in workload.seen:
        for page in range(PAGES):
            stored = versions(segment, file_id, page)
            assert len(stored) <= 2, "an image, and a small delta perhaps"
            assert len(stored) < 2 or len(stored[1][1]) < PAGE_SIZE / 8
    assert segment.leftovers.empty
    await server.restart()
    assert server.segment(writer).leftovers.empty, "that all is folded is remembered"
    await check(server, writer, workload, [writer.lsn])


async def raise_floor(server: ServerHandle, writer: Writer) -> None:
    """To the end of the last layer."""
    segment = server.segment(writer)
    async with segment.background:
        await collect(segment, segment.meta.coalesced_lsn)


def disk_bytes(segment: Segment) -> int:
    return tree_bytes(segment.store.path)


async def test_pages_written_at_random_take_less_than_thrice_their_size_and_a_fifth_more_when_cold(start) -> None:
    server = await start(retention_bytes=0, retention_s=0.0, fold_bytes_per_s=1 << 40)
    writer, choose, pages = await Writer().open(server), random.Random(1), 4000
    segment = server.segment(writer)
    size = pages * PAGE_SIZE
    taken = []
    for layer in range(16):
        if layer < 2:
            records = [rec.page_full(1, page, choose.randbytes(1000)) for page in range(layer, pages, 2)]
        else:
            written = choose.sample(range(pages), 1500)
            records = [rec.page_delta(1, page, [(choose.randrange(700), choose.randbytes(250))]) for page in written]
        await server.send(writer.flush(*records))
        await server.send([writer.heartbeat()])
        segment.last_append_s -= 1.0  # it need not mind commits
        await server.coalesce(writer)
        await server.collect(writer)
        await reclaim(server, writer, fold=False)  # with a retention, nothing of it would be cold
        taken.append(segment.store.page_bytes / size)
        writer.records.clear()
    assert max(taken[2:]) < 2.7, taken
    server.server.background._config = replace(server.config, idle_s=0.0)
    await reclaim(server, writer)
    await reclaim(server, writer)
    assert segment.store.page_bytes < 1.2 * size
    assert tree_bytes(segment.store.path / "pages") < 1.2 * size + (1 << 20)


async def test_a_segment_that_was_busy_once_gives_log_and_memory_back(start) -> None:
    server = await start(write_buffer_bytes=4 << 20, retention_s=0.0, retention_bytes=0)
    writer = await Writer().open(server)
    segment, noise = server.segment(writer), random.Random(1)
    for _ in range(30):  # 30 MB of log, of 1 MB of pages
        await server.send(writer.flush(*(rec.page_full(1, page, noise.randbytes(1000)) for page in range(1000))))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await server.collect(writer)
    assert disk_bytes(segment) > 16 << 20
    server.server.background._config = replace(server.config, idle_s=0.0)
    segment.last_append_s -= 10
    await reclaim(server, writer)
    assert disk_bytes(segment) < 4 << 20
    assert segment.store.buffered_bytes < 1 << 20
    await server.send(writer.flush(rec.page_full(1, 7, b"and on")))
    assert await server.pages(writer, writer.lsn, 1, count=10) == [writer.page_at(writer.lsn, 1, n) for n in range(10)]
    await server.restart()
    assert await server.pages(writer, writer.lsn, 1, count=10) == [writer.page_at(writer.lsn, 1, n) for n in range(10)]


async def test_memory_goes_back_once_when_commits_pause_and_never_among_them(start) -> None:
    """Of ten segments that had been busy a node kept 130 MB, of which it used 17."""
    server = await start(background_interval_s=1e6, idle_s=0.0)
    writer, background = await Writer().open(server), server.server.background
    segment, counters = server.segment(writer), server.server.node.counters

    async def looks(now_s: float) -> int:
        await background._look_after_memory(now_s)
        return int(counters["memory_trims"])

    assert await looks(0.0) == 0, "nothing was freed"
    await server.send(writer.flush(rec.page_full(1, 7, b"content")))
    await reclaim(server, writer)
    assert await looks(100.0) == 0, "commits come in"
    await poll_until(lambda: not server.server.node.openings.go_on, what="its opening is over")
    segment.last_append_s -= 10
    await reclaim(server, writer)
    assert [await looks(101.0), await looks(200.0)] == [1, 1]
    await server.send(writer.flush(rec.page_full(1, 8, b"content")))
    segment.last_append_s -= 10
    await reclaim(server, writer)
    assert [await looks(102.0), await looks(200.0)] == [1, 2], "not again and again"


async def test_log_that_is_being_read_is_not_reopened_under_the_reader(start) -> None:
    server = await start()
    writer = await Writer().open(server)
    for number in range(3):
        await server.send(writer.flush(rec.page_delta(1, 0, [(number, b"x")])))
    store = server.segment(writer).store
    batches = store.log_batches(0, writer.lsn)
    next(batches)
    store.reopen_log()
    assert len(list(batches)) == 2
    del batches
    store.reopen_log()
    assert len(list(store.log_batches(0, writer.lsn))) == 3
    await server.send(writer.flush(rec.page_delta(1, 0, [(4, b"x")])))


async def test_a_segment_can_be_dropped_in_the_middle_of_a_compaction(start) -> None:
    server = await start(write_buffer_bytes=4 << 20)
    writer = await Writer().open(server)
    store, noise = server.segment(writer).store, random.Random(1)
    for run in range(6):
        changes = store.page_batch()
        for page in range(3000):
            key = page_key(1, page, run + 1)
            changes.put("pages", key, guarded(key, IMAGE_HEAD + noise.randbytes(900)))
        await store.write_pages(changes)
        await store.flush_pages()
    compaction = asyncio.create_task(store.compact_pages(thorough=True))
    await asyncio.sleep(0)
    server.server.node.drop_volume(writer.volume, "for this test")
    with contextlib.suppress(UnknownVolumeError):
        await compaction
    assert not held_open(store.path)


def test_leftovers_forget_what_is_cleared_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Leftovers(all_folded=True)
    assert left.empty
    left.note_layer(10, [(1, array("I", [5, 6]))], [Range(1, 0)])
    left.note_layer(20, [(1, array("I", [5]))], [Range(1, 0), Range(2, 0)])
    assert list(left.superseding(15)) == [(1, 5, 10), (1, 6, 10)]
    assert left.cold(15) is None, "both ranges were written above"
    assert list(left.superseding(20)) == [(1, 5, 20)]
    assert left.cold(20) == Range(1, 0)
    left.forget(Range(1, 0))
    left.note_range(Range(2, 0), 30)
    assert left.cold(20) is None
    assert left.cold(30) == Range(2, 0)
    left.forget(Range(2, 0))
    assert left.empty
    monkeypatch.setattr(leftovers, "RANGES_MAX", 2)
    for number in range(3):
        left.note_range(Range(1, number), 40)
    assert (left.cold(40), left.all_known) == (Range(1, 1), False), "what was forgotten is looked for"
    monkeypatch.setattr(leftovers, "IMAGES_MAX", 2)
    for lsn in (50, 60):
        left.note_layer(lsn, [(1, array("I", [1, 2]))], [])
    assert [lsn for _, _, lsn in left.superseding(100)] == [60, 60]


@pytest.mark.parametrize("seed", range(2))
async def test_a_node_killed_while_versions_are_cleared_away_has_the_same_content(
    start, tmp_path: Path, seed: int
) -> None:
    server = await start(retention_bytes=6_000, fold_bytes_per_s=1 << 40)
    writer, workload = await Writer().open(server), Workload(seed)
    background, segment = server.server.background, server.segment(writer)
    for database in (segment.store._log, segment.store._pages):
        for family in database.families.values():  # no merge shall change files while they are copied
            family.set_options({"disable_auto_compactions": "true"})
    for step in range(5):
        await write(server, writer, workload, 3)
        await server.coalesce(writer)
        await server.collect(writer)
        async with segment.background:
            await background.fold_once(segment)
            if step == 2:
                await segment.store.flush_pages()
            segment.leftovers.all_known, background._fold_from_s = False, 0.0
        killed = tmp_path / f"killed-{step}"
        shutil.copytree(server.config.data_dir, killed)  # what a kill leaves; nothing of it is in the files yet
        again = await ServerHandle(replace(server.config, data_dir=killed)).start()
        try:
            floor_lsn = again.segment(writer).meta.floor_lsn
            await check(again, writer, workload, sample(workload, writer, floor_lsn, 2))
        finally:
            await again.stop()
