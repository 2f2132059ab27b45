"""A writer of a backup dies after any effect, or is overtaken: all that the newest manifest names is there."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from obstore.store import MemoryStore

from aurora_ray.backup.bucket import Bucket
from aurora_ray.backup.collect import collect
from aurora_ray.backup.manifest import CHUNKS_MAX, MANIFESTS_KEPT, Chunk, Image, Manifest, image_name, span_name
from aurora_ray.backup.source import Hold
from aurora_ray.backup.store import Store, claim, new_owner
from aurora_ray.errors import DivergedError, FencedError, OutOfRangeError
from tests.backup.support import SUBJECT

if TYPE_CHECKING:
    from collections.abc import Iterable


class KilledError(Exception):
    pass


class Mortal(Bucket):
    """Counts what it does; dies after so many effects."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), None, "memory")
        self.effects = 0
        self.dies_at = 0

    def _did(self) -> None:
        self.effects += 1
        if self.effects == self.dies_at:
            raise KilledError

    async def put(self, name: str, data: bytes) -> None:
        await super().put(name, data)
        self._did()

    async def put_new(self, name: str, data: bytes) -> bool:
        made = await super().put_new(name, data)
        self._did()
        return made

    async def delete(self, names: Iterable[str]) -> None:
        for name in names:
            await super().delete([name])
            self._did()


def begun(owner: str) -> Manifest:
    return Manifest(1, owner, "volume", SUBJECT, 100, begun_s=1.0)


class Writer:
    """What a stream does to a bucket, without the volume."""

    def __init__(self, bucket: Bucket) -> None:
        self.owner = new_owner()
        self.store = Store(bucket, "fleet/volume", None)
        self.now: Manifest

    async def open(self) -> None:
        self.now = await claim(self.store, begun(self.owner))

    async def put(self, wanted: Manifest) -> None:
        following = wanted.next(self.owner)
        await self.store.put_manifest(following)
        self.now = following

    async def chunk(self) -> None:
        start = self.now.end_lsn
        name = span_name("log", start, start + 10, self.owner)
        nbytes = await self.store.put(name, b"log")
        chunk = Chunk(start, start + 10, 1, start + 1, start + 10, nbytes, name)
        await self.put(self.now.with_chunk(chunk))

    async def image(self) -> None:
        """Uses an object of the image before, too."""
        lsn = self.now.end_lsn
        data, index = image_name(lsn, self.owner, "000000"), image_name(lsn, self.owner, "index")
        await self.store.put(data, b"pages")
        await self.store.put(index, b"index")
        older = self.now.images[-1].objects[-1:] if self.now.images else ()
        await self.put(self.now.with_image(Image(lsn, lsn, 1, index, (*older, (data, 5)), 5)))

    async def expire(self) -> list[str]:
        await self.put(self.now.expired(self.now.end_us - 35))
        return await collect(self.store, self.now)

    async def work(self) -> None:
        await self.open()
        for _ in range(3):
            await self.chunk()
            await self.chunk()
            await self.image()
        await self.expire()
        await self.chunk()


async def work_twice(bucket: Bucket) -> None:
    await Writer(bucket).work()
    await Writer(bucket).work()


async def check(store: Store) -> None:
    """All that counts is there, and a moment within retention can be restored."""
    now = await store.newest()
    if now is None:
        return
    there = {each.name for each in await store.listing()}
    assert now.objects() <= there
    for first, last in now.ranges():
        assert await store.chunks(now, first, last) or first == last


async def test_whatever_effect_is_the_last_nothing_named_is_missing_and_nothing_else_stays() -> None:
    whole = Mortal()
    await work_twice(whole)
    assert whole.effects > 40
    for at in range(1, whole.effects + 1):
        bucket = Mortal()
        bucket.dies_at = at
        with pytest.raises(KilledError):
            await work_twice(bucket)
        await check(Store(bucket, "fleet/volume", None))
        last = Writer(bucket)
        await last.work()
        await last.expire()
        await check(last.store)
        names = {each.name for each in await last.store.listing()}
        left = {name for name in names if not name.startswith("manifest/")}
        assert left == last.now.objects()
        assert len(names - left) <= MANIFESTS_KEPT


async def test_who_was_overtaken_adds_and_removes_nothing() -> None:
    bucket = Mortal()
    old, new = Writer(bucket), Writer(bucket)
    await old.work()
    await new.open()
    before = await new.store.listing()
    for late in (old.chunk, old.image, old.expire):
        with pytest.raises(FencedError):
            await late()
    with pytest.raises(FencedError):
        await collect(old.store, old.now)
    assert {each.name for each in before} <= {each.name for each in await new.store.listing()}
    await new.chunk()
    await check(new.store)


async def test_nothing_is_removed_while_a_restore_is_under_way_until_it_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer(Mortal())
    await writer.work()
    await writer.work()
    await writer.chunk()
    await writer.image()
    hold = Hold(writer.store, 10)
    await hold.take()
    assert await writer.expire() == []
    await hold.release()
    assert await writer.expire() != []
    forgotten = Hold(writer.store, 10)
    await forgotten.take()
    await writer.chunk()
    await writer.image()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10_000)
    assert await writer.expire() != []
    await forgotten.release()


def test_a_manifest_knows_what_can_be_restored() -> None:
    empty = begun("a")
    one = empty.with_chunk(Chunk(10, 20, 1, 1, 2, 1, "x"))
    with pytest.raises(OutOfRangeError, match="nothing can be restored yet"):
        one.image_for(20)
    one = one.with_image(Image(10, 1, 1, "i", (), 0))
    with pytest.raises(DivergedError):
        one.with_chunk(Chunk(30, 40, 1, 1, 2, 1, "y"))
    with pytest.raises(DivergedError, match="epoch"):
        one.with_chunk(Chunk(20, 40, 0, 1, 2, 1, "y"))
    gap = one.with_chunk(Chunk(30, 40, 2, 3, 4, 1, "y"), gap=True).with_image(Image(30, 3, 2, "j", (), 0))
    assert gap.ranges() == [(10, 20), (30, 40)]
    assert gap.image_for(20).lsn == 10
    for lsn in (9, 21, 29, 41):
        with pytest.raises(OutOfRangeError, match="lsn:10 to lsn:20 and lsn:30 to lsn:40"):
            gap.image_for(lsn)
    assert gap.expired(2) == gap
    assert gap.expired(3) == replace(gap, images=gap.images[1:], chunks=gap.chunks[1:])
    assert CHUNKS_MAX > 1
