"""A reader's lease on history."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import OutOfRangeError, QuorumLostError, UsageError
from aurora_ray.storage.pages.garbage import live_read_points
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.read.lease import ReadLease
from aurora_ray.volume.shape import Shape
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages

if TYPE_CHECKING:
    from pathlib import Path


def held(cluster: Cluster) -> list[list[int]]:
    """What each running node keeps for readers."""
    found = []
    for server in cluster.servers.values():
        node = server.node
        found.append(list(live_read_points(node.volumes[cluster.spec.volume_id.bytes].read_points, node.clock())))
    return found


async def test_a_lease_moves_with_its_reader_and_ends_with_it(cluster: Cluster) -> None:
    volume = await cluster.open()
    lsn = await volume.append(pages((0, b"x")))
    nodes = Nodes(cluster.addresses, cluster.spec.volume_id.bytes)
    try:
        lease = await ReadLease.take(Shape(cluster.spec), nodes, holder="reader", lsn=8, lease_s=2)
        assert held(cluster) == [[8]] * 6
        with pytest.raises(UsageError, match="go back"):
            lease.move(0)
        lease.move(lsn)
        await poll_until(lambda: held(cluster) == [[lsn]] * 6, what="it is renewed where the reader is now")
        await poll_until(lambda: not lease.lost, what="and so it stands")
        assert lease._task is not None
        lease._task.cancel()  # the reader dies
        await poll_until(lambda: held(cluster) == [[]] * 6, what="nothing is held for a dead reader")
        await poll_until(lambda: lease.lost, what="it knows")
        await lease.release()
    finally:
        await nodes.close()


async def test_a_lease_that_is_released_holds_nothing(cluster: Cluster) -> None:
    await cluster.open()
    nodes = Nodes(cluster.addresses, cluster.spec.volume_id.bytes)
    try:
        lease = await ReadLease.take(Shape(cluster.spec), nodes, holder="reader", lsn=0)
        await cluster.stop("a1", "b1")  # two of six may be away
        await lease._renew()
        await lease.release()
        assert held(cluster) == [[]] * 4
        await cluster.stop("c1")
        with pytest.raises(QuorumLostError, match="grant"):
            await ReadLease.take(Shape(cluster.spec), nodes, holder="reader", lsn=0)
    finally:
        await nodes.close()


async def test_history_that_is_gone_cannot_be_leased(cluster: Cluster) -> None:
    volume = await cluster.open()
    lsn = await volume.append(pages((0, b"x")))
    await poll_until(lambda: all(cluster.segment(node).scl == lsn for node in NODES), what="all have it")
    for node in NODES[:3]:
        cluster.segment(node).commit(floor_lsn=lsn)
    nodes = Nodes(cluster.addresses, cluster.spec.volume_id.bytes)
    try:
        with pytest.raises(OutOfRangeError, match="begins at"):
            await ReadLease.take(Shape(cluster.spec), nodes, holder="reader", lsn=lsn - 8)
        assert held(cluster) == [[]] * 6
    finally:
        await nodes.close()


async def test_where_nodes_grant_less_it_is_renewed_in_time(tmp_path: Path) -> None:
    """A holder that kept to its own time would have lost it in between."""
    cluster = Cluster(tmp_path, lease_s_max=0.9)
    try:
        await cluster.start()
        await cluster.create()
        nodes = Nodes(cluster.addresses, cluster.spec.volume_id.bytes)
        volume = await cluster.open()
        assert await volume.hold("a mount", 0, 60.0) == pytest.approx(0.9)
        lease = await ReadLease.take(Shape(cluster.spec), nodes, holder="reader", lsn=0, lease_s=60.0)
        try:
            await asyncio.sleep(2.5)  # not synchronisation: longer than any node grants
            assert held(cluster) == [[0]] * 6
            assert not lease.lost
            lease._task.cancel()  # type: ignore[union-attr] # the reader dies
            await poll_until(lambda: lease.lost and held(cluster) == [[]] * 6, what="and it ends with its reader")
        finally:
            await lease.release()
            await nodes.close()
    finally:
        await cluster.close()
