"""When a node coalesces, and whom that keeps waiting."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING

from aurora_ray.log import record as rec
from aurora_ray.storage.pacing import OPENING_REST, OPENING_S
from aurora_ray.storage.segment import layers
from aurora_ray.storage.server import background
from tests.storage.harness import ServerHandle, Writer, introduce
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_nodes_take_turns_while_commits_come_in_and_none_waits_in_a_pause(start):
    servers = [await start(f"n{i}", layer_bytes=3000) for i in range(3)]
    writer = await Writer().open(*servers)
    await introduce(*servers)
    batches = writer.flush(rec.page_delta(1, 0, [(0, b"some redo")]))
    batches += writer.flush(rec.page_delta(1, 0, [(0, b"and the VDL of the first")]), vdl=writer.lsn)
    due_from = []
    for server in servers:
        await server.send(batches)
        server.server.node.openings._since_s = 0.0  # the writer opened long ago
        background, segment = server.server.background, server.segment(writer)
        async with segment.background:  # so that the background itself does nothing
            due = []
            for nbytes in range(2000, 6000, 1000):
                segment.tail_bytes = nbytes
                segment.last_append_s = time.monotonic()
                due.append(background._layer_due(segment))
            due_from.append(range(2000, 6000, 1000)[due.index(True)])
            segment.tail_bytes, segment.last_append_s = 3000, time.monotonic() - 1
            assert background._layer_due(segment), "in a pause"
            segment.tail_bytes = 2000
            assert not background._layer_due(segment), "less than a layer"
    assert due_from == [3000, 4000, 5000]


async def test_nothing_is_begun_and_little_is_done_while_an_engine_starts(start):
    servers = [await start(f"n{i}", layer_bytes=3000) for i in range(2)]
    writer = await Writer().open(*servers)
    await introduce(*servers)
    server = servers[1]
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"some redo")])))
    await server.send([writer.heartbeat()])
    segment, openings = server.segment(writer), server.server.node.openings

    def rests() -> int:
        segment.last_append_s = 0.0
        return segment.rests()

    openings._since_s = 0.0
    await server.pages(writer, writer.lsn, 1, count=1)
    assert rests() == 0, "pages are read all the time"
    for begins in (server.seal(writer, 5), server.table(writer, writer.lsn)):
        openings._since_s = 0.0
        await begins
        assert rests() == OPENING_REST
    openings._read_s = 0.0
    assert rests() == 0, "it reads no more"
    await server.pages(writer, writer.lsn, 1, count=1)
    assert rests() == OPENING_REST
    segment.tail_bytes = 3000
    assert not server.server.background._layer_due(segment), "the other node's turn comes first"
    segment.awaited += 1
    assert segment.merging_rest_s(0.001) == 0
    segment.awaited -= 1
    openings._since_s -= OPENING_S
    assert rests() == 0, "not for ever"
    assert server.server.background._layer_due(segment)


async def test_another_writer_has_the_tail_looked_through_only_where_something_may_be_annulled(start, monkeypatch):
    server = await start()
    writer = await Writer().open(server)
    for number in range(5):
        await server.send(writer.flush(rec.page_delta(1, number, [(0, b"redo")])))
    await server.send([writer.heartbeat()])
    durable_lsn = writer.lsn
    await server.send(writer.flush(rec.page_delta(1, 7, [(0, b"not known to be durable")]), vdl=durable_lsn))
    segment, looked_from = server.segment(writer), []
    headers = segment._headers
    monkeypatch.setattr(segment, "_headers", lambda lsn: (looked_from.append(lsn), headers(lsn))[1])
    await server.seal(writer, 2)
    looked_from.clear()
    await server.truncate(writer, [(1, 0), (2, writer.lsn)])
    assert looked_from == [durable_lsn]

    def chain() -> tuple[object, ...]:
        return segment.scl, segment.highest_lsn, segment.tail_bytes, segment.vdl, dict(segment._pending)

    kept = chain()
    segment.rescan()
    assert chain() == kept
    assert kept[0] == writer.lsn
    await server.seal(writer, 3)
    await server.truncate(writer, [(1, 0), (2, writer.lsn), (3, durable_lsn)])
    assert segment.highest_lsn == durable_lsn, "what a later recovery annuls goes"


async def test_a_segment_whose_redo_never_ends_keeps_no_other_one_waiting(start) -> None:
    server = await start(layer_bytes=1000, background_interval_s=0.001, retention_s=0.0, retention_bytes=0)
    busy, other = [await Writer().open(server, groups=(0,)) for _ in range(2)]
    await server.send(other.flush(rec.page_delta(1, 0, [(0, b"x" * 900)]), rec.page_delta(1, 1, [(0, b"y" * 900)])))
    await server.send([other.heartbeat()])
    segments = server.segment(busy), server.segment(other)

    async def until(done: Callable[[], bool]) -> None:
        for number in range(400):
            records = [rec.page_delta(1, page, [(number % 100, b"z" * 900)]) for page in range(4)]
            await server.send(busy.flush(*records, vdl=busy.lsn))  # more than a layer each time
            if done():
                return
        raise AssertionError(f"{[segment.meta for segment in segments]}")

    await until(lambda: segments[1].meta.floor_lsn == other.lsn)
    collected_lsn = segments[0].meta.floor_lsn
    await until(lambda: segments[0].meta.floor_lsn > collected_lsn)  # and its own garbage goes meanwhile


async def test_a_segment_that_waits_for_its_peers_keeps_no_other_one_waiting(start) -> None:
    server = await start(layer_bytes=1000, background_interval_s=0.001)
    held, other = [await Writer().open(server) for _ in range(2)]
    async with server.segment(held).background:  # as a repair does
        for writer in (held, other):
            await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"x" * 1000)])))
            await server.send([writer.heartbeat()])
        await poll_until(lambda: server.segment(other).meta.layers != [], what="the other one is merged")
        assert not server.segment(held).meta.layers


async def test_thousands_of_dropped_files_do_not_hold_up_the_event_loop(start) -> None:
    server = await start(retention_s=0.0, retention_bytes=0)
    writer, count = await Writer().open(server), 6000
    segment = server.segment(writer)
    for first in range(0, count, 2000):
        files = range(first, first + 2000)
        records = [(rec.create(10 + n, b"f%d" % n), rec.page_full(10 + n, 0, b"page")) for n in files]
        await server.send(writer.flush(*(record for pair in records for record in pair)))
    longest = await _longest_step(server, writer)
    for first in range(0, count, 2000):
        await server.send(writer.flush(*(rec.drop(10 + number) for number in range(first, first + 2000))))
    longest = max(longest, await _longest_step(server, writer))
    assert not segment.cuts, "they are collected"
    await server.send(writer.flush(rec.mkdir(b"d")))
    longest = max(longest, await _longest_step(server, writer))
    assert not list(segment.store.scan("default", b"cut", b"cuu"))
    assert longest < 0.03


async def _longest_step(server: ServerHandle, writer: Writer) -> float:
    """CPU seconds of the longest step of the event loop while a layer is made and garbage collected."""
    await server.send([writer.heartbeat()])
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            longest, last_s = max(longest, now_s - last_s), now_s

    gc.disable()  # it is rare in a node's process, and here it looks at what all the tests have left
    watcher = asyncio.create_task(watch())
    await server.coalesce(writer)
    await server.collect(writer)
    watcher.cancel()
    gc.enable()
    return longest


async def test_what_is_indexed_of_the_tail_outlives_a_layer(start, monkeypatch) -> None:
    """Where log comes in as fast as it can be indexed, an index begun anew with each layer would never be whole."""
    monkeypatch.setattr(layers, "TAIL_PART_BYTES", 3000)
    server = await start(layer_bytes=4000, idle_s=3600.0, background_interval_s=3600.0)
    writer = await Writer().open(server)
    lsns = []
    for number in range(30):
        await server.send(writer.flush(rec.page_delta(1, number % 7, [(number, b"x" * 900)]), vdl=writer.lsn))
        lsns.append(writer.lsn)
    await server.send([writer.heartbeat()])
    segment = server.segment(writer)
    whole = await server.pages(writer, writer.lsn, 1, count=7)
    indexed = segment.layers.indexed_bytes
    assert indexed >= 30 * 900
    while segment.tail_bytes >= 4000:
        assert await server.coalesce(writer)
        assert await server.pages(writer, writer.lsn, 1, count=7) == whole
        assert await server.pages(writer, lsns[-2], 1, count=7) != whole
    again = segment.layers.indexed_bytes - indexed
    assert again < 0.5 * indexed, "of each layer's end, what it cut a part of the index off"


async def test_who_is_not_written_to_and_had_nothing_to_do_has_a_turn_now_and_then(start, monkeypatch):
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"some redo")])))
    segment, node = server.segment(writer), server.server.node
    node.openings._since_s = 0.0  # the writer opened long ago
    lanes, turns, finds = background.Background(node), [], []

    async def tend(_volume: object, of: object) -> bool:
        turns.append(of)
        node.counters["folded_bytes"] += len(finds)
        return False

    monkeypatch.setattr(lanes, "_tend", tend)

    async def passes(count: int) -> int:
        turns.clear()
        for _ in range(count):
            await lanes._lane(busy=False)
        return len(turns)

    segment.last_append_s = time.monotonic() - 1
    assert await passes(5) == 5, "it has just been written to"
    segment.last_append_s = 0.0
    monkeypatch.setattr(background, "_CALM_EVERY_S", 3600.0)
    assert await passes(5) == 0, "there was nothing to do"
    lanes._calm[segment] -= 3600.0
    finds.append("a cold page")
    assert await passes(5) == 5, "there is something to do"
    finds.clear()
    assert await passes(5) == 1
    segment.last_append_s = time.monotonic() - 1
    assert await passes(5) == 5, "it is written to again"
