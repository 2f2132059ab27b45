"""Forks on one node and among peers: content, refusals, what is shared, what goes its own way."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.errors import (
    AuroraError,
    MalformedError,
    NotCompleteError,
    OutOfRangeError,
    StaleSegmentError,
    StorageError,
    UnknownVolumeError,
    UsageError,
)
from aurora_ray.log import record as rec
from aurora_ray.storage.segment.places import at_lsn, at_time
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import PAGE_SIZE, ServerHandle, Writer, introduce

if TYPE_CHECKING:
    from collections.abc import Callable

FILE, PAGES = 7, 6


def step(writer: Writer, number: int) -> list[bytes]:
    records = [rec.create(FILE, b"file"), rec.extent(FILE, 0, 0)] if not writer.lsn else []
    records += [rec.size(FILE, PAGES * PAGE_SIZE), rec.page_full(FILE, number % PAGES, b"%d" % number * 40)]
    records += [rec.page_delta(FILE, 1, [(number % 100 * 8, b"delta %d" % number)])]
    if number % 5 == 4:
        records.append(rec.truncate(FILE, 2 * PAGE_SIZE + 100))
    return writer.flush(*records)


def order(writer: Writer, child: Writer, **other: Any) -> pb.ForkRequest:
    said: dict[str, Any] = {
        "volume": child.volume,
        "parent": writer.volume,
        "lsn": child.lsn,
        "epoch": writer.epoch,
        "tails": [pb.GroupTail(group=0, lsn=child.lsn)],
        "members": ["n1"],
        "timeout_ms": 0,
    }
    return pb.ForkRequest(**said | other)


async def forked(server: ServerHandle, writer: Writer, lsn: int) -> Writer:
    """A child that ends at `lsn`, with a writer that has opened it."""
    child = writer.fork(lsn)
    await server.stub.Fork(order(writer, child), timeout=10)
    assert (await server.seal(child, child.epoch)).promised
    await server.truncate(child, [(writer.epoch + 1, lsn), (child.epoch, lsn)])
    return child


async def check(server: ServerHandle, writer: Writer, *lsns: int) -> None:
    for lsn in lsns:
        found = await server.pages(writer, lsn, FILE, count=PAGES)
        assert found == [writer.page_at(lsn, FILE, page) for page in range(PAGES)], lsn
        assert (await server.table(writer, lsn)).pack() == writer.table_at(lsn).pack(), lsn


async def grown(server: ServerHandle, steps: int = 9) -> Writer:
    """A volume with three layers and log above them."""
    writer = await Writer().open(server)
    for number in range(steps):
        await server.send([*step(writer, number), writer.heartbeat()])
        if number % 3 == 2 and number < steps - 1:
            assert await server.coalesce(writer)
    return writer


@pytest.mark.parametrize("back", [0, 1, 3, 5, 8])
async def test_a_fork_has_its_parents_history_and_goes_its_own_way(start: Callable[..., Any], back: int) -> None:
    server = await start(retention_s=0.0, lease_s_max=0.0)
    writer = await grown(server)
    origin = writer.ends[-1 - back]
    child = await forked(server, writer, origin)
    await check(server, child, *child.ends[1:])
    for number in range(20, 23):
        await server.send([*step(writer, number), writer.heartbeat()])
        await server.send([*step(child, number + 10), child.heartbeat()])
    await check(server, writer, *writer.ends[1:])
    await check(server, child, *child.ends[1:])
    segment = server.segment(child)
    assert segment.meta.unswept == (back > 3)  # the parent had coalesced beyond
    await server.tend(child)
    assert not segment.meta.unswept
    assert segment.meta.coalesced_lsn == child.lsn
    await server.restart()
    await check(server, child, *(lsn for lsn in child.ends if lsn > server.segment(child).meta.floor_lsn))
    await server.coalesce(writer)
    await server.collect(writer)
    await check(server, child, child.lsn)
    await check(server, writer, writer.lsn)


async def test_a_layer_gives_way_to_a_fork_and_the_next_does_not(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await Writer().open(server)
    for file_id in range(FILE, FILE + 40):
        pages = [rec.page_full(file_id, page, b"%d %d " % (file_id, page) * 40) for page in range(100)]
        records = [rec.create(file_id, b"file%d" % file_id), rec.extent(file_id, 0, 0)]
        await server.send([*writer.flush(*records, rec.size(file_id, 100 * PAGE_SIZE), *pages), writer.heartbeat()])
    segment = server.segment(writer)
    segment.awaited += 1  # as if a fork waited
    await server.tend(writer)
    counters = server.server.node.counters
    assert (counters["layers_that_gave_way"], counters["layers"]) == (1, 0)
    child = writer.fork(writer.lsn)
    await server.stub.Fork(order(writer, child), timeout=10)
    await server.tend(writer)
    assert (counters["layers_that_gave_way"], counters["layers"]) == (1, 1)
    segment.awaited -= 1
    await check(server, writer, writer.lsn)
    await server.coalesce(child)
    await server.restart()
    await check(server, writer, writer.lsn)
    await check(server, child, child.lsn)


async def test_forks_of_forks_are_dropped_in_any_order(start: Callable[..., Any]) -> None:
    server = await start(graveyard_s=0.0)
    generations = [await grown(server)]
    for number in range(40, 52):
        parent = generations[-1]
        child = await forked(server, parent, parent.ends[-1 - number % 2])
        await server.send([*step(child, number), child.heartbeat()])
        generations.append(child)
    for gone in (*generations[0:12:2], *generations[-1:0:-2]):
        if gone.volume in server.server.node.volumes:
            await server.stub.DropVolume(pb.DropVolumeRequest(volume=gone.volume, reason="a test"), timeout=10)
            await server.server.node.tend_graveyard()
        for each in generations:
            if each.volume in server.server.node.volumes:
                await check(server, each, each.lsn)


async def test_a_fork_writes_little_whatever_its_parents_size(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await Writer().open(server)
    for number in range(8):
        pages = [rec.page_full(FILE, number * 500 + page, uuid.uuid4().bytes * 60) for page in range(500)]
        await server.send([*writer.flush(*pages), writer.heartbeat()])
    await server.coalesce(writer)
    await forked(server, writer, writer.lsn)
    volumes = server.config.data_dir / "volumes"
    sizes = {file: file.stat() for file in volumes.rglob("*") if file.is_file()}
    own = sum(
        stat.st_size
        for file, stat in sizes.items()
        if str(uuid.UUID(bytes=writer.volume)) not in str(file) and stat.st_nlink == 1
    )
    assert sum(stat.st_size for stat in sizes.values() if stat.st_nlink > 1) > 4 << 20
    assert own < 1 << 20


@pytest.mark.parametrize(
    ("other", "expected", "reason"),
    [
        ({"lsn": 0}, UsageError, "usage"),
        ({"volume": b"short"}, UsageError, "usage"),
        ({"parent": b"short"}, UsageError, "usage"),
        ({"tails": []}, UsageError, "usage"),
        ({"tails": [pb.GroupTail(group=0, lsn=1 << 40)]}, UsageError, "usage"),
        ({"tails": [pb.GroupTail(group=3, lsn=8)]}, UnknownVolumeError, "unknown"),
        ({"parent": b"n" * 16}, UnknownVolumeError, "unknown"),
        ({"epoch": 9}, StaleSegmentError, "stale"),
        ({"lsn": 1 << 40, "tails": [pb.GroupTail(group=0, lsn=1 << 40)]}, NotCompleteError, "incomplete"),
        ({"lsn": 8, "tails": [pb.GroupTail(group=0, lsn=8)]}, OutOfRangeError, "out_of_range"),
        ({"tails": [pb.GroupTail(group=0, lsn=8)]}, StorageError, ""),
    ],
)
@pytest.mark.allowed_logs("a call failed")
async def test_what_cannot_be_forked_is_refused_counted_and_leaves_nothing(
    start: Callable[..., Any], other: dict[str, Any], expected: type[AuroraError], reason: str
) -> None:
    server = await start(retention_s=0.0, lease_s_max=0.0)
    writer = await grown(server)
    await server.collect(writer)
    child = writer.fork(writer.lsn)
    with pytest.raises(expected):
        await server.stub.Fork(order(writer, child, **other), timeout=10)
    node = server.server.node
    assert node.counters[f"refused_{reason}"] == (1 if reason else 0)
    assert list(node.volumes) == [writer.volume]
    made = server.config.data_dir / "volumes" / str(uuid.UUID(bytes=child.volume))
    assert not made.exists() or not list(made.iterdir())
    await server.stub.Fork(order(writer, child), timeout=10)
    await server.stub.Fork(order(writer, child), timeout=10)
    again = {"lsn": writer.ends[-2], "tails": [pb.GroupTail(group=0, lsn=writer.ends[-2])]}
    with pytest.raises(UsageError, match="another parent or origin"):
        await server.stub.Fork(order(writer, child, **again), timeout=10)
    request = pb.CreateSegmentsRequest(volume=child.volume, page_size=PAGE_SIZE, groups=[0], members=["n1"])
    with pytest.raises(MalformedError, match="lineage"):
        await server.stub.CreateSegments(request, timeout=10)


async def test_a_node_that_lacks_log_fetches_it_before_it_forks(start: Callable[..., Any]) -> None:
    servers = [await start(f"n{number}", gossip_interval_s=3600.0) for number in range(1, 4)]
    writer = await Writer().open(*servers)
    for number in range(6):
        batches = step(writer, number)
        for server in servers[: 2 if number > 3 else 3]:
            await server.send(batches)
    child = writer.fork(writer.lsn)
    behind = servers[2]
    with pytest.raises(NotCompleteError):
        await behind.stub.Fork(order(writer, child), timeout=10)
    await introduce(*servers)
    await behind.stub.Fork(order(writer, child, timeout_ms=5000), timeout=10)
    await check(behind, child, child.lsn)


async def test_a_member_that_was_not_forked_is_filled_by_the_others(start: Callable[..., Any]) -> None:
    servers = [await start(f"n{number}") for number in range(1, 4)]
    writer = await Writer().open(*servers)
    members = [server.config.node_id for server in servers]
    for number in range(8):
        batches = [*step(writer, number), writer.heartbeat()]
        for server in servers:
            await server.send(batches)
    child = writer.fork(writer.ends[-2])
    for server in servers[:2]:
        await server.stub.Fork(order(writer, child, members=members), timeout=10)
    late = servers[2]
    lineage = pb.Lineage(parent=writer.volume, origin_lsn=child.lsn)
    await late.stub.CreateSegments(
        pb.CreateSegmentsRequest(volume=child.volume, page_size=PAGE_SIZE, groups=[0], members=members, lineage=lineage)
    )
    await introduce(*servers)
    tails = [pb.GroupTail(group=0, lsn=child.lsn)]
    await late.stub.CatchUp(pb.CatchUpRequest(volume=child.volume, tails=tails, timeout_ms=5000), timeout=10)
    await check(late, child, child.lsn)
    digests = [await server.digest(child, child.lsn) for server in servers]
    assert digests[0] == digests[1] == digests[2]


async def test_a_call_that_is_given_up_leaves_a_whole_fork_or_none(start: Callable[..., Any]) -> None:
    server = await start()
    writer = await grown(server)
    child = writer.fork(writer.lsn)
    call = server.stub.Fork(order(writer, child), timeout=10)
    ended = asyncio.ensure_future(call)
    await asyncio.sleep(0)  # it is on its way
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)
    await server.stub.Fork(order(writer, child), timeout=10)
    await server.restart()
    await check(server, child, child.lsn)


async def test_times_are_found_in_the_log(start: Callable[..., Any]) -> None:
    server = await start(retention_s=0.0, lease_s_max=0.0)
    writer = await grown(server)
    segment = server.segment(writer)
    for number, end in enumerate(writer.ends[1:], start=1):
        time_us = 1_000_000 + number * 1000
        assert at_time(segment, time_us) == at_lsn(segment, end) == (end, time_us)
        assert at_time(segment, time_us + 999).lsn == end
    assert at_time(segment, 1_000_999).lsn == 0
    (place,) = (await server.stub.Locate(pb.LocateRequest(volume=writer.volume, lsn=writer.ends[3] + 8))).places
    assert (place.lsn, place.time_us, place.floor_lsn, place.floor_time_us) == (writer.ends[3], 1_003_000, 0, 1_001_000)
    await server.collect(writer)
    (place,) = (await server.stub.Locate(pb.LocateRequest(volume=writer.volume, lsn=writer.lsn))).places
    assert (place.floor_lsn, place.floor_time_us) == (writer.ends[6], 1_006_000)


async def test_retention_is_kept_as_a_volume_wants_it(start: Callable[..., Any]) -> None:
    clock = [10_000.0]
    server = await start(retention_s=0.0, lease_s_max=0.0, server={"clock": lambda: clock[0]})
    writer = await grown(server)
    retention = pb.Retention(seconds=20_000, log_bytes=1 << 30)
    await server.stub.SetRetention(pb.SetRetentionRequest(volume=writer.volume, retention=retention), timeout=10)
    await server.restart()
    await server.collect(writer)
    assert server.segment(writer).meta.floor_lsn == 0
    (state,) = (await server.stub.State(pb.StateRequest(volume=writer.volume))).volumes
    assert (state.retention.seconds, state.retention.log_bytes) == (20_000, 1 << 30)
    await server.stub.SetRetention(pb.SetRetentionRequest(volume=writer.volume), timeout=10)
    await server.collect(writer)
    assert server.segment(writer).meta.floor_lsn == writer.ends[6]
