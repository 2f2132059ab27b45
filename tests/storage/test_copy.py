"""Filling a segment from several peers, and what a copy has in common with the others."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import pairwise

import pytest

from aurora_ray.log import record as rec
from aurora_ray.storage.heal import filling, rebuild
from aurora_ray.storage.heal.peers import Peer
from aurora_ray.storage.heal.rebuild import forgotten_promise
from aurora_ray.storage.node.progress import CopyProgress
from aurora_ray.storage.pages.content import Walk
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import PAGE_SIZE, Writer, introduce
from tests.storage.test_history import PAGES, Workload, check, sample, write


async def three_with_history(start, seed: int = 3):
    """Three nodes with the same log but other layers and floors, and an empty fourth."""
    servers = [await start(f"n{i}", retention_bytes=8_000 + 2_000 * i) for i in range(1, 4)]
    fourth = await start("n4")
    writer = await Writer().open(*servers, fourth)
    workload = Workload(seed)
    for step in range(8):
        message = []
        for _ in range(5):
            message += writer.flush(*workload.records())
        for server in servers:
            await server.send(message)
            await server.send([writer.heartbeat()])
        if step < 6:
            for number, server in enumerate(servers):
                if step % 3 != number:
                    await server.coalesce(writer)
                    await server.collect(writer)
    await introduce(*servers, fourth)
    floors = [server.segment(writer).meta.floor_lsn for server in servers]
    assert len(set(floors)) > 1, "the test is about peers that store things differently"
    return servers, fourth, writer, workload


@pytest.mark.parametrize("seed", [3, 4])
async def test_a_copy_is_put_together_from_all_peers(start, monkeypatch, seed):
    monkeypatch.setattr(filling, "RANGE_BYTES", 4 * PAGE_SIZE)
    servers, fourth, writer, workload = await three_with_history(start, seed)
    await fourth.server.gossip.round()
    await fourth.copied()
    floor_lsn = max(server.segment(writer).meta.floor_lsn for server in servers)
    meta = fourth.segment(writer).meta
    assert (meta.floor_lsn, fourth.segment(writer).scl) == (floor_lsn, writer.lsn)
    progress = fourth.server.node.volumes[writer.volume].copies[0]
    assert set(progress.sources) == {"n1", "n2", "n3"}
    for server in servers:
        sent = server.server.node.counters
        assert sent["sent_pages"] or sent["sent_log_bytes"], f"{server.config.node_id} took part"
    lsns = sample(workload, writer, floor_lsn, 6)
    await check(fourth, writer, workload, lsns)
    for lsn in (floor_lsn, *lsns):
        if lsn >= floor_lsn:
            digests = {await server.digest(writer, lsn, log_after_lsn=floor_lsn) for server in (*servers, fourth)}
            assert len(digests) == 1, lsn
    state = (await fourth.state(writer)).copy
    assert not state.running
    assert state.bytes_copied == state.bytes_total > 0
    assert state.mb_per_s > 0
    await fourth.restart()
    await check(fourth, writer, workload, lsns)
    await write(fourth, writer, workload, 4)
    await fourth.coalesce(writer)
    await check(fourth, writer, workload, sample(workload, writer, floor_lsn, 4))


async def test_a_peer_that_fails_is_replaced_by_another(start, monkeypatch):
    monkeypatch.setattr(filling, "RANGE_BYTES", 4 * PAGE_SIZE)
    _, fourth, writer, workload = await three_with_history(start)
    real = filling.Copy._take
    asked, left = Counter(), set()

    async def take(self, peer, part):
        asked[peer.node_id] += 1
        if peer.node_id == "n2":
            left.add(id(part))
            raise filling.StorageError("n2 fails")
        await real(self, peer, part)
        left.discard(id(part))

    monkeypatch.setattr(filling.Copy, "_take", take)
    await fourth.server.gossip.round()
    await fourth.copied()
    assert asked["n2"] == filling.PEER_FAILURES_MAX, "it was asked, again too, and then no more"
    assert asked["n1"] > 0
    assert asked["n3"] > 0
    assert not left, "what it did not deliver came from the others"
    await check(fourth, writer, workload, [writer.lsn, fourth.segment(writer).meta.floor_lsn])


async def test_appends_go_on_while_a_segment_is_copied(start, monkeypatch):
    """Before, between and after the parts; and after the bulk of the log was carried over."""
    monkeypatch.setattr(filling, "RANGE_BYTES", 4 * PAGE_SIZE)
    servers, fourth, writer, workload = await three_with_history(start)
    real_take, real_carry = filling.Copy._take, rebuild._carry_log
    appended, one_at_a_time = [], asyncio.Lock()

    async def append(when):
        async with one_at_a_time:
            sent = writer.flush(*workload.records())
            for server in (*servers, fourth):
                assert await server.send(sent) == writer.lsn
            appended.append(when)

    async def take(self, peer, part):
        if peer.node_id == "n1" and len(appended) < 3:
            await append("between parts")
        await real_take(self, peer, part)

    async def carry_log(*args):
        await append("before the log is carried over")
        carried_lsn = await real_carry(*args)
        await append("after that")
        return carried_lsn

    old = fourth.segment(writer)
    monkeypatch.setattr(filling.Copy, "_take", take)
    monkeypatch.setattr(rebuild, "_carry_log", carry_log)
    await fourth.server.gossip.round()
    await fourth.copied()
    assert "between parts" in appended
    assert appended[-2:] == ["before the log is carried over", "after that"]
    assert fourth.segment(writer) is not old
    assert fourth.segment(writer).scl == writer.lsn, "what was acknowledged meanwhile is in the chain"
    await check(fourth, writer, workload, writer.ends[-len(appended) - 1 :])


@pytest.mark.parametrize("log_bytes", [0, 1, 10 * filling.RANGE_BYTES])
def test_log_is_cut_by_its_bytes_and_not_by_the_lsns_between(log_bytes):
    after_lsn, up_to_lsn = 1000, 1000 + (100 << 30)
    parts = filling._log_parts(after_lsn, up_to_lsn, log_bytes)
    assert len(parts) == max(1, -(-log_bytes // filling.RANGE_BYTES))
    assert (parts[0].after_lsn, parts[-1].up_to_lsn) == (after_lsn, up_to_lsn)
    assert all(one.up_to_lsn == other.after_lsn for one, other in pairwise(parts))
    assert filling._log_parts(5, 5, 0) == []
    assert len(filling._log_parts(5, 7, 1 << 40)) == 2


def test_a_peer_that_lacks_the_last_batch_is_a_source_however_far_its_lsn_is():
    ahead = Peer("n1", None, pb.SegmentState(scl=100 << 30, floor_lsn=10), 1024)
    behind = Peer("n2", None, pb.SegmentState(scl=20, floor_lsn=10), 1024)
    old = Peer("n3", None, pb.SegmentState(scl=9), 1024)
    plan = filling.make_plan([ahead, behind, old])
    assert [peer.node_id for peer in plan.sources] == ["n1", "n2"]
    assert (plan.floor_lsn, plan.end_lsn) == (10, 100 << 30)


async def test_a_walk_gives_every_page_once_however_small_its_steps(start):
    server = await start()
    writer = await Writer().open(server)
    chance = random.Random(1)
    for _ in range(3):
        changes = [
            rec.page_delta(chance.randint(1, 3), chance.randint(0, PAGES), [(0, chance.randbytes(9))]) for _ in range(9)
        ]
        await server.send(writer.flush(*changes))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        await server.send(writer.flush(rec.page_delta(4, chance.randint(0, PAGES), [(0, b"new")])))
    segment = server.segment(writer)
    for lsn in (writer.ends[2], writer.lsn):
        expected = {
            (file_id, page): content
            for file_id in range(1, 5)
            for page in range(PAGES + 1)
            if (content := writer.page_at(lsn, file_id, page)) is not None
        }
        for size in (1, 2, 100):
            walk, seen = Walk(segment, lsn), []
            while not walk.done:
                seen += await walk.step(size)
            assert [key for key, _ in seen] == sorted(expected)
            assert {tuple(key): bytes(content) for key, content in seen} == expected


def peer(promised: int) -> Peer:
    return Peer("n", None, pb.SegmentState(promised_epoch=promised), 1024)


@pytest.mark.parametrize(
    ("promised", "expected"),
    [((7, 5, 5, 5, 5), 5), ((7, 7, 5, 5, 5), 5), ((7, 7, 7, 5, 5), 7), ((7, 5, 5), 7), ((7, 5, 5, 5), 5)],
)
def test_what_a_lost_copy_may_have_promised(promised, expected):
    """With us, four make a quorum; whoever does not answer may be one of them."""
    assert forgotten_promise([peer(epoch) for epoch in promised], 6) == expected


def test_progress_is_told_while_it_lasts_and_after():
    progress = CopyProgress(0.0, bytes_total=100, bytes_copied=40)
    assert progress.message().running
    assert progress.message().bytes_total == 100
    progress.ended_s = 2.0
    assert (progress.message().running, progress.message().bytes_total) == (False, 40)
