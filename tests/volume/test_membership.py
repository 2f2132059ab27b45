"""Other members for a group while it is written to: begin, catch up, commit or abort; a node that is gone for good."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import NotCompleteError, QuorumLostError, UsageError
from aurora_ray.log.segment_rules import Membership
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
from tests.support.polling import poll_until
from tests.volume.cluster import NODES, Cluster, pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aurora_ray.volume.write.volume import Volume

NEXT = (*NODES[:5], "d1")
OTHERS = ("d1", "d2", "e1", "e2", "f1", "f2")


@pytest.fixture
async def twelve(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        await cluster.create()
        await cluster.start(*OTHERS)
        yield cluster
    finally:
        await cluster.close()


@contextlib.asynccontextmanager
async def writing(volume: Volume) -> AsyncIterator[list[int]]:
    """Commits one after the other all the time; their LSNs. One that fails fails the test."""
    lsns: list[int] = []

    async def write() -> None:
        while True:
            lsns.append(await volume.append(pages((len(lsns) % 50, b"%d" % len(lsns))), timeout_s=20))

    task = asyncio.create_task(write())
    await poll_until(lambda: len(lsns) > 3, what="commits")
    try:
        yield lsns
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def progress(lsns: list[int]) -> None:
    """Commits go on."""
    count = len(lsns)
    await poll_until(lambda: len(lsns) > count + 5, what="commits go on")


async def identical(cluster: Cluster, nodes: tuple[str, ...], lsn: int, group: int = 0) -> None:
    """The copies have the same content and log up to `lsn`."""
    await poll_until(lambda: all(cluster.segment(node, group).scl >= lsn for node in nodes), what=f"all are at {lsn}")
    # A floor that rises on one copy while others are asked takes log with it: then all are asked again.
    for _ in range(20):
        floor_lsn = highest_floor(cluster, nodes, group)
        digests = {await digest_of(cluster, node, group, lsn, floor_lsn) for node in nodes}
        if highest_floor(cluster, nodes, group) == floor_lsn:
            break
    assert len(digests) == 1


def highest_floor(cluster: Cluster, nodes: tuple[str, ...], group: int) -> int:
    return max(cluster.segment(node, group).meta.floor_lsn for node in nodes)


async def digest_of(cluster: Cluster, node: str, group: int, lsn: int, log_after_lsn: int) -> tuple[bytes | int, ...]:
    request = pb.DigestRequest(
        volume=cluster.spec.volume_id.bytes, group=group, lsn=lsn, with_log=True, log_after_lsn=log_after_lsn
    )
    client = next(server for name, server in cluster.servers.items() if name != node).peers.client(node)
    assert client is not None
    reply = await client.digest(request, 20)
    assert reply.pages
    return reply.digest, reply.log_digest, reply.pages, reply.log_batches


async def test_a_member_is_replaced_while_commits_go_on(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    async with writing(volume) as lsns:
        spec = await volume.members.change_placement(GroupPlacement(0, NODES, NEXT))
        assert spec == volume.spec
        assert spec.placements[0].next_node_ids == NEXT
        await progress(lsns)
        await volume.members.progress.wait_caught_up("d1", timeout_s=30)
        spec = await volume.members.change_placement(GroupPlacement(0, NEXT))
        assert spec.placements[0] == GroupPlacement(0, NEXT)
        await progress(lsns)
    await identical(cluster, NEXT, volume.vdl)
    assert "c2" not in volume._fanout._streams
    behind = cluster.segment("c2").scl
    lsn = await volume.append(pages((0, b"without c2")))
    await identical(cluster, NEXT, lsn)
    assert all(cluster.segment(node).meta.epochs.membership == Membership(2, NEXT) for node in NEXT)
    cluster.spec = spec
    again = await cluster.open()
    assert (again.vdl, again.spec.placements[0].node_ids) == (lsn, NEXT)
    await again.append(pages((1, b"and again")))
    assert cluster.segment("c2").scl >= behind


async def test_a_member_that_is_gone_is_replaced(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    await volume.append(pages((0, b"before")))
    await cluster.stop("c2")
    async with writing(volume) as lsns:
        await volume.members.change_placement(GroupPlacement(0, NODES, NEXT))
        await volume.members.progress.wait_caught_up("d1", timeout_s=30)
        await volume.members.change_placement(GroupPlacement(0, NEXT))
        await progress(lsns)
        await cluster.stop("a1", "b1")
        await progress(lsns)
    await identical(cluster, ("a2", "b2", "c1", "d1"), volume.vdl)


async def test_a_writer_that_never_knew_where_a_lost_member_was_has_it_replaced(twelve: Cluster) -> None:
    """It was opened after the node's end, by a control plane that names running nodes only."""
    cluster = twelve
    await cluster.stop("c2")
    del cluster.nodes["c2"]
    volume = await cluster.open()
    await volume.append(pages((0, b"before")))
    await volume.members.change_placement(GroupPlacement(0, NODES, NEXT))
    await volume.members.progress.wait_caught_up("d1", timeout_s=30)
    await volume.members.change_placement(GroupPlacement(0, NEXT))
    await identical(cluster, ("a1", "a2", "b1", "b2", "c1", "d1"), volume.vdl)
    with pytest.raises(UsageError, match="no addresses known"):
        await volume.members.change_placement(GroupPlacement(0, NEXT, NODES))


async def test_all_members_are_replaced_at_once(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    async with writing(volume) as lsns:
        await volume.members.change_placement(GroupPlacement(0, NODES, OTHERS))
        for node in OTHERS:
            await volume.members.progress.wait_caught_up(node, timeout_s=30)
        await volume.members.change_placement(GroupPlacement(0, OTHERS))
        await progress(lsns)
    await cluster.stop(*NODES[1:])
    lsn = await volume.append(pages((7, b"elsewhere")))
    assert (await volume.read_pages([PageRange(0, 1, 7, 1)]))[0].pages.rstrip(b"\0") == b"elsewhere"
    await identical(cluster, OTHERS, lsn)
    cluster.spec = volume.spec
    assert (await cluster.open()).vdl == lsn


async def test_a_change_is_taken_back(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    async with writing(volume) as lsns:
        await volume.members.change_placement(GroupPlacement(0, NODES, OTHERS))
        await cluster.stop(*OTHERS[:3])
        spec = await volume.members.change_placement(GroupPlacement(0, NODES))
        assert spec.placements[0] == GroupPlacement(0, NODES)
        await progress(lsns)
    assert set(volume._fanout._streams) == set(NODES)
    await identical(cluster, NODES, volume.vdl)
    await volume.members.change_placement(GroupPlacement(0, NODES, (*NEXT[:5], "f2")))
    await volume.members.progress.wait_caught_up("f2", timeout_s=30)
    await volume.members.change_placement(GroupPlacement(0, (*NEXT[:5], "f2")))


async def test_during_a_change_both_sets_need_a_quorum(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    await volume.members.change_placement(GroupPlacement(0, NODES, OTHERS))
    await cluster.stop("d1", "e1", "f1")
    with pytest.raises(QuorumLostError):
        await volume.append(pages((0, b"waits")), timeout_s=1)
    waiting = asyncio.create_task(volume.durable.wait_for(volume.tail_lsn, timeout_s=30))
    await cluster.start("f1")
    await volume.update_nodes(cluster.addresses)
    await waiting


async def test_flushes_in_flight_do_not_wait_for_members_that_never_get_them(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    await cluster.stop("a1", "b1", "c1")
    waiting = asyncio.create_task(volume.append(pages((0, b"before the begin")), timeout_s=60))
    await poll_until(lambda: volume.redo.inflight_bytes > 0, what="it is in flight")
    beginning = asyncio.create_task(volume.members.change_placement(GroupPlacement(0, NODES, OTHERS), timeout_s=60))
    await cluster.start("a1", "b1", "c1")
    await volume.update_nodes(cluster.addresses)
    await beginning
    await waiting


async def test_a_commit_waits_for_a_quorum_of_the_next_members(twelve: Cluster) -> None:
    cluster = twelve
    volume = await cluster.open()
    for number in range(5):
        await volume.append(pages((number, b"before")))
    await volume.members.change_placement(GroupPlacement(0, NODES, OTHERS))
    await cluster.stop(*OTHERS[:3])
    with pytest.raises(NotCompleteError, match="waits for log"):
        await volume.members.change_placement(GroupPlacement(0, OTHERS), timeout_s=1)
    assert volume.spec.placements[0].next_node_ids == OTHERS
    with pytest.raises(NotCompleteError, match="d1 did not catch up"):
        await volume.members.progress.wait_caught_up("d1", timeout_s=0.5)
    await cluster.start(*OTHERS[:3])
    await volume.update_nodes(cluster.addresses)
    await volume.members.progress.wait_caught_up("d1", timeout_s=30)
    await volume.members.change_placement(GroupPlacement(0, OTHERS))


@pytest.mark.parametrize("start", [GroupPlacement(0, NODES), GroupPlacement(0, NODES, OTHERS)])
async def test_a_placement_that_is_out_of_date_leads_to_the_members_in_force(
    twelve: Cluster, start: GroupPlacement
) -> None:
    cluster = twelve
    volume = await cluster.open()
    await volume.append(pages((0, b"old")))
    await volume.members.change_placement(GroupPlacement(0, NODES, OTHERS))
    for node in OTHERS:
        await volume.members.progress.wait_caught_up(node, timeout_s=30)
    await volume.members.change_placement(GroupPlacement(0, OTHERS))
    lsn = await volume.append(pages((0, b"new")))
    cluster.spec = cluster.spec.with_placements([start])
    await poll_until(lambda: cluster.segment("d1").vdl == lsn, what="the VDL is known")
    reader = await VolumeReader.open(cluster.spec, cluster.addresses, lsn=lsn, timeout_s=20)
    assert (await reader.read_pages([PageRange(0, 1, 0, 1)]))[0].pages.rstrip(b"\0") == b"new"
    await reader.close()
    again = await cluster.open()
    assert again.spec.placements[0] == GroupPlacement(0, OTHERS)
    assert again.vdl == lsn


@pytest.mark.parametrize("written_down", [True, False])
async def test_a_writer_that_takes_over_in_between_goes_on_with_the_change(
    twelve: Cluster, *, written_down: bool
) -> None:
    cluster = twelve
    volume = await cluster.open()
    await volume.append(pages((0, b"x")))
    await volume.members.change_placement(GroupPlacement(0, NODES, NEXT))
    cluster.spec = volume.spec if written_down else cluster.spec
    second = await cluster.open()
    assert second.spec.placements[0] == GroupPlacement(0, NODES, NEXT)
    await second.append(pages((0, b"y")))
    await second.members.progress.wait_caught_up("d1", timeout_s=30)
    await second.members.change_placement(GroupPlacement(0, NEXT))
    await identical(cluster, NEXT, await second.append(pages((0, b"z"))))


async def test_a_new_copy_begins_where_the_peers_log_begins(tmp_path: Path) -> None:
    """The log no longer reaches back: the new node is given pages, by all peers, while commits go on."""
    cluster = Cluster(
        tmp_path, retention_s=0.0, layer_bytes=1 << 16, background_interval_s=0.02, lease_s_max=0.5, index_bytes=1 << 20
    )
    try:
        await cluster.start()
        await cluster.create()
        volume = await cluster.open()
        for number in range(60):
            await volume.append(pages(*((page, b"%d" % number * 500) for page in range(number, number + 8))))
        await poll_until(
            lambda: all(cluster.segment(node).meta.floor_lsn > 0 for node in NODES),
            what="old log is gone",
            timeout_s=30,
        )
        await cluster.start("d1")
        await volume.update_nodes(cluster.addresses)
        async with writing(volume) as lsns:
            await volume.members.change_placement(GroupPlacement(0, NODES, NEXT))
            await volume.members.progress.wait_caught_up("d1", timeout_s=60)
            await volume.members.change_placement(GroupPlacement(0, NEXT), timeout_s=60)
            await progress(lsns)
        told = await volume.members.progress.of("d1")
        assert told.bytes_copied == told.bytes_total > 0  # of how many pages the log had gone by then is not said
        assert told.mb_per_s > 0
        assert cluster.servers["d1"].node.counters["copied_segments"] >= 1
        await identical(cluster, NEXT, volume.vdl)
    finally:
        await cluster.close()


async def test_one_group_of_two_moves_and_its_old_copy_is_dropped(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, groups=2)
    try:
        await cluster.start(*NODES, "d1")
        await cluster.create()
        volume = await cluster.open()
        await volume.append([*pages((0, b"zero")), *pages((0, b"one"), group=1)])
        await volume.members.change_placement(GroupPlacement(1, NODES, NEXT))
        lsn = await volume.append([*pages((1, b"zero")), *pages((1, b"one"), group=1)])
        await volume.members.progress.wait_caught_up("d1", timeout_s=30)
        await volume.members.change_placement(GroupPlacement(1, NEXT))
        assert (cluster.spec.volume_id.bytes, 0) not in cluster.servers["d1"].node.segments
        client = cluster.servers["a1"].peers.client("c2")
        assert client is not None
        await client.drop_volume(pb.DropVolumeRequest(volume=cluster.spec.volume_id.bytes, groups=[1]))
        assert cluster.servers["c2"].node.volumes[cluster.spec.volume_id.bytes].segments.keys() == {0}
        await volume.append([*pages((2, b"zero")), *pages((2, b"one"), group=1)])
        cluster.spec = volume.spec
        again = await cluster.open()
        await again.append([*pages((3, b"zero")), *pages((3, b"one"), group=1)])
        await identical(cluster, NEXT, lsn, group=1)
    finally:
        await cluster.close()


async def test_steps_that_make_no_sense_are_refused(twelve: Cluster) -> None:
    volume = await twelve.open()
    with pytest.raises(UsageError, match="in one step"):
        await volume.members.change_placement(GroupPlacement(0, OTHERS))
    with pytest.raises(UsageError, match="no group 7"):
        await volume.members.change_placement(GroupPlacement(7, NODES, NEXT))
    with pytest.raises(UsageError, match="no addresses known"):
        await volume.members.change_placement(GroupPlacement(0, NODES, (*NODES[:5], "nobody")))
    with pytest.raises(UsageError, match="same members"):
        GroupPlacement(0, NODES, NODES[::-1])
    assert await volume.members.change_placement(GroupPlacement(0, NODES)) == volume.spec


def test_a_specification_survives_its_plain_form() -> None:
    placements = (GroupPlacement(0, NODES), GroupPlacement(1, NODES, NEXT))
    spec = VolumeSpec(uuid.uuid4(), 8192, 1 << 30, placements)
    assert VolumeSpec.from_dict(spec.to_dict()) == spec
    old_form = spec.to_dict() | {"groups": [[0, list(NODES)], [1, list(NODES)]]}
    assert VolumeSpec.from_dict(old_form).placements[1] == GroupPlacement(1, NODES)
