"""When a node coalesces."""

from __future__ import annotations

import time

from aurora_ray.log import record as rec
from tests.storage.harness import Writer, introduce


async def test_nodes_take_turns_while_commits_come_in_and_none_waits_in_a_pause(start):
    servers = [await start(f"n{i}", layer_bytes=3000) for i in range(3)]
    writer = await Writer().open(*servers)
    await introduce(*servers)
    batches = writer.flush(rec.page_delta(1, 0, [(0, b"some redo")]))
    batches += writer.flush(rec.page_delta(1, 0, [(0, b"and the VDL of the first")]), vdl=writer.lsn)
    due_from = []
    for server in servers:
        await server.send(batches)
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
