"""Pages that are brought by the hundred, for whoever knows beforehand what an engine will read."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aurora_ray.engine.image import import_records
from aurora_ray.interposer import native
from aurora_ray.log.record import Record, create, extent, page_full, size
from aurora_ray.mount import fetcher
from aurora_ray.mount.mount import MountedVolume
from tests.volume.cluster import PAGE, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.volume.read.pages import PageRange

pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")

FILES = {b"a": 700, b"b": 3}  # pages


def page_of(path: bytes, number: int) -> bytes:
    return random.Random(f"{path!r} {number}").randbytes(PAGE)


def records() -> list[Record]:
    """Two files, of one of which every tenth page was never written."""
    made: list[Record] = []
    for file_id, (path, count) in enumerate(FILES.items(), 1):
        made += [create(file_id, path), size(file_id, count * PAGE - 100)]
        made += [extent(file_id, number, 0) for number in range(-(-count // 64))]
        made += [page_full(file_id, number, page_of(path, number)) for number in range(count) if number % 10 != 7]
    return made


@pytest.fixture
async def mounted(tmp_path: Path) -> AsyncIterator[MountedVolume]:
    async with running(tmp_path / "nodes") as nodes:
        volume = await nodes.open()
        await import_records(iter(records()), volume)
        await volume.close()
        volume = await nodes.open()
        mounted = await MountedVolume.open(volume, tmp_path / "mount", writer=volume, cache_bytes=64 << 20)
        yield mounted
        await mounted.close()


async def test_what_is_absent_comes_and_what_there_is_not_is_left_out(mounted: MountedVolume) -> None:
    bring = mounted.bringer()
    wanted = [(b"a", 5, 4), (b"a", 99, 1), (b"a", 300, 200), (b"a", 690, 50), (b"b", 1, 1), (b"c", 0, 9)]
    await asyncio.gather(bring(wanted), bring([(b"a", 0, 20), (b"b", 0, 3)]))
    assert mounted.stats()["pages_fetched"] == 20 + 1 + 200 + 10 + 3
    for path, first, count in (*wanted[:-1], (b"a", 0, 20), (b"b", 0, 3)):
        content = (mounted.mount_dir / os.fsdecode(path)).read_bytes()
        for number in range(first, min(first + count, FILES[path])):
            expected = bytes(PAGE) if number % 10 == 7 else page_of(path, number)
            end = min((number + 1) * PAGE, FILES[path] * PAGE - 100)
            assert content[number * PAGE : end] == expected[: end - number * PAGE], f"page {number} of {path!r}"
    assert not any((mounted.mount_dir / "a").read_bytes()[200 * PAGE : 201 * PAGE]), "nobody wanted it"
    await bring(wanted)
    assert mounted.stats()["pages_fetched"] == 234, "all of it is here"


async def test_a_thousand_single_pages_come_in_few_reads(mounted: MountedVolume) -> None:
    counted = 0
    source = mounted._driver._source
    read = source.read_pages

    async def count(*arguments: object) -> object:
        nonlocal counted
        counted += 1
        return await read(*arguments)  # type: ignore[arg-type]

    source.read_pages = count  # type: ignore[method-assign, assignment]
    await mounted.bringer()((b"a", number, 1) for number in range(0, 700, 2))
    assert mounted.stats()["pages_fetched"] == 350
    assert counted == 3


async def test_what_an_engine_misses_does_not_wait_behind_what_somebody_foresees(
    mounted: MountedVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "_READS_AT_ONCE", 1)
    driver = mounted._driver
    source, read, reads = driver._source, driver._source.read_pages, []
    reading = asyncio.Event()

    async def note(ranges: list[PageRange], *rest: object) -> object:
        reads.append([wanted.file_id for wanted in ranges])
        reading.set()
        return await read(ranges, *rest)  # type: ignore[arg-type]

    source.read_pages = note  # type: ignore[method-assign, assignment]
    foreseen = asyncio.create_task(mounted.bringer()([(b"a", 0, 600)]))
    await reading.wait()
    missed = native.Request(slot=driver.slots_by_path()[b"b"], first=1, count=1, want=native.WANT_PAGES)
    assert await driver._fetcher.demand(missed) == 0
    await foreseen
    file_a, file_b = 1, 2
    assert [file_b in files for files in reads[:2]] == [False, True]
    assert sum(len(files) for files in reads) > 1
    assert file_a in reads[-1]


async def test_nothing_is_brought_into_a_mount_that_is_closed(mounted: MountedVolume) -> None:
    bring = mounted.bringer()
    await mounted.close()
    await bring([(b"a", 0, 1)])
