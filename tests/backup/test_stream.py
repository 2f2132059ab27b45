"""What is backed up can be restored at every flush, whatever broke meanwhile."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.backup.stream import BackupStream
from aurora_ray.errors import FencedError, OutOfRangeError
from aurora_ray.log.record import create, extent, page_full, size
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.spec import GroupPlacement
from tests.backup.support import (
    QUICK,
    SUBJECT,
    WEEK_S,
    Content,
    backed_up,
    backing_up,
    faster,
    restored,
    store_of,
)
from tests.replication.regions import Copy, Scribe, content_of
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import NODES, PAGE, Cluster, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# gRPC's server, when it is stopped with streams open
pytestmark = pytest.mark.allowed_logs("due to server stop")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    (tmp_path / "nodes").mkdir()
    async with running(tmp_path / "nodes") as cluster:
        yield cluster


async def truth(cluster: Cluster, lsn: int) -> Content:
    return await content_of(Copy(cluster), lsn)


async def test_every_flush_can_be_restored_also_of_groups_that_came_later(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    store = store_of(cluster, str(tmp_path / "bucket"))
    scribe = Scribe(volume, seed=1)
    first = await scribe.write(20)
    async with backing_up(cluster, store) as stream:
        await backed_up(stream, first)
        lsns = [await scribe.write(1) for _ in range(10)]
        cluster.spec = await volume.members.add_group(GroupPlacement(1, NODES))
        scribe.groups.append(1)
        lsns += [await scribe.write(1) for _ in range(60)]
        await backed_up(stream, lsns[-1])
        status = stream.status()
        assert status.trouble == ""
        assert status.lag_s == 0
        for lsn in [first, *lsns[::7], lsns[-1]]:
            assert await restored(store, lsn) == await truth(cluster, lsn)


async def test_images_are_incremental_and_chunks_move_to_the_catalogue(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    store = store_of(cluster, str(tmp_path / "bucket"))
    still = random.Random(1).randbytes(PAGE - 8)
    pages = [page_full(900, number, still[number:], group=0) for number in range(40)]
    await volume.append([create(900, b"still"), extent(900, 0, 0), size(900, 40 * PAGE), *pages], scaled(30))
    scribe = Scribe(volume, seed=2)
    async with backing_up(cluster, store, rules=faster(image_log_bytes=(20_000, 20_000))) as stream:
        lsn = 0
        for _ in range(12):
            lsn = await scribe.write(25)
            await backed_up(stream, lsn)
        now = await store.present()
        assert len(now.images) > 3
        assert now.pages, "older chunks are in pages of the catalogue"
        last = now.images[-1]
        assert any(int(name.split("/")[1][:20]) < last.lsn for name, _ in last.objects), "it uses older blocks"
        for image in now.images:
            assert await restored(store, image.lsn) == await truth(cluster, image.lsn)
        assert await restored(store, lsn) == await truth(cluster, lsn)


async def test_a_stream_goes_on_where_the_last_one_ended_and_nodes_may_fail(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    store = store_of(cluster, str(tmp_path / "bucket"))
    scribe = Scribe(volume, seed=3)
    lsns = []
    for lost in ("a1", "b1", "c1"):
        async with backing_up(cluster, store) as stream:
            lsns.append(await scribe.write(10))
            await backed_up(stream, lsns[-1])
            await cluster.stop(lost)
            lsns.append(await scribe.write(10))
            await backed_up(stream, lsns[-1])
        await scribe.write(5)  # while nobody backs up
        await cluster.start(lost)
        await volume.update_nodes(cluster.addresses)
    for lsn in lsns:
        assert await restored(store, lsn) == await truth(cluster, lsn)
    assert len((await store.present()).ranges()) == 1, "without a gap"


@pytest.mark.allowed_logs(r"the backup of .* lacks a stretch")
async def test_where_log_is_gone_it_goes_on_from_the_present_and_the_gap_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await cluster.open()
    store = store_of(cluster, str(tmp_path / "bucket"))
    scribe = Scribe(volume, seed=5)
    async with backing_up(cluster, store) as stream:
        first = await scribe.write(10)
        await backed_up(stream, first)
    missed = await scribe.write(20)
    opens = Follower.open

    def finds_it_gone(*arguments: Any, **options: Any) -> Follower:
        """No copy keeps what the last backup had not put any more."""
        follower = opens(*arguments, **options)
        if options["after_lsn"] == first:
            follower._end(OutOfRangeError("it is not kept"))
        return follower

    monkeypatch.setattr(Follower, "open", finds_it_gone)
    async with backing_up(cluster, store) as stream:
        await poll_until(lambda: "missing" in stream.trouble, scaled(30), what="it says so")
        last = await scribe.write(20)
        await poll_until(
            lambda: stream.status().image_lsn > first and stream.status().lsn >= last, scaled(40), what="an image"
        )
    ranges = (await store.present()).ranges()
    assert [ranges[0][1], ranges[1][1]] == [first, last]
    assert ranges[1][0] >= missed
    for lsn in (first, ranges[1][0], last):
        assert await restored(store, lsn) == await truth(cluster, lsn)
    for lsn in (first + 1, ranges[1][0] - 1):
        with pytest.raises(OutOfRangeError, match="what can be restored"):
            await restored(store, lsn)


async def test_of_two_streams_one_ends_and_the_history_is_one(cluster: Cluster, tmp_path: Path) -> None:
    volume = await cluster.open()
    store = store_of(cluster, str(tmp_path / "bucket"))
    scribe = Scribe(volume, seed=6)
    old = BackupStream(cluster.spec, tuple(cluster.addresses), store, SUBJECT, WEEK_S, rules=QUICK)
    running_it = asyncio.create_task(old.run())
    await backed_up(old, await scribe.write(10))
    async with backing_up(cluster, store) as new:
        lsn = await scribe.write(20)
        await backed_up(new, lsn)
        with pytest.raises(FencedError):
            await asyncio.wait_for(running_it, scaled(30))
        assert await restored(store, lsn) == await truth(cluster, lsn)
