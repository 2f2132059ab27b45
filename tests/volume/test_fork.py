"""The verb fork, among six nodes: points by LSN and time, quorums, failovers, copies that were away."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import OutOfRangeError, QuorumLostError, UsageError
from aurora_ray.log.lineage import Lineage
from aurora_ray.volume.fork import fork
from aurora_ray.volume.origin import GroupPlace, Range, Target, describe, flush_end, point_at, whole_range, within
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.write.volume import Volume
from tests.support.timing import scaled
from tests.volume.cluster import NODES, PAGE, Cluster, pages, running

if TYPE_CHECKING:
    from pathlib import Path

RANGES = [PageRange(0, 1, 0, 4), PageRange(1, 2, 0, 4)]


async def write(volume: Volume, number: int) -> int:
    content = b"%d " % number * 40
    records = pages((number % 4, content))
    if number % 3:
        records += pages((number % 4, content), file_id=2, group=1)
    return await volume.append(records)


async def opened(cluster: Cluster, target: Target, *, written_lsn: int = 0) -> Volume:
    spec, point = await fork(cluster.spec, uuid.uuid4(), cluster.addresses, target, written_lsn=written_lsn)
    child = await Volume.open(spec, cluster.addresses, timeout_s=scaled(20))
    cluster.volumes.append(child)
    assert child.vdl == point.lsn
    return child


async def test_a_fork_at_any_lsn_goes_its_own_way_also_with_an_az_lost(tmp_path: Path) -> None:
    async with running(tmp_path, groups=2) as cluster:
        parent = await cluster.open()
        ends = [await write(parent, number) for number in range(8)]
        present = await opened(cluster, Target(), written_lsn=parent.vdl)
        assert present.vdl == ends[-1]
        await cluster.stop("a1", "a2")
        past = await opened(cluster, Target(ends[4] + 8))
        assert past.vdl == ends[4]
        before = {child: await parent.read_pages(RANGES, child.vdl) for child in (past, present)}
        for child in (past, present):
            assert await child.read_pages(RANGES) == before[child]
        await write(parent, 30)
        await write(past, 41)
        assert await past.read_pages(RANGES, ends[4]) == before[past]
        assert await present.read_pages(RANGES) == before[present]
        assert await past.read_pages(RANGES) != before[past]
        # Those that were away have nothing of it, and the parent is as it was.
        await cluster.start("a1", "a2")
        assert past.spec.volume_id.bytes not in cluster.servers["a1"].node.volumes
        assert (await parent.read_pages(RANGES, ends[4])) == before[past]


async def test_a_copy_that_missed_a_recovery_is_not_forked(tmp_path: Path) -> None:
    """It may have what never happened at or below the origin."""
    async with running(tmp_path, gossip_interval_s=3600.0) as cluster:
        first = await cluster.open()
        await write(first, 0)
        await cluster.stop("c1", "c2")
        second = await cluster.open()
        await write(second, 3)
        await cluster.start("c1", "c2")
        spec, _ = await fork(cluster.spec, uuid.uuid4(), cluster.addresses, Target(), written_lsn=second.vdl)
        has = {node for node in NODES if spec.volume_id.bytes in cluster.servers[node].node.volumes}
        behind = {n for n in NODES if cluster.segment(n).meta.epochs.installed_epoch < second.epoch}
        assert has >= set(NODES) - {"c1", "c2"}
        assert not has & behind


async def test_with_too_few_nodes_nothing_can_be_forked(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        parent = await cluster.open()
        await write(parent, 0)
        await cluster.stop("a1", "a2", "b1")
        with pytest.raises(QuorumLostError, match="too few nodes forked"):
            await fork(cluster.spec, uuid.uuid4(), cluster.addresses, Target(), written_lsn=parent.vdl, timeout_s=1)
        await cluster.stop("b2")
        with pytest.raises(QuorumLostError, match="only 2 of the 6 copies"):
            await fork(cluster.spec, uuid.uuid4(), cluster.addresses, Target(), timeout_s=1)


async def test_what_is_not_kept_is_refused_with_the_range(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        parent = await cluster.open()
        end = await write(parent, 0)
        said = rf"what can be had goes from 20.*Z \(lsn:0\) to 20.*Z \(lsn:{end}\)"
        for target in (Target(1 << 40), Target(time_us=1), Target(8)):
            with pytest.raises(OutOfRangeError, match=said):
                await fork(cluster.spec, uuid.uuid4(), cluster.addresses, target, written_lsn=end)
        spec, point = await fork(
            cluster.spec, uuid.uuid4(), cluster.addresses, Target(time_us=1 << 60), written_lsn=parent.vdl
        )
        assert point.lsn == end == spec.lineage.origin_lsn
        assert abs(datetime.now(UTC).timestamp() - point.time_us / 1e6) < scaled(60)


async def test_times_rise_with_the_log_also_when_the_next_writers_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    async with running(tmp_path) as cluster:
        ends, times_us = [], []
        for clock_s in (now_s, now_s - 3600, now_s - 7200, now_s + 10):
            monkeypatch.setattr("aurora_ray.volume.write.redo.time.time_ns", lambda: int(clock_s * 1e9))  # noqa: B023
            volume = await cluster.open()
            for number in range(2):
                ends.append(await write(volume, 3 * number))
                _, point = await fork(cluster.spec, uuid.uuid4(), cluster.addresses, Target(), written_lsn=volume.vdl)
                times_us.append(point.time_us)
        monkeypatch.undo()
        assert times_us == sorted(set(times_us))
        assert times_us[0] == int(now_s * 1e9) // 1000
        assert times_us[-2] == int((now_s + 10) * 1e9) // 1000, "a clock that is right again is gone by"
        for end, time_us in zip(ends, times_us, strict=True):
            _, point = await fork(
                cluster.spec, uuid.uuid4(), cluster.addresses, Target(time_us=time_us), written_lsn=ends[-1]
            )
            assert point.lsn == end


async def test_a_volume_with_a_parent_is_not_made_empty(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.spec = cluster.spec.__class__(
            uuid.uuid4(), PAGE, 10 << 30, (GroupPlacement(0, NODES),), Lineage(b"p" * 16, 8)
        )
        with pytest.raises(UsageError, match="forked"):
            await cluster.create()


def place(lsn: int, time_us: int, *, floor: tuple[int, int] = (0, 10), group: int = 0, vdl: int = 900) -> GroupPlace:
    return GroupPlace(group, lsn, time_us, epoch=3, vdl=vdl, floor_lsn=floor[0], floor_time_us=floor[1])


def test_the_range_is_what_four_of_six_look_back_to() -> None:
    floors = [(100, 10), (300, 30), (200, 20), (100, 10), (500, 50), (400, 40)]
    groups = [[place(800, 80, floor=floor) for floor in floors]]
    whole = whole_range([GroupPlacement(0, NODES)], groups, 950)
    assert whole == Range(300, 30, 950, 80)
    assert within(whole, Target()) == Target(950)
    assert within(whole, Target(time_us=99)) == Target(950, 99)
    for target in (Target(299), Target(951), Target(time_us=29)):
        with pytest.raises(OutOfRangeError) as caught:
            within(whole, target)
        assert describe(whole) in str(caught.value)


def test_a_copy_that_looks_back_less_far_says_nothing_of_the_target() -> None:
    """It tells its floor, which lies above: neither the flush nor a tail may be taken from it."""
    behind = place(600, 60, floor=(600, 60))
    groups = [[place(400, 40), place(400, 40), behind], [place(350, 35, group=1), place(350, 35, group=1), behind]]
    assert flush_end(groups, Target(450)) == 400
    assert flush_end(groups, Target(900, 45)) == 400
    point = point_at(groups, 400, 3, Range(0, 10, 900, 90))
    assert (point.tails, point.time_us) == (((0, 400), (1, 350)), 40)
