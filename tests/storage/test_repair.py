"""Epochs, annulled batches, gossip and subscriptions between real nodes."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from aurora_ray.errors import AuroraError, FencedError, NotCompleteError, OutOfRangeError, UnknownVolumeError
from aurora_ray.log import record as rec
from aurora_ray.log.batch import decode_header
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import OWNER, Writer, introduce
from tests.support.polling import poll_until

OTHER = b"p" * 16


def change(page: int, text: bytes) -> rec.Record:
    return rec.page_delta(1, page, [(0, text)])


async def test_an_epoch_is_promised_to_one_owner_and_survives_a_restart(start):
    server = await start()
    writer = await Writer().open(server)
    assert (await server.seal(writer, 7, OTHER)).promised
    await server.restart()
    refused = await server.seal(writer, 7)
    assert (refused.promised, refused.promised_epoch) == (False, 7)
    assert not (await server.seal(writer, 6)).promised
    assert (await server.seal(writer, 7, OTHER)).promised
    with pytest.raises(FencedError):
        await server.truncate(writer, [(7, 0)], OWNER)


async def test_recovery_annuls_what_lies_above_its_end(start):
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(change(0, b"durable")))
    end = writer.lsn
    await server.send(writer.flush(change(0, b"never"), vdl=0))
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0][:5] == b"never"
    sealed = (await server.seal(writer, 2)).segments[0]
    assert [batch.flush_end for batch in sealed.tail] == [end, writer.lsn]
    assert [list(batch.flush_groups) for batch in sealed.tail] == [[0], [0]]
    with pytest.raises(grpc.aio.AioRpcError) as fenced:
        await server.send(writer.flush(change(0, b"zombie")))
    assert fenced.value.details().startswith("fenced: ")
    await server.truncate(writer, [(1, 0), (2, end)])
    state = await server.state(writer)
    assert (state.scl, state.highest_lsn, state.vdl) == (end, end, end)
    assert (await server.pages(writer, 1 << 40, 1, count=1))[0][:7] == b"durable"
    writer.epoch, writer.lsn, writer.prev, writer.records = 2, end, {0: end}, writer.records[:1]
    await server.send(writer.flush(change(0, b"new")))
    await server.restart()
    assert (await server.pages(writer, writer.lsn, 1, count=1))[0][:7] == b"newable"


async def test_what_the_writer_is_about_to_send_is_not_fetched(start, monkeypatch):
    servers = [await start(f"n{i}") for i in range(2)]
    one, two = servers
    writer = await Writer().open(*servers)
    await introduce(*servers)
    first, second, third = (writer.flush(change(n, b"%d" % n)) for n in range(3))
    await one.send(first + second)
    await two.send(first)
    assert two.segment(writer).keeps_up
    await two.server.gossip.round()
    assert (await two.state(writer)).scl == writer.ends[1], "it is on its way"
    await two.server.gossip.exchange("n0", at_once=True)
    assert (await two.state(writer)).scl == writer.ends[2], "a recovery does not wait for it"
    await one.send(third)
    monkeypatch.setattr("aurora_ray.storage.segment.segment.KEEPS_UP_S", 0.0)
    await two.server.gossip.round()
    assert (await two.state(writer)).scl == writer.lsn, "a writer that is silent sends nothing any more"


async def test_gossip_fills_gaps_and_adopts_histories(start):
    servers = [await start(f"n{i}") for i in range(3)]
    one, two, three = servers
    writer = await Writer().open(*servers)
    await introduce(*servers)
    batches = [writer.flush(change(n, b"%d" % n)) for n in range(6)]
    for batch in batches:
        await one.send(batch)
    await two.send(batches[4])
    assert (await two.state(writer)).scl == 0
    await two.server.gossip.round()
    assert (await two.state(writer)).scl == writer.lsn
    assert two.server.node.counters["repaired_batches"] == 6

    end = writer.ends[3]
    for server in (one, two):
        await server.seal(writer, 2)
        await server.truncate(writer, [(1, 0), (2, end)])
    await three.send(batches[0] + batches[5])
    for _ in range(2):
        await three.server.gossip.round()
    state = await three.state(writer)
    assert (state.installed_epoch, state.promised_epoch, state.scl, state.highest_lsn) == (2, 2, end, end)


async def test_gossip_does_not_adopt_a_history_below_a_promise(start):
    one, two = await start("n1"), await start("n2")
    writer = await Writer().open(one, two)
    await introduce(one, two)
    await one.seal(writer, 2)
    await one.truncate(writer, [(2, 0)])
    await two.send(writer.flush(change(0, b"x")))
    await two.seal(writer, 3)
    await two.server.gossip.round()
    state = await two.state(writer)
    assert (state.installed_epoch, state.scl) == (1, writer.lsn)


async def test_catch_up_answers_when_there_or_at_the_deadline(start):
    one, two = await start("n1"), await start("n2")
    writer = await Writer().open(one, two)
    await introduce(one, two)
    await one.send(writer.flush(change(0, b"x")))
    request = pb.CatchUpRequest(volume=writer.volume, timeout_ms=5000)
    request.tails.add(group=0, lsn=writer.lsn)
    reply = await two.stub.CatchUp(request, timeout=10)
    assert [tail.lsn for tail in reply.scls] == [writer.lsn]
    request.tails[0].lsn += 8
    request.timeout_ms = 100
    reply = await two.stub.CatchUp(request, timeout=10)
    assert [tail.lsn for tail in reply.scls] == [writer.lsn]


async def test_a_replacement_keeps_what_only_the_old_copy_has(start):
    one, two = await start("n1", retention_s=0.0), await start("n2")
    writer = await Writer().open(one, two)
    await introduce(one, two)
    for n in range(3):
        await one.send(writer.flush(change(n, b"%d" % n)))
    await one.send([writer.heartbeat()])
    await one.coalesce(writer)
    await one.collect(writer)
    ahead = writer.flush(change(3, b"only two has this"))
    await two.send(ahead)
    await two.seal(writer, 9, OTHER)
    await two.server.gossip.round()
    await two.copied()
    state = await two.state(writer)
    assert (state.scl, state.promised_epoch, state.installed_epoch) == (writer.lsn, 9, 1)
    await two.restart()
    expected = [writer.page_at(writer.lsn, 1, n) for n in range(4)]
    assert await two.pages(writer, writer.lsn, 1, count=4) == expected
    assert not (await two.seal(writer, 9)).promised


async def test_a_subscription_carries_only_what_is_durable_in_order(start):
    server = await start()
    writer = await Writer().open(server)
    first, second = writer.flush(change(0, b"a")), writer.flush(change(0, b"b"))
    await server.send(first + second)
    seen: list[int] = []
    told: list[int] = []

    async def follow() -> None:
        request = pb.SubscribeRequest(volume=writer.volume, group=0, after_lsn=0)
        async for chunk in server.stub.Subscribe(request):
            seen.extend(decode_header(batch).flush_end for batch in chunk.batches)
            told.append(chunk.vdl)

    task = asyncio.create_task(follow())
    await poll_until(lambda: seen == writer.ends[1:2], what="the first, durable by the second's VDL")
    assert told[-1] == writer.ends[1]
    await server.send([writer.heartbeat()])
    await poll_until(lambda: seen == writer.ends[1:], what="the second, durable by a heartbeat")
    await server.send(writer.flush(change(0, b"c")))
    await server.send([writer.heartbeat()])
    await poll_until(lambda: seen == writer.ends[1:] and told[-1] == writer.lsn)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, AuroraError):
        await task


async def test_reads_and_subscriptions_below_the_floor_are_refused(start):
    server = await start(retention_s=0.0)
    writer = await Writer().open(server)
    await server.send(writer.flush(change(0, b"a")))
    await server.send([writer.heartbeat()])
    await server.coalesce(writer)
    await server.collect(writer)
    request = pb.SubscribeRequest(volume=writer.volume, group=0, after_lsn=0)
    with pytest.raises(OutOfRangeError):
        _ = [chunk async for chunk in server.stub.Subscribe(request)]
    read = pb.ReadPagesRequest(volume=writer.volume, lsn=writer.lsn, required_scl=writer.lsn + 8)
    read.ranges.add(group=0, file_id=1, first_page=0, count=1)
    with pytest.raises(NotCompleteError):
        await server.stub.ReadPages(read, timeout=10)


async def test_the_background_does_it_all_by_itself(start):
    one = await start("n1", layer_bytes=2000, background_interval_s=0.01, retention_bytes=4000, gossip_interval_s=0.02)
    two = await start("n2", layer_bytes=2000, background_interval_s=0.01, retention_bytes=4000, gossip_interval_s=0.02)
    writer = await Writer().open(one, two)
    await introduce(one, two)
    for n in range(60):
        await one.send(writer.flush(change(n % 5, b"%d" % n * 50)))
    await one.send([writer.heartbeat()])
    await poll_until(lambda: one.segment(writer).meta.floor_lsn > 0, what="the floor has risen")
    await poll_until(lambda: two.segment(writer).scl == writer.lsn, what="the second node has caught up")
    expected = [writer.page_at(writer.lsn, 1, n) for n in range(5)]
    for server in (one, two):
        assert await server.pages(writer, writer.lsn, 1, count=5) == expected
    assert one.server.node.counters["background_errors"] == two.server.node.counters["background_errors"] == 0


async def test_a_dropped_volume_is_gone(start):
    server = await start()
    writer = await Writer().open(server)
    await server.send(writer.flush(change(0, b"a")))
    await server.stub.DropVolume(pb.DropVolumeRequest(volume=writer.volume), timeout=10)
    await server.restart()
    with pytest.raises(UnknownVolumeError):
        await server.state(writer)
