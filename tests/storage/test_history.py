"""Content at every LSN equals a simple replay: in the tail, after coalescing, collection, restart and copying."""

from __future__ import annotations

import random

import pytest

from aurora_ray.errors import OutOfRangeError
from aurora_ray.log import record as rec
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import PAGE_SIZE, Writer, introduce

FILES, PAGES = 4, 6


class Workload:
    """Random but legal operations on a few small files."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.live: dict[int, bytes] = {}
        self.next_id = 1
        self.seen: set[int] = set()

    def records(self) -> list[rec.Record]:
        return [record for _ in range(self.random.randint(1, 6)) for record in self._operation()]

    def _operation(self) -> list[rec.Record]:
        choose = self.random
        if len(self.live) < FILES:
            file_id, path = self.next_id, b"f%d" % self.next_id
            self.next_id += 1
            self.live[file_id] = path
            self.seen.add(file_id)
            return [rec.create(file_id, path), rec.size(file_id, PAGES * PAGE_SIZE), rec.extent(file_id, 0, 0)]
        file_id = choose.choice(sorted(self.live))
        kind = choose.random()
        page = choose.randrange(PAGES)
        if kind < 0.7:
            return [rec.page_delta(file_id, page, self._ranges())]
        if kind < 0.85:
            return [rec.page_full(file_id, page, choose.randbytes(choose.randint(0, PAGE_SIZE)))]
        if kind < 0.95:
            new_size = choose.choice([0, page * PAGE_SIZE, choose.randrange(PAGES * PAGE_SIZE)])
            return [rec.truncate(file_id, new_size), rec.size(file_id, PAGES * PAGE_SIZE)]
        return [rec.unlink(file_id, self.live.pop(file_id)), rec.drop(file_id)]

    def _ranges(self) -> list[tuple[int, bytes]]:
        ranges = []
        for _ in range(self.random.randint(1, 4)):
            offset = self.random.randrange(PAGE_SIZE)
            ranges.append((offset, self.random.randbytes(self.random.randint(1, min(200, PAGE_SIZE - offset)))))
        return ranges


async def write(server, writer: Writer, workload: Workload, flushes: int) -> None:
    message = []
    for _ in range(flushes):
        message += writer.flush(*workload.records())
    await server.send(message)
    await server.send([writer.heartbeat()])


async def check(server, writer: Writer, workload: Workload, lsns) -> None:
    for lsn in lsns:
        for file_id in sorted(workload.seen):
            expected = [writer.page_at(lsn, file_id, page) for page in range(PAGES)]
            assert await server.pages(writer, lsn, file_id, count=PAGES) == expected, (lsn, file_id)
        assert (await server.table(writer, lsn)).pack() == writer.table_at(lsn).pack(), lsn


def sample(workload: Workload, writer: Writer, floor_lsn: int, count: int) -> list[int]:
    """Flush ends, record ends and LSNs in the middle of nowhere."""
    choices = [r.lsn for r in writer.records if r.lsn >= floor_lsn] + [floor_lsn, writer.lsn]
    picked = [workload.random.choice(choices) for _ in range(count)]
    return [*picked, workload.random.randint(floor_lsn, writer.lsn), writer.lsn]


@pytest.mark.parametrize("seed", range(4))
async def test_content_at_any_lsn_equals_a_replay(start, seed):
    server = await start(retention_bytes=20_000)
    writer = await Writer().open(server)
    workload = Workload(seed)
    for step in range(6):
        await write(server, writer, workload, 8)
        await check(server, writer, workload, sample(workload, writer, server.segment(writer).meta.floor_lsn, 3))
        if step % 3 != 2:
            await server.coalesce(writer)
        await server.collect(writer)
        if step == 3:
            await server.restart()
        floor_lsn = server.segment(writer).meta.floor_lsn
        await check(server, writer, workload, sample(workload, writer, floor_lsn, 4))
    floor_lsn = server.segment(writer).meta.floor_lsn
    assert 0 < floor_lsn < writer.lsn, "the test is meant to collect something, not all"
    with pytest.raises(OutOfRangeError):
        await server.pages(writer, floor_lsn - 1, 1, count=1)


async def test_a_copied_segment_has_the_same_content_at_every_lsn(start):
    source = await start("n1", retention_bytes=10_000)
    writer = await Writer().open(source)
    workload = Workload(7)
    for _ in range(4):
        await write(source, writer, workload, 8)
        await source.coalesce(writer)
        await source.collect(writer)
    await write(source, writer, workload, 3)
    assert source.segment(writer).meta.floor_lsn > 0
    target = await start("n2")
    await Writer.open(_same_volume(writer), target)
    await introduce(source, target)
    await target.server.gossip.round()
    await target.copied()
    assert target.segment(writer).scl == writer.lsn
    floor_lsn = target.segment(writer).meta.floor_lsn
    assert floor_lsn == source.segment(writer).meta.floor_lsn
    lsns = sample(workload, writer, floor_lsn, 6)
    await check(target, writer, workload, lsns)
    await target.restart()
    await check(target, writer, workload, lsns)
    await write(target, writer, workload, 4)
    await target.coalesce(writer)
    await check(target, writer, workload, sample(workload, writer, floor_lsn, 4))


def _same_volume(writer: Writer) -> Writer:
    twin = Writer(writer.epoch)
    twin.volume = writer.volume
    return twin


async def test_old_versions_and_dropped_files_leave_the_disk(start):
    server = await start(retention_s=0.0)
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.create(1, b"f"), rec.size(1, 4 * PAGE_SIZE)))
    for round_ in range(40):
        await server.send(writer.flush(*(rec.page_full(1, n, b"%d" % round_ * 100) for n in range(4))))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        await server.collect(writer)
    store = server.segment(writer).store
    assert len(list(store.scan("pages", b""))) == 4
    assert not list(store.scan("log", b""))
    assert len(list(store.scan("tables", b""))) == 1
    await server.send(writer.flush(rec.unlink(1, b"f"), rec.drop(1)))
    for _ in range(2):
        await server.send(writer.flush(rec.mkdir(b"d%d" % writer.lsn)))
        await server.send([writer.heartbeat()])
        await server.coalesce(writer)
        await server.collect(writer)
    assert not list(store.scan("pages", b""))
    assert not list(store.scan("default", b"cut", b"cuu"))


async def test_a_read_point_holds_the_floor_until_its_lease_ends(start):
    now = {"s": 1e6}
    server = await start(retention_s=0.0, lease_s_max=10.0, server={"clock": lambda: now["s"]})
    writer = await Writer().open(server)
    now["s"] += 100
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"a")])))
    held = writer.lsn
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await _hold(server, writer, held)
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"b")])))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await server.collect(writer)
    assert server.segment(writer).meta.floor_lsn == held
    assert (await server.pages(writer, held, 1, count=1))[0][:1] == b"a"
    now["s"] += 10.1
    await server.collect(writer)
    assert server.segment(writer).meta.floor_lsn == writer.lsn


async def _hold(server, writer: Writer, lsn: int) -> None:
    request = pb.SetReadPointRequest(volume=writer.volume, holder="reader", lsn=lsn, lease_ms=3_600_000)
    await server.stub.SetReadPoint(request, timeout=10)
