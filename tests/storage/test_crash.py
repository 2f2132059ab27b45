"""Crashes at awkward moments: whatever they leave behind, content stays what it was."""

from __future__ import annotations

import shutil

import pytest

from aurora_ray.storage.coalesce import _LayerWriter
from aurora_ray.storage.volume import INCOMING, OLD, READY, finish_replacements
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
