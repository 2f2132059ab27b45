"""A node whose files are removed, under it or while it is down, counts for nothing until it has its copy again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import QuorumLostError
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages
from tests.volume.test_membership import identical, writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.allowed_logs(r"damaged here|append stream")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    six = Cluster(tmp_path)
    try:
        await six.start()
        await six.create()
        yield six
    finally:
        await six.close()


@pytest.mark.parametrize("what", ["everything", "the segment"])
async def test_files_that_are_removed_under_a_node_come_back_from_its_peers(
    cluster: Cluster, tmp_path: Path, what: str
) -> None:
    volume = await cluster.open()
    server = cluster.servers["c2"]
    async with writing(volume):
        shutil.rmtree(tmp_path / "c2" if what == "everything" else cluster.segment("c2").store.path)
        await poll_until(lambda: server.node.counters["copied_segments"] == 1, what="the copy is there again")
    await identical(cluster, NODES, volume.vdl)
    await cluster.stop("c2")
    await cluster.start("c2")
    await volume.update_nodes(cluster.addresses)
    await identical(cluster, NODES, await volume.append(pages((0, b"after a restart"))))


async def test_a_node_without_its_files_acknowledges_nothing(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    await volume.append(pages((0, b"before")))
    await cluster.stop("a1", "b1", "c1")
    shutil.rmtree(tmp_path / "c2")
    server = cluster.servers["c2"]
    await poll_until(lambda: not server.node.segments, what="the loss is noticed")
    with pytest.raises(QuorumLostError):  # two peers cannot tell what c2 may have promised
        await volume.append(pages((0, b"waits")), timeout_s=1)
    assert not server.node.segments
    await cluster.start("a1")
    await volume.update_nodes(cluster.addresses)
    await volume.durable.wait_for(volume.tail_lsn, timeout_s=30)
    assert server.node.counters["copied_segments"] == 1


async def test_a_node_that_starts_empty_counts_for_nothing(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    await volume.append(pages((0, b"before")))
    await cluster.stop("c2")
    shutil.rmtree(tmp_path / "c2")
    await cluster.start("c2")
    await volume.update_nodes(cluster.addresses)
    await cluster.stop("a1", "b1")
    with pytest.raises(QuorumLostError):
        await volume.append(pages((0, b"waits")), timeout_s=1)
    await volume.close()
    with pytest.raises(QuorumLostError):
        await cluster.open(timeout_s=2)
    assert not cluster.servers["c2"].node.volumes
