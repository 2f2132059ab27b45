"""Following the log of a volume: the same flushes that were written, byte for byte, whatever happens to the copies."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import OutOfRangeError, StorageError
from aurora_ray.log.flush import Flush
from aurora_ray.volume.follow import follower as followers
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.spec import GroupPlacement
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.log.record import Record
    from aurora_ray.volume.write.volume import Volume

_log = logging.getLogger(__name__)

# gRPC's server, when it is stopped with streams open
pytestmark = pytest.mark.allowed_logs("due to server stop")


@asynccontextmanager
async def following(cluster: Cluster, after_lsn: int = 0) -> AsyncIterator[Follower]:
    async with Follower.open(cluster.spec, cluster.addresses, after_lsn=after_lsn, az="a") as follower:
        yield follower


async def write(volume: Volume, written: list[Flush], *records: Record) -> Flush:
    """One flush, durable."""
    flush = volume.redo.encode(records)
    volume.redo.submit(flush)
    written.append(flush)
    await volume.durable.wait_for(flush.end, timeout_s=30)
    return flush


async def take(follower: Follower, count: int) -> list[Flush]:
    async with asyncio.timeout(60):
        return [await anext(follower) for _ in range(count)]


async def test_flushes_of_all_groups_come_whole_and_in_order(two_groups: Cluster) -> None:
    volume = await two_groups.open()
    written: list[Flush] = []
    await write(volume, written, *pages((0, b"zero")), *pages((0, b"one"), group=1))
    await write(volume, written, *pages((1, b"one alone"), group=1))
    async with following(two_groups) as follower:
        assert await take(follower, 2) == written
        await write(volume, written, *pages((1, b"zero alone")))
        for number in range(20):
            await write(volume, written, *pages((number, b"x" * 99), group=number % 2), *pages((5, b"y")))
        assert await take(follower, 21) == written[2:]
        assert follower.lsn == volume.vdl
        assert volume.vdl >= follower.durable.lsn >= written[-2].end
    middle = written[4]
    async with following(two_groups, middle.end) as follower:
        assert await take(follower, 3) == written[5:8]
    async with following(two_groups, middle.start + 8) as follower:  # within a flush: that one comes first
        assert await take(follower, 2) == written[4:6]


async def test_what_is_not_durable_is_not_told(cluster: Cluster) -> None:
    volume = await cluster.open()
    written: list[Flush] = []
    async with following(cluster) as follower:
        await write(volume, written, *pages((0, b"durable")))
        assert await take(follower, 1) == written
        await cluster.stop("a1", "b1", "c1")
        flush = volume.redo.encode(pages((1, b"waits")))
        volume.redo.submit(flush)
        await poll_until(
            lambda: all(cluster.segment(node).scl == flush.end for node in cluster.servers), what="three have it"
        )
        waiting = asyncio.ensure_future(anext(follower))
        done, _ = await asyncio.wait([waiting], timeout=1.5)  # longer than a heartbeat
        assert not done
        assert follower.durable.lsn == written[0].end
        await cluster.start("a1", "b1", "c1")
        assert await asyncio.wait_for(waiting, 30) == flush


async def test_nodes_that_end_are_replaced_or_come_back_and_a_volume_that_grows(cluster: Cluster) -> None:
    volume = await cluster.open()
    written: list[Flush] = []
    stopping = asyncio.Event()
    groups = [0]

    async def go_on_writing() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            touched = groups if number % 3 else groups[-1:]
            await write(volume, written, *(r for g in touched for r in pages((number % 50, b"%d" % number), group=g)))

    async def addresses(follower: Follower) -> None:
        await volume.update_nodes(cluster.addresses)
        await follower.update_nodes(cluster.addresses)

    found: list[Flush] = []

    async def caught_up() -> None:
        lsn = volume.vdl
        async with asyncio.timeout(60):
            while follower.lsn < lsn:
                found.append(await anext(follower))

    writing = asyncio.create_task(go_on_writing())
    async with following(cluster) as follower:
        await caught_up()
        for _ in range(2):  # whoever is read from ends, and comes back elsewhere
            node = follower.copies[0] or "a1"
            await cluster.stop(node)
            await caught_up()
            await cluster.start(node)
            await addresses(follower)
        await volume.members.add_group(GroupPlacement(1, NODES))  # the follower is not told
        groups.append(1)
        await caught_up()
        await cluster.stop("a1")  # for good: another one takes its place
        await cluster.start("a3")
        del cluster.nodes["a1"]
        await addresses(follower)
        for group in groups:
            begun = replace(volume.spec.placements[group], next_node_ids=("a3", *NODES[1:]))
            await volume.members.change_placement(begun)
            await volume.members.change_placement(GroupPlacement(group, ("a3", *NODES[1:])))
        await caught_up()
        stopping.set()
        await writing
        await caught_up()
    assert found == written
    assert {group for flush in found for group in flush.groups} == {0, 1}


async def test_a_failover_changes_nothing_of_what_was_durable(cluster: Cluster) -> None:
    written: list[Flush] = []
    async with following(cluster) as follower:
        first = await cluster.open()
        for number in range(10):
            await write(first, written, *pages((number, b"first")))
        second = await cluster.open()
        for number in range(10):
            await write(second, written, *pages((number, b"second")))
        assert await take(follower, 20) == written


async def test_log_that_is_gone_is_told_as_such(cluster: Cluster) -> None:
    volume = await cluster.open()
    written: list[Flush] = []
    for number in range(4):
        await write(volume, written, *pages((number, b"x")))
    await poll_until(
        lambda: all(cluster.segment(node).vdl == volume.vdl for node in NODES), what="all know what is durable"
    )
    for node in NODES:
        cluster.segment(node).commit(floor_lsn=written[1].end)
    async with following(cluster, written[1].end) as follower:
        assert await take(follower, 2) == written[2:]
    async with following(cluster, written[0].end) as follower:
        with pytest.raises(OutOfRangeError, match="begins at"):
            await take(follower, 1)


async def test_what_waits_for_a_slow_caller_is_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "BUFFER_BYTES", 1 << 20)
    volume = await cluster.open()
    written: list[Flush] = []
    for number in range(10):
        image = bytes([number + 1]) * 8000
        await write(volume, written, *pages(*((page, image) for page in range(100))))
    async with following(cluster) as follower:
        merger = follower._merger
        await poll_until(lambda: merger.buffered_bytes(0) >= 1 << 20, what="the buffer is full")
        for _ in range(50):
            await asyncio.sleep(0)
        assert merger.buffered_bytes(0) < 4 << 20 < sum(flush.nbytes for flush in written)
        assert await take(follower, 10) == written


async def test_an_idle_volume_is_followed_at_once(cluster: Cluster) -> None:
    """The VDL of a flush that nothing follows, of the first as well: a heartbeat would bring it half a second later."""
    volume = await cluster.open()
    took_ms: list[float] = []
    async with following(cluster) as follower:
        for number in range(20):
            flush = volume.redo.encode(pages((number, b"x")))
            durable = asyncio.ensure_future(volume.durable.wait_for(flush.end, timeout_s=30))
            volume.redo.submit(flush)
            told = asyncio.ensure_future(anext(follower))
            await durable
            begun_s = time.perf_counter()
            assert await asyncio.wait_for(told, 30) == flush
            took_ms.append(1e3 * (time.perf_counter() - begun_s))
    _log.info("from durable to followed: p50 %.1f ms, at most %.1f ms", statistics.median(took_ms), max(took_ms))
    assert statistics.median(took_ms) < 200, took_ms


async def test_who_waits_for_a_flush_hears_of_the_end(cluster: Cluster) -> None:
    follower: Any = Follower.open(cluster.spec, cluster.addresses, after_lsn=0)
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    await follower.close()
    with pytest.raises(StorageError, match="closed"):
        await waiting
