"""A copy with a flipped bit: whoever reads the volume does not notice, and the copy is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aurora_ray.volume.read.pages import PageRange
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.allowed_logs(r"damaged here")
async def test_a_read_fails_over_from_a_damaged_version(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, layer_bytes=1, background_interval_s=0.02)
    try:
        await cluster.start()
        await cluster.create()
        volume = await cluster.open(az="a")
        for number in range(8):
            lsn = await volume.append(pages((number, b"%d" % number * 600)))
        await poll_until(
            lambda: all(cluster.segment(node).meta.coalesced_lsn == lsn for node in NODES), what="all is coalesced"
        )
        for node in ("a1", "a2"):
            store = cluster.segment(node).store
            changes = store.page_batch()
            for key, value in list(store.scan("pages", b"")):
                changes.put("pages", key, value[:40] + bytes([value[40] ^ 1]) + value[41:])
            changes.write_without_log()
        for number in range(8):
            (run,) = await volume.read_pages([PageRange(0, 1, number, 1)], lsn)
            assert run.pages.rstrip(b"\0") == b"%d" % number * 600
        damaged = [node for node in ("a1", "a2") if cluster.servers[node].node.counters["damaged_page"]]
        assert damaged, "the copies nearby were asked"
        for node in damaged:
            server = cluster.servers[node]
            await server.scrubber.round()
            await poll_until(lambda node=server.node: not node.damage.segments(), what="all is repaired")
            assert server.node.counters["repaired_page"] == 8
        (run,) = await volume.read_pages([PageRange(0, 1, 0, 8)], lsn)
        assert run.kinds == b"\1" * 8
    finally:
        await cluster.close()
