"""The simulated distance between regions: messages arrive late, in order, many under way, or not while it is cut."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import NodeTimeoutError
from aurora_ray.regions import load_regions
from aurora_ray.replication.distance import link_between
from aurora_ray.rpc.link import UNDER_WAY_BYTES, Abroad, Line, Link, Way, delayed
from aurora_ray.rpc.node_client import NodeClient
from aurora_ray.volume.follow.follower import Follower
from tests.support.timing import scaled
from tests.volume.cluster import pages, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.allowed_logs("due to server stop")


def test_a_line_delays_and_takes_its_time_with_large_messages() -> None:
    way = Way(Line(delay_s=0.1, bytes_per_s=1000))
    assert way.arrival_s(10.0, 100) == pytest.approx(10.2)
    assert way.arrival_s(10.0, 100) == pytest.approx(10.3), "behind the first"
    assert way.arrival_s(20.0, 0) == pytest.approx(20.1)
    assert way.nbytes == 200


def test_jitter_and_stalls_keep_the_order() -> None:
    way = Way(Line(delay_s=0.05, jitter_s=0.05, stall_rate=100, stall_s=1.0), seed=3)
    arrivals = [way.arrival_s(0.001 * number, 10) for number in range(1000)]
    assert arrivals == sorted(arrivals)
    took = [at - 0.001 * number for number, at in enumerate(arrivals)]
    assert min(took) >= 0.05
    assert max(took) > 1.0, "a lost packet stalls all that come behind it"


def test_distances_are_those_of_the_regions() -> None:
    regions = load_regions()
    link = link_between(regions["us-east-1"], regions["eu-west-1"])
    assert link is not None
    assert link.out.line.delay_s == regions["us-east-1"].distance_ms("eu-west-1") / 1e3
    assert link_between(regions["us-east-1"], regions["us-east-1"]) is None


async def test_messages_of_a_stream_are_under_way_together_and_its_end_is_told() -> None:
    taken = 0

    async def source(count: int) -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(count):
            taken += 1
            yield b"%d" % number
        raise NodeTimeoutError("the end")

    way = Way(Line(delay_s=0.2))
    begun_s = time.monotonic()
    found = []
    with pytest.raises(NodeTimeoutError, match="the end"):  # noqa: PT012 - what came before it counts
        async for message in delayed(source(50), way, len):
            found += [message]
    assert found == [b"%d" % number for number in range(50)]
    assert 0.2 <= time.monotonic() - begun_s < 50 * 0.2 / 4

    taken = 0
    way.cut()
    stream = delayed(source(10), way, lambda _: UNDER_WAY_BYTES // 2)
    reading = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([reading], timeout=0.5)
    assert not done
    assert taken == 3, "what is under way is bounded"
    way.heal()
    assert await asyncio.wait_for(reading, scaled(5)) == b"0"
    await stream.aclose()


async def test_calls_and_streams_of_storage_nodes_cross_it(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        volume = await cluster.open()
        await volume.append(pages((0, b"one")))
        link = Link.of(Line(delay_s=0.1))
        node = cluster.nodes["a1"]
        client = NodeClient(node.node_id, node.address, Abroad(link=link))
        try:
            await client.state()
            begun_s = time.monotonic()
            await client.state()
            assert time.monotonic() - begun_s >= 0.2
            link.back.cut()
            with pytest.raises(NodeTimeoutError):
                await client.state(timeout_s=0.5)
            link.heal()
        finally:
            await client.close()
        async with Follower.open(cluster.spec, cluster.addresses, after_lsn=0, abroad=Abroad(link=link)) as follower:
            await asyncio.wait_for(anext(follower), scaled(10))
            begun_s = time.monotonic()
            lsn = await volume.append(pages((1, b"two")))
            flush = await asyncio.wait_for(anext(follower), scaled(10))
            assert flush.end == lsn
            assert time.monotonic() - begun_s >= 0.09
            link.cut()
            lsn = await volume.append(pages((2, b"three")))
            reading = asyncio.ensure_future(anext(follower))
            done, _ = await asyncio.wait([reading], timeout=0.5)
            assert not done
            link.heal()
            assert (await asyncio.wait_for(reading, scaled(20))).end == lsn
