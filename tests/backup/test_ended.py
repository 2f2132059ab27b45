"""Backups of volumes that nobody writes any more: they go when their time is over, and nothing else does."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.catalogue import entries
from aurora_ray.backup.ended import end, kept_until_s, remove_over
from aurora_ray.backup.manifest import Chunk
from aurora_ray.backup.source import Hold
from aurora_ray.backup.store import Store
from tests.backup.test_collect import KilledError, Mortal, Writer, begun, check

if TYPE_CHECKING:
    from pathlib import Path

LONG_AGO_S = 1.0
PLACE = "fleet/volume"


async def written(bucket: Bucket, place: str = PLACE) -> Writer:
    """A backup with images and log, whose retention is 100 s and whose last moment is in 1970."""
    writer = Writer(bucket)
    writer.store = Store(bucket, place, None)
    await writer.work()
    return writer


async def names(bucket: Bucket) -> list[str]:
    return [each.name for each in await bucket.listing()]


async def test_one_that_has_ended_goes_when_its_time_is_over_and_its_neighbours_stay(tmp_path: Path) -> None:
    bucket = Bucket.at(str(tmp_path / "bucket"))
    places = [f"fleet/{name}" for name in ("over", "recent", "goes-on")]
    over, recent, goes_on = [(await written(bucket, place)).store for place in places]
    assert await end(over, LONG_AGO_S)
    assert not await end(over, time.time()), "once is enough"
    assert await end(recent, LONG_AGO_S, keep_s=int(time.time()) + 60)
    assert not await end(Store(bucket, "fleet/nothing", None), LONG_AGO_S)
    before = {name for name in await names(bucket) if not name.startswith(over.place)}
    assert await remove_over([over, recent, goes_on]) == [over.place]
    assert {*await names(bucket)} == before
    assert [each.store.place for each in await entries(bucket, None)] == [goes_on.place, recent.place]
    assert await remove_over([over, recent, goes_on]) == []
    for store in (recent, goes_on):
        await check(store)


async def test_whatever_effect_is_the_last_it_is_whole_or_goes_the_next_time() -> None:
    whole = Mortal()
    await end((await written(whole)).store, LONG_AGO_S)
    begin = whole.effects
    assert await remove_over([Store(whole, PLACE, None)]) == [PLACE]
    assert await names(whole) == []
    for at in range(begin + 1, whole.effects + 1):
        bucket = Mortal()
        store = (await written(bucket)).store
        await end(store, LONG_AGO_S)
        bucket.dies_at = at
        with pytest.raises(KilledError):
            await remove_over([store])
        await check(store)
        await remove_over([store])
        assert await names(bucket) == [], at


async def test_who_writes_it_after_all_has_it_back_at_whatever_moment() -> None:
    """A cluster that was brought back: its backup begins in the middle of a removal."""
    whole = Mortal()
    await end((await written(whole)).store, LONG_AGO_S)
    begin = whole.effects
    await remove_over([Store(whole, PLACE, None)])
    for at in range(begin, whole.effects + 1):
        bucket = Mortal()
        store = (await written(bucket)).store
        await end(store, LONG_AGO_S)
        if at > begin:
            bucket.dies_at = at
            with pytest.raises(KilledError):
                await remove_over([store])
        writer = Writer(bucket)
        await writer.work()
        assert not writer.now.ended_s
        assert await remove_over([store]) == []
        await check(store)
        assert writer.now.objects() <= {each.name for each in await store.listing()}


async def test_nothing_goes_under_a_restore_or_with_another_key() -> None:
    bucket = Mortal()
    store = (await written(bucket)).store
    await end(store, LONG_AGO_S)
    hold = Hold(store, 10)
    await hold.take()
    assert await remove_over([store]) == []
    await hold.release()
    assert await remove_over([store]) == [PLACE]


def test_its_time_begins_with_its_last_moment_or_its_end() -> None:
    goes_on = begun("a")
    assert kept_until_s(goes_on) is None
    ended = replace(goes_on, ended_s=1000.0)
    assert kept_until_s(ended) == 1100.0
    chunk = Chunk(0, 8, 1, 1, 5_000_000_000, 1, "log")
    assert kept_until_s(ended.with_chunk(chunk)) == 5100.0
