"""Every storage node is lost; a new volume is made out of the bucket alone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.backup.fill import fill_volume, is_whole
from aurora_ray.backup.source import BackupSource
from aurora_ray.replication import seeding
from aurora_ray.replication.seeding import SeedProgress
from tests.backup.support import backed_up, backing_up, store_of
from tests.replication.regions import Copy, Scribe, content_of
from tests.support.timing import scaled
from tests.volume.cluster import running

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.backup.store import Store
    from tests.backup.support import Content

pytestmark = pytest.mark.allowed_logs("due to server stop")


class CutOffError(Exception):
    pass


@pytest.fixture(autouse=True)
def directories(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()


async def written(directory: Path) -> tuple[Store, int, Content, int]:
    """A backup of a cluster that is gone; an LSN, what was there then, and the last LSN."""
    async with running(directory) as cluster:
        store = store_of(cluster, str(directory.parent / "bucket"))
        scribe = Scribe(await cluster.open(), seed=7)
        async with backing_up(cluster, store) as stream:
            await backed_up(stream, await scribe.write(30))
            lsn = await scribe.write(90)
            last = await scribe.write(20)
            await backed_up(stream, last)
        return store, lsn, await content_of(Copy(cluster), lsn), last


async def test_a_volume_is_restored_when_every_node_is_lost_and_goes_on(tmp_path: Path) -> None:
    store, lsn, content, _ = await written(tmp_path / "old")
    async with running(tmp_path / "new") as cluster:
        volume = await cluster.open()
        source = await BackupSource.open(store, lsn)
        try:
            assert not is_whole(volume, lsn)
            await fill_volume(source, volume, tuple(cluster.addresses), SeedProgress())
        finally:
            await source.close()
        assert is_whole(volume, lsn)
        assert volume.vdl == lsn
        assert await content_of(Copy(cluster), lsn) == content
        later = await Scribe(volume, seed=8).write(1)
        assert later > lsn


async def test_a_restore_that_is_cut_off_anywhere_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, lsn, content, _ = await written(tmp_path / "old")
    monkeypatch.setattr(seeding, "FLUSH_BYTES", 4096)
    monkeypatch.setattr(seeding, "TABLE_FLUSH_BYTES", 64)
    async with running(tmp_path / "new") as cluster:
        ends: list[int] = []
        whole = False
        append = seeding._Seeding._append

        async def appends_once(self: Any, records: Any, end_lsn: int | None = None) -> None:
            if self in seen:
                raise CutOffError
            seen.append(self)
            await append(self, records, end_lsn)

        monkeypatch.setattr(seeding._Seeding, "_append", appends_once)
        while not whole and len(ends) < 200:
            seen: list[object] = []
            volume = await cluster.open()
            ends.append(volume.tail_lsn)
            source = await BackupSource.open(store, lsn)
            with contextlib.suppress(CutOffError):
                await fill_volume(source, volume, tuple(cluster.addresses), SeedProgress())
            await volume.durable.wait_for(volume.tail_lsn, scaled(30))
            whole = is_whole(volume, lsn)
            await source.close()
            if not whole:  # as long as it is open, the nodes hear of its end
                await volume.close()
        assert whole
        assert ends == sorted(ends)
        assert len(ends) > 3, "it was cut off"
        assert await content_of(Copy(cluster), lsn) == content


async def test_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    store, _, _, last = await written(tmp_path / "old")
    with pytest.raises(Exception, match=rf"what can be restored goes from lsn:\d+ to lsn:{last}"):
        async with asyncio.timeout(scaled(20)):
            await BackupSource.open(store, last + 1)
    assert await store.listing("holds") == []
