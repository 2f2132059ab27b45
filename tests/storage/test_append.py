"""Appending: acknowledged is on disk, refused changes nothing."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from aurora_ray.log import record as rec
from tests.storage.harness import ServerHandle, Writer


@pytest.fixture(params=[True, False], ids=["append port", "address"], autouse=True)
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerHandle, "at_append_port", request.param)


async def test_what_is_acknowledged_survives_a_restart(start):
    server = await start()
    writer = await Writer().open(server)
    batches = [writer.flush(rec.page_delta(1, n, [(0, b"%d" % n)])) for n in range(5)]
    for batch in batches:
        acked = await server.send(batch)
    assert acked == writer.lsn
    await server.restart()
    state = await server.state(writer)
    assert (state.scl, state.highest_lsn, state.installed_epoch) == (writer.lsn, writer.lsn, 1)
    assert await server.pages(writer, writer.lsn, 1, count=6) == [writer.page_at(writer.lsn, 1, n) for n in range(6)]


async def test_a_batch_behind_a_gap_is_stored_and_joins_when_the_gap_is_filled(start):
    server = await start()
    writer = await Writer().open(server)
    first, second, third = (writer.flush(rec.page_delta(1, n, [(0, b"x")])) for n in range(3))
    assert await server.send(third) == writer.lsn
    assert (await server.state(writer)).scl == 0
    await server.send(first)
    assert (await server.state(writer)).scl == writer.ends[1]
    await server.restart()
    await server.send(second)
    assert (await server.state(writer)).scl == writer.lsn
    assert await server.send(second) == writer.ends[2], "a duplicate is acknowledged again"


async def test_a_message_may_carry_several_flushes_and_groups(start):
    server = await start()
    writer = await Writer().open(server, groups=(0, 1))
    message = writer.flush(rec.page_delta(1, 0, [(0, b"a")]), rec.page_delta(2, 0, [(0, b"b")], group=1))
    message += writer.flush(rec.page_delta(1, 0, [(1, b"c")]))
    assert await server.send(message) == writer.lsn
    assert server.segment(writer, 0).scl == writer.lsn
    assert server.segment(writer, 1).scl == writer.ends[1]


def _flip(batch: bytes, at: int) -> bytes:
    return batch[:at] + bytes([batch[at] ^ 1]) + batch[at + 1 :]


@pytest.mark.parametrize(
    ("reason", "code", "says"),
    [
        ("crc", grpc.StatusCode.INVALID_ARGUMENT, "CRC"),
        ("cut", grpc.StatusCode.INVALID_ARGUMENT, "claims"),
        ("volume", grpc.StatusCode.NOT_FOUND, "no segment"),
        ("old epoch", grpc.StatusCode.FAILED_PRECONDITION, "fenced: "),
        ("new epoch", grpc.StatusCode.ABORTED, "stale: "),
        ("backlink", grpc.StatusCode.INVALID_ARGUMENT, "links back"),
        ("record", grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
    ],
)
async def test_a_refused_message_changes_nothing_and_is_counted(start, reason, code, says):
    server = await start()
    writer = await Writer(epoch=5).open(server)
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"good")])))
    before = (await server.state(writer)).SerializeToString()
    good = writer.flush(rec.page_delta(1, 1, [(0, b"also good, but in bad company")]))
    if reason == "old epoch":
        writer.epoch = 4
    elif reason == "new epoch":
        writer.epoch = 6
    elif reason == "backlink":
        writer.prev[0] = 8
    elif reason == "volume":
        writer.volume, kept = b"?" * 16, writer.volume
    record = rec.Record(99, page=3) if reason == "record" else rec.page_delta(1, 2, [(0, b"bad")])  # type: ignore[arg-type]
    (bad,) = writer.flush(record)
    if reason == "crc":
        bad = _flip(bad, 100)
    elif reason == "cut":
        bad = bad[:-8]
    elif reason == "volume":
        writer.volume = kept
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.send([*good, bad])
    assert refused.value.code() == code
    assert says in refused.value.details()
    assert (await server.state(writer)).SerializeToString() == before
    await server.restart()
    after = await server.state(writer)
    assert (after.scl, after.highest_lsn) == (writer.ends[1], writer.ends[1])


@pytest.mark.allowed_logs("the disk is (no longer )?full")
async def test_a_full_disk_refuses_and_recovers(start):
    free = {"bytes": 1 << 40}
    server = await start(server={"free_bytes": lambda _: free["bytes"]}, disk_reserve_bytes=1 << 20)
    writer = await Writer().open(server)
    batches = writer.flush(rec.page_delta(1, 0, [(0, b"x")]))
    free["bytes"] = 1000
    server.server.node.check_disk()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.send(batches)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.segment(writer).highest_lsn == 0
    free["bytes"] = 1 << 40
    server.server.node.check_disk()
    assert await server.send(batches) == writer.lsn


@pytest.mark.allowed_logs("a write failed and its segments are reopened", "the disk is no longer full")
async def test_a_write_that_fails_reopens_the_segment(start, monkeypatch):
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"x")])))

    def fail(_: bool) -> None:
        raise OSError("no space left on device")

    segment = server.segment(writer)
    monkeypatch.setattr(segment.store, "sync", fail)
    second = writer.flush(rec.page_delta(1, 1, [(0, b"y")]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.send(second)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert segment.closed
    server.server.node.check_disk()
    assert await server.send(second) == writer.lsn
    assert (await server.state(writer)).scl == writer.lsn


async def test_redo_that_layers_cannot_keep_up_with_is_acknowledged_later(start) -> None:
    """What waits for its layers is bounded by slowing writers down; they are never kept waiting for good."""
    server = await start(layer_bytes=1 << 30, idle_s=3600.0, tail_bytes_max=2000)
    writer = await Writer().open(server)
    began_s = time.monotonic()
    await server.send(writer.flush(rec.page_delta(1, 0, [(0, b"x" * 900)])))
    assert time.monotonic() - began_s < 1, "little waits yet"
    more = writer.flush(*(rec.page_delta(1, page, [(0, b"y" * 900)]) for page in range(3)), vdl=writer.lsn)
    began_s = time.monotonic()
    assert await server.send(more) == writer.lsn
    assert 2.5 < time.monotonic() - began_s < 10, "nothing makes layers here: only the longest wait ends it"
    waiting = asyncio.create_task(server.send([writer.heartbeat()]))
    assert await waiting == writer.lsn, "news without redo are answered at once"
    more = writer.flush(rec.page_delta(1, 9, [(0, b"z" * 900)]), vdl=writer.lsn)
    waiting = asyncio.create_task(server.send(more))
    await asyncio.sleep(0.5)  # not synchronisation: nothing is to happen meanwhile
    assert not waiting.done()
    began_s = time.monotonic()
    assert await server.coalesce(writer)
    assert await waiting == writer.lsn
    assert time.monotonic() - began_s < 2, "there is room again"
    assert server.server.node.counters["held_acknowledgements"] == 2
