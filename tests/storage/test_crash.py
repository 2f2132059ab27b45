"""Crashes at awkward moments: whatever they leave behind, content stays what it was."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from aurora_ray.errors import OutOfRangeError
from aurora_ray.storage.node.volume import INCOMING, OLD, READY, finish_replacements
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.coalesce import _LayerWriter, coalesce
from aurora_ray.storage.pages.garbage import collect
from tests.storage.harness import Writer
from tests.storage.test_history import Workload, check, sample, write


@pytest.mark.parametrize("seed", range(4))
async def test_a_layer_that_was_never_finished_is_merged_over(start, seed):
    server = await start(retention_bytes=20_000)
    writer = await Writer().open(server)
    workload = Workload(seed)
    for _ in range(5):
        await write(server, writer, workload, 4)
        segment = server.segment(writer)
        index = await segment.layers.build(segment.meta.coalesced_lsn, segment.scl, 1 << 30)
        await _LayerWriter(segment, index).write()
        await segment.store.flush_pages()
        await server.restart()  # versions at an LSN that is no layer's end stay behind
        await server.collect(writer)
        await check(server, writer, workload, sample(workload, writer, server.segment(writer).meta.floor_lsn, 3))
        await write(server, writer, workload, 4)
        await server.coalesce(writer)
        await server.collect(writer)
        await check(server, writer, workload, sample(workload, writer, server.segment(writer).meta.floor_lsn, 4))


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ({"0": "old", "0" + INCOMING: "part"}, "old"),
        ({"0": "old", "0" + READY: "new"}, "new"),
        ({"0" + OLD: "old", "0" + READY: "new"}, "new"),
        ({"0": "new", "0" + OLD: "old"}, "new"),
    ],
)
def test_a_replacement_that_was_cut_short_is_finished_or_undone(tmp_path, found, kept):
    for name, content in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    finish_replacements(tmp_path, shutil.rmtree)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert (tmp_path / "0" / "file").read_text() == kept


async def test_the_mark_of_what_is_flushed_never_steps_back(start, monkeypatch):
    """A layer whose end was cut off after its pages were flushed ends at the same place when it is tried again."""
    server = await start()
    writer = await Writer().open(server)
    workload = Workload(1)
    await write(server, writer, workload, 6)
    segment = server.segment(writer)
    with monkeypatch.context() as patched:
        patched.setattr("aurora_ray.storage.pages.coalesce._commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await coalesce(segment, 1 << 30, [])
    marked_lsn = segment.store.flushed_lsn()
    assert marked_lsn > segment.meta.coalesced_lsn
    await server.restart()
    segment = server.segment(writer)
    segment._vdl = segment.box.vdl = marked_lsn - 1
    assert not await coalesce(segment, 1, [])  # it cannot reach there again yet
    segment.learn_vdl(writer.lsn)
    assert await coalesce(segment, 1, [])
    assert segment.meta.coalesced_lsn == segment.store.flushed_lsn() == marked_lsn
    await server.restart()
    assert not server.server.node.volumes[writer.volume].lost
    await check(server, writer, workload, [marked_lsn])


async def test_a_reader_that_is_cancelled_leaves_nothing_that_looks_like_damage(start, monkeypatch):
    """It was building an index; meanwhile the floor rose. Whoever waited for the index looks again where to start."""
    server = await start()
    writer = await Writer().open(server)
    workload = Workload(2)
    await write(server, writer, workload, 8)
    await server.coalesce(writer)
    segment = server.segment(writer)
    lsn = writer.ends[3]
    assert segment.meta.floor_lsn < lsn < segment.meta.coalesced_lsn
    gate, real = asyncio.Event(), Pacer.rest

    async def rest(pacer):
        await gate.wait()
        await real(pacer)

    monkeypatch.setattr(Pacer, "due", property(lambda _: True))
    monkeypatch.setattr(Pacer, "rest", rest)
    builder = asyncio.create_task(segment.layers.at(lsn))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(segment.layers.at(lsn))
    await asyncio.sleep(0)
    monkeypatch.setattr(Pacer, "due", property(lambda _: False))
    async with segment.background:
        await collect(segment, segment.meta.coalesced_lsn)
    builder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await builder
    with pytest.raises(OutOfRangeError):
        await waiter
    assert not server.server.node.damage.segments()
    await check(server, writer, workload, [writer.lsn])
