"""Two of six copies get flushes later, in larger messages, and at once when one of the four dawdles."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from aurora_ray.volume.write.deferral import HEDGE_S, Deferral
from aurora_ray.volume.write.quorum import InFlight
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

AZS = {node: node[0] for node in NODES}


@dataclass
class Stream:
    """What the decisions are made from."""

    latency_s: float = 0.0
    acked_lsn: int = 0
    releases: int = 0

    def release(self) -> None:
        self.releases += 1


@pytest.fixture
async def deferral() -> AsyncIterator[Deferral]:
    deferral = Deferral()
    yield deferral
    deferral.close()


def streams(**latencies_s: float) -> dict[str, Stream]:
    return {node: Stream(latencies_s.get(node, 0.001)) for node in NODES}


async def test_the_first_four_are_in_all_zones(deferral: Deferral) -> None:
    deferral.arrange(streams(), AZS, 4)
    assert {node[0] for node in NODES if node not in deferral.held} == {"a", "b", "c"}
    assert len(deferral.held) == 2


async def test_a_broken_stream_is_not_among_the_four(deferral: Deferral) -> None:
    deferral.arrange(streams(a1=math.inf), AZS, 4)
    assert "a1" in deferral.held


async def test_nothing_is_held_while_members_change(deferral: Deferral) -> None:
    deferral.arrange(streams(), AZS, 4)
    deferral.arrange(streams(), AZS, None)
    assert not deferral.held


async def test_held_flushes_go_out_soon(deferral: Deferral) -> None:
    nodes = streams()
    deferral.arrange(nodes, AZS, 4)
    deferral.on_submit(InFlight(100, (0,), 10, time.monotonic()))
    deferral.on_durable(0.002, None)
    await poll_until(lambda: any(node.releases for node in nodes.values()), what="something is released")
    assert {node for node in NODES if nodes[node].releases} == deferral.held


async def test_a_late_quorum_is_hedged_and_the_laggard_loses_its_place(deferral: Deferral) -> None:
    nodes = streams()
    deferral.arrange(nodes, AZS, 4)
    for _ in range(100):
        deferral.on_durable(0.001, None)
    assert deferral.hedge_s == HEDGE_S[0]
    prompt = [node for node in NODES if node not in deferral.held]
    held = deferral.held
    for node in prompt[1:]:
        nodes[node].acked_lsn = 100
    deferral.on_submit(InFlight(100, (0,), 10, time.monotonic()))
    await poll_until(lambda: deferral.hedged_count > 0, what="it is hedged")
    assert all(nodes[node].releases for node in held)
    assert prompt[0] in deferral.held
    assert len(deferral.held) == 2


async def test_places_go_to_who_is_faster(deferral: Deferral) -> None:
    nodes = streams(a1=0.050)
    deferral.arrange(nodes, AZS, 4)
    assert "a1" not in deferral.held
    deferral.on_submit(InFlight(100, (0,), 10, time.monotonic()))
    deferral.on_durable(0.05, None)
    await poll_until(lambda: "a1" in deferral.held, what="the slow one is held")
    assert len(deferral.held) == 2


async def test_all_six_copies_get_everything(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        volume = await cluster.open()
        messages = dict.fromkeys(NODES, 0)
        for number in range(100):
            lsn = await volume.append(pages((number, b"x")))
        prompt, held = (
            [node for node in NODES if node not in volume._fanout._deferral.held],
            volume._fanout._deferral.held,
        )
        for node in NODES:
            messages[node] = volume._fanout._streams[node].message_count
        await everywhere(cluster, lsn)
        assert max(messages[node] for node in held) < max(messages[node] for node in prompt)


async def test_commits_go_on_at_once_when_one_of_the_four_stops(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        volume = await cluster.open()
        for number in range(50):
            await volume.append(pages((number, b"x")))
        (first, *_) = [node for node in NODES if node not in volume._fanout._deferral.held]
        await cluster.stop(first)
        longest_s = 0.0
        for number in range(50):
            started_s = time.monotonic()
            lsn = await volume.append(pages((number, b"y")))
            longest_s = max(longest_s, time.monotonic() - started_s)
        assert longest_s < 20 * HEDGE_S[1]
        assert first in volume._fanout._deferral.held
        await cluster.start(first)
        await volume.update_nodes(cluster.addresses)
        await everywhere(cluster, lsn)


async def everywhere(cluster: Cluster, lsn: int) -> None:
    await poll_until(lambda: all(cluster.segment(node).scl >= lsn for node in NODES), what=f"all are at {lsn}")
