"""What is remembered of pages' chains is what is stored."""

from __future__ import annotations

import pytest

from aurora_ray.errors import DiskFullError
from aurora_ray.log import record as rec
from aurora_ray.storage.disk.keys import page_key
from aurora_ray.storage.pages.versions import Versions
from aurora_ray.storage.segment import chains
from aurora_ray.storage.segment.chains import CHAIN_DELTAS_MAX, Chain, KnownChains
from tests.storage.harness import PAGE_SIZE, Writer
from tests.storage.test_history import PAGES, Workload, check, write


def test_a_page_is_known_as_it_was_put_and_its_neighbours_are_not() -> None:
    known = KnownChains()
    longest = Chain(CHAIN_DELTAS_MAX - 1, 0xFFFF)
    for page, chain in ((0, Chain(0, 0)), (1023, longest), (1024, Chain(1, 0)), (1 << 33, Chain(3, 77))):
        known.put(7, page, chain)
        assert known.get(7, page) == chain
    assert known.get(7, 1) is None
    assert known.get(8, 0) is None
    known.put(8, 0, Chain(1, 1))
    known.forget_file(7)
    assert [known.get(7, page) for page in (0, 1023, 1024, 1 << 33)] == [None] * 4
    assert known.get(8, 0) == Chain(1, 1)
    known.clear()
    assert known.get(8, 0) is None


def test_the_ranges_begun_first_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "RANGES_MAX", 2)
    known = KnownChains()
    for file_id in (1, 2, 1, 3):
        known.put(file_id, 5, Chain(file_id, 0))
        assert known.may_assume == (file_id < 3)
    assert [known.get(file_id, 5) for file_id in (1, 2, 3)] == [None, Chain(2, 0), Chain(3, 0)]
    known.clear()
    assert known.may_assume


def _compare(server, writer: Writer, workload: Workload) -> int:
    """How many pages are known; each is known right."""
    segment = server.segment(writer)
    versions, count = Versions(segment), 0
    for file_id in workload.seen:
        for page in range(PAGES):
            known = segment.chains.get(file_id, page)
            if known is not None:
                assert known == versions.newest(file_id, page, segment.meta.coalesced_lsn), (file_id, page)
                count += 1
    return count


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_known_is_what_is_stored(start, seed: int) -> None:
    server = await start(retention_bytes=20_000)
    writer = await Writer().open(server)
    workload = Workload(seed)
    count = 0
    for _ in range(12):
        await write(server, writer, workload, 4)
        await server.coalesce(writer)
        await server.collect(writer)
        count += _compare(server, writer, workload)
    assert count > 60
    await check(server, writer, workload, [writer.lsn])


async def test_a_layer_that_failed_is_not_remembered(start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.create(1, b"f"), rec.size(1, PAGE_SIZE), rec.page_full(1, 0, b"0" * 100)))
    await server.send([writer.heartbeat()])
    segment = server.segment(writer)

    async def full(_: int) -> None:
        raise DiskFullError("for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(segment.store, "flush_pages", full)
        with pytest.raises(DiskFullError):
            await server.coalesce(writer)
    assert segment.chains.get(1, 0) is None
    for number in range(CHAIN_DELTAS_MAX + 3):
        await server.send(writer.flush(rec.page_delta(1, 0, [(number, b"x")])))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        assert (await server.pages(writer, writer.lsn, 1, count=1))[0] == writer.page_at(writer.lsn, 1, 0)
    assert segment.chains.get(1, 0) == Versions(segment).newest(1, 0, segment.meta.coalesced_lsn)


async def test_a_node_that_has_just_started_assumes_and_is_right(start) -> None:
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.create(1, b"f"), rec.create(2, b"g"), rec.page_full(1, 0, b"0" * 100)))
    for number in range(2 * CHAIN_DELTAS_MAX):
        # The second page begins with a delta on nothing, that of the other file is cut off and begins anew.
        changes = [rec.page_delta(*where, [(number, b"%d" % number)]) for where in ((1, 0), (1, 1), (2, 0))]
        await server.send(writer.flush(*changes, *([rec.truncate(2, 0)] if number == 9 else [])))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        if number % 10 == 0:
            known = server.segment(writer).chains.get(1, 1)
            assert known is not None
            assert known.deltas == CHAIN_DELTAS_MAX // 2 + 1, "one more than is assumed after a start"
        if number % 10 == 9:
            await server.restart()
        for file_id in (1, 2):
            expected = [writer.page_at(writer.lsn, file_id, page) for page in range(2)]
            assert await server.pages(writer, writer.lsn, file_id, count=2) == expected
    segment = server.segment(writer)
    stored = [len([*segment.store.scan("pages", page_key(1, page, 0), page_key(1, page + 1, 0))]) for page in range(2)]
    assert stored == [2 * CHAIN_DELTAS_MAX] * 2
    chain = Versions(segment).newest(1, 0, segment.meta.coalesced_lsn)
    assert chain is not None
    assert chain.deltas < CHAIN_DELTAS_MAX


async def test_where_a_cut_hides_versions_nothing_is_assumed(start) -> None:
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.create(1, b"f"), rec.size(1, PAGE_SIZE), rec.page_full(1, 0, b"0" * 100)))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await server.send(writer.flush(rec.truncate(1, 0), rec.size(1, PAGE_SIZE)))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await server.send(writer.flush(rec.page_delta(1, 0, [(7, b"x")])))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    assert await server.pages(writer, writer.lsn, 1, count=1) == [writer.page_at(writer.lsn, 1, 0)]
    assert server.segment(writer).chains.get(1, 0) == Chain(0, 0)
