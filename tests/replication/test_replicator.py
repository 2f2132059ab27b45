"""A copy in another region is a prefix of the primary, byte for byte at the same LSNs, whatever breaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import DivergedError, FencedError, OutOfRangeError
from aurora_ray.replication.replicator import Order, Phase, Replicator
from aurora_ray.replication.succession import epochs_of, generation_of, next_generation
from aurora_ray.volume.spec import GroupPlacement
from tests.replication.regions import (
    Copy,
    Scribe,
    caught_up,
    content_of,
    ended,
    log_of,
    replicating,
    two_regions,
)
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import NODES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# gRPC's server, when it is stopped with streams open
pytestmark = pytest.mark.allowed_logs("due to server stop")


@pytest.fixture
async def regions(tmp_path: Path) -> AsyncIterator[tuple[Copy, Copy]]:
    async with two_regions(tmp_path) as both:
        yield both


async def same(primary: Copy, copy: Copy, after_lsn: int, lsn: int) -> None:
    """The logs say the same from `after_lsn` on, and hold the same at `lsn`."""
    assert await log_of(copy, after_lsn, lsn) == await log_of(primary, after_lsn, lsn)
    assert await content_of(copy, lsn) == await content_of(primary, lsn)


async def test_a_copy_says_the_same_at_the_same_lsns_and_grows_with_the_primary(regions: tuple[Copy, Copy]) -> None:
    primary, copy = regions
    volume = await primary.cluster.open()
    scribe = Scribe(volume, seed=1)
    await scribe.write(20)
    async with replicating(primary, copy) as replicator:
        await caught_up(replicator, await scribe.write(20))
        # Nobody tells the replicator.
        primary.cluster.spec = await volume.members.add_group(GroupPlacement(1, NODES))
        scribe.groups.append(1)
        lsn = await scribe.write(60)
        await caught_up(replicator, lsn)
        status = replicator.status()
        assert status.phase is Phase.FOLLOWING
        assert status.lag.lag_bytes == 0
        assert copy.spec_count == 1, "the new group is noted"
        assert 0 < status.lag.p50_ms <= status.lag.p99_ms < 1e3 * scaled(5)
        await same(primary, copy, 0, lsn)
    for node in NODES:  # epochs, backlinks and what is durable are the copy's own
        segment = copy.cluster.segment(node)
        assert segment.vdl <= lsn
        assert generation_of(segment.meta.epochs.installed_epoch) == 0


async def test_a_replicator_goes_on_where_the_last_one_ended_and_nodes_may_fail(regions: tuple[Copy, Copy]) -> None:
    primary, copy = regions
    volume = await primary.cluster.open()
    scribe = Scribe(volume, seed=2)
    for lost in ("a1", "b1", "c1"):
        async with replicating(primary, copy) as replicator:
            lsn = await scribe.write(10)
            await caught_up(replicator, lsn)
            await copy.cluster.stop(lost)
            await primary.cluster.stop(lost)
            lsn = await scribe.write(10)
            await caught_up(replicator, lsn)
        await scribe.write(5)  # while there is no replicator
        await copy.cluster.start(lost)
        await primary.cluster.start(lost)
        await volume.update_nodes(primary.cluster.addresses)
    lsn = volume.vdl
    async with replicating(primary, copy) as replicator:
        await caught_up(replicator, lsn)
        await same(primary, copy, 0, lsn)


async def test_a_replaced_replicator_appends_no_more(regions: tuple[Copy, Copy]) -> None:
    primary, copy = regions
    scribe = Scribe(await primary.cluster.open(), seed=3)
    old = Replicator(Order(primary.side, copy.side, primary.held, copy.held), copy)
    running_it = asyncio.create_task(old.run())
    await caught_up(old, await scribe.write(5))
    async with replicating(primary, copy) as new:
        lsn = await scribe.write(20)
        await caught_up(new, lsn)
        with pytest.raises(FencedError):
            await asyncio.wait_for(running_it, scaled(20))
        assert "fenced" in old.status().trouble
        await same(primary, copy, 0, lsn)


async def test_the_lag_grows_while_the_primary_is_silent_and_while_the_copy_lacks_a_quorum(
    regions: tuple[Copy, Copy],
) -> None:
    primary, copy = regions
    scribe = Scribe(await primary.cluster.open(), seed=4)
    async with replicating(primary, copy) as replicator:
        await caught_up(replicator, await scribe.write(5))
        await copy.cluster.stop("a1", "b1", "c1")
        lsn = await scribe.write(5)
        await poll_until(lambda: replicator.status().lag.lag_ms > 300, scaled(20), what="the copy lags")
        assert replicator.status().lag.lag_bytes > 0
        await copy.cluster.start("a1", "b1", "c1")
        await replicator.update_nodes(primary.cluster.addresses, copy.cluster.addresses)
        await caught_up(replicator, lsn)
        await poll_until(lambda: replicator.status().lag.lag_ms == 0, scaled(20), what="the copy has caught up")
        await primary.cluster.stop(*NODES)
        await poll_until(lambda: replicator.status().lag.lag_ms > 2500, scaled(20), what="the silence is told")
        assert replicator.status().lag.lag_bytes == 0, "nothing is known to be missing"


async def test_a_promoted_copy_shuts_out_replicators_and_knows_the_old_primarys_tail(
    regions: tuple[Copy, Copy],
) -> None:
    primary, copy = regions
    volume = await primary.cluster.open(epochs=epochs_of(0))
    scribe = Scribe(volume, seed=5)
    async with replicating(primary, copy) as replicator:
        common = await scribe.write(10)
        await caught_up(replicator, common)
    tail = await scribe.write(7)  # nobody else has this

    later = next_generation(0, slot=1)
    promoted = await copy.cluster.open(epochs=epochs_of(later))
    assert promoted.vdl == common
    succession = copy.held.promoted(promoted.vdl, later)
    copy.held = succession
    assert isinstance(await ended(primary, Copy(copy.cluster)), FencedError), "a replicator of the time before"
    written = await Scribe(promoted, seed=6).write(10)

    found = await ended(copy, primary)
    assert isinstance(found, DivergedError)
    assert found.common_lsn == common, "and the tail of what was the primary is known from what it shares"
    assert tail > common
    assert written > common
    with pytest.raises(FencedError):  # whoever asked has fenced the old primary's writer
        await scribe.write(1)
    with pytest.raises(FencedError):
        await primary.cluster.open(epochs=epochs_of(0))


async def test_a_new_copy_begins_with_pages_and_goes_on_with_the_log(regions: tuple[Copy, Copy]) -> None:
    primary, copy = regions
    volume = await primary.cluster.open()
    grown = await volume.members.add_group(GroupPlacement(1, NODES))
    scribe = Scribe(volume, seed=7)
    scribe.groups.append(1)
    copy.first_lsn = await scribe.write(150)
    await scribe.write(10)
    async with replicating(primary, copy) as replicator:  # which is told of one group only
        primary.cluster.spec = grown
        lsn = await scribe.write(20)
        await caught_up(replicator, lsn)
        progress = replicator.status().seed
        assert progress.extents_done == progress.extents_total > 0
        assert 0 < progress.redo_bytes < copy.first_lsn
        assert await content_of(copy, copy.first_lsn) == await content_of(primary, copy.first_lsn)
        await same(primary, copy, copy.first_lsn, lsn)


async def test_nobody_follows_a_copy_from_below_where_it_begins(regions: tuple[Copy, Copy]) -> None:
    primary, copy = regions
    lsn = await Scribe(await primary.cluster.open(), seed=8).write(3)
    copy.first_lsn = lsn + 8
    found = await ended(copy, primary)
    assert isinstance(found, OutOfRangeError)
    assert "begin the copy anew" in str(found)
