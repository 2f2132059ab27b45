"""Volumes that share a node: one that writes much, or whose sync takes long, holds up none of the others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from aurora_ray.log import record as rec
from aurora_ray.log.wire import aim_of, join_append
from aurora_ray.storage.server import sharing
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.storage.harness import APPEND, ServerHandle, Writer
from tests.support.polling import poll_until
from tests.support.timing import scaled

ANSWERED_S = 10.0


class Stream:
    """One writer's, to one node."""

    def __init__(self, server: ServerHandle, writer: Writer) -> None:
        self.writer = writer
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection carries one stream, as writers have it
        self._channel = grpc.aio.insecure_channel(server.append_address, own)
        call = self._channel.stream_stream(APPEND)
        self._call: Any = call(metadata=(server.append_caller.prove(APPEND).entry,))

    async def send(self, nbytes: int = 100) -> None:
        data = bytes(min(nbytes, 1000))
        records = [rec.page_delta(1, n % 50, [(0, data)]) for n in range(max(1, nbytes // 1000))]
        await self._call.write(join_append(self.writer.flush(*records)))

    async def reply(self) -> int:
        reply = await asyncio.wait_for(self._call.read(), scaled(ANSWERED_S))
        assert isinstance(reply, bytes), await self._call.details()
        return pb.AppendReply.FromString(reply).acked_lsn

    async def commit(self, nbytes: int = 100) -> None:
        await self.send(nbytes)
        while await self.reply() < self.writer.lsn:
            pass

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        with contextlib.suppress(grpc.aio.AioRpcError):  # which of the two, its status decides
            assert not isinstance(await asyncio.wait_for(self._call.read(), scaled(ANSWERED_S)), bytes)
        return await self._call.code(), await self._call.details()

    async def end(self) -> None:
        self._call.cancel()
        await self._channel.close()


class SlowSync:
    """A disk that takes its time for one segment: its syncs wait until they are let go, for half a minute at most."""

    def __init__(self, segment: Any) -> None:
        self._sync = segment.store.sync
        self.under_way, self.let_go = threading.Event(), threading.Event()
        self.count = 0
        segment.store.sync = self

    def __call__(self, flag: bool) -> object:
        self.count += 1
        self.under_way.set()
        self.let_go.wait(30)
        return self._sync(flag)


@pytest.fixture
async def pair(start: Any) -> Any:
    """A node with two volumes, each with its stream, that have just appended both."""
    server = await start()
    streams = [Stream(server, await Writer().open(server)) for _ in range(2)]
    for _ in range(2):
        for stream in streams:
            await stream.commit()
    yield server, *streams
    for stream in streams:
        await stream.end()


@pytest.fixture
def slow(pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSync]:
    monkeypatch.setattr(sharing, "THREAD_FROM_BYTES", 0)
    server, noisy, _ = pair
    slow = SlowSync(server.segment(noisy.writer))
    yield slow
    slow.let_go.set()


async def test_little_is_synced_in_the_loop_and_much_by_a_thread(pair: Any) -> None:
    server, noisy, _ = pair
    assert server.server._sharing._threads is None
    await noisy.commit(3 << 20)
    assert server.server._sharing._threads is not None


async def test_a_sync_of_one_volume_holds_up_no_other(pair: Any, slow: SlowSync) -> None:
    server, noisy, quiet = pair
    await noisy.send(1 << 20)
    await poll_until(slow.under_way.is_set, what="the sync is under way")
    for _ in range(5):
        await quiet.commit()
    assert not slow.let_go.is_set()
    assert server.segment(noisy.writer).scl == noisy.writer.ends[-2], "what is not durable does not count"
    slow.let_go.set()
    assert await noisy.reply() == noisy.writer.lsn
    assert server.segment(noisy.writer).scl == noisy.writer.lsn


async def test_what_comes_during_a_sync_is_synced_together(pair: Any, slow: SlowSync) -> None:
    _, noisy, _ = pair
    await noisy.send()
    await poll_until(slow.under_way.is_set, what="the sync is under way")
    for _ in range(10):
        await noisy.send()
    await poll_until(lambda: len(pair[0].server._sharing._turns._queues.get(noisy.writer.volume, ())) == 10)
    slow.let_go.set()
    acked = [await noisy.reply() for _ in range(11)]
    assert acked == noisy.writer.ends[-11:], "each is answered, in order"
    assert slow.count == 2


async def test_a_seal_during_a_sync_has_it_refused_and_it_is_told_to_the_recovery(pair: Any, slow: SlowSync) -> None:
    server, noisy, _ = pair
    await noisy.send()
    await poll_until(slow.under_way.is_set, what="the sync is under way")
    sealed = await server.seal(noisy.writer, 2)
    assert sealed.promised
    assert [batch.flush_end for batch in sealed.segments[0].tail][-1] == noisy.writer.lsn, "it was written before"
    slow.let_go.set()
    code, says = await noisy.refusal()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "fenced" in says
    assert server.segment(noisy.writer).scl == noisy.writer.ends[-2]


async def test_a_volume_that_is_dropped_during_a_sync_harms_no_other(pair: Any, slow: SlowSync) -> None:
    server, noisy, quiet = pair
    await noisy.send()
    await poll_until(slow.under_way.is_set, what="the sync is under way")
    await server.stub.DropVolume(pb.DropVolumeRequest(volume=noisy.writer.volume, reason="a test"), timeout=10)
    slow.let_go.set()
    await noisy.refusal()
    await quiet.commit()


@pytest.mark.allowed_logs("a write failed and its segments are reopened")
async def test_a_failed_sync_refuses_all_that_waited_for_it_and_the_segment_goes_on(pair: Any) -> None:
    server, noisy, quiet = pair
    segment = server.segment(noisy.writer)

    def fail(_: bool) -> None:
        raise OSError("the disk is in a bad mood")

    segment.store.sync = fail
    await noisy.send()
    code, says = await noisy.refusal()
    assert (code, "bad mood" in says) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    await quiet.commit()
    again = Stream(server, noisy.writer)
    await again.commit()
    await again.end()


async def test_who_sends_too_much_is_not_read_from_until_it_was_taken(
    pair: Any, slow: SlowSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "WAITING_BYTES_MAX", 64 << 10)
    server, noisy, quiet = pair
    connections = server.server._append_server.connections
    before_lsn = noisy.writer.lsn
    sending = asyncio.ensure_future(_send_all(noisy, 40, 32 << 10))
    await poll_until(lambda: any(each._deaf for each in connections), what="one is not read from")
    waiting = server.server._sharing._turns._queues.get(noisy.writer.volume, ())
    assert sum(nbytes for _, nbytes in waiting) < (64 << 10) + (32 << 20), "what had come already is kept"
    await quiet.commit()
    slow.let_go.set()
    await sending
    while await noisy.reply() < noisy.writer.lsn:
        pass
    assert noisy.writer.lsn > before_lsn
    assert not any(each._deaf for each in connections)


async def _send_all(stream: Stream, count: int, nbytes: int) -> None:
    for _ in range(count):
        await stream.send(nbytes)


async def test_a_stream_that_ends_is_answered_before(pair: Any, slow: SlowSync) -> None:
    _, noisy, _ = pair
    await noisy.send()
    await noisy._call.done_writing()
    await poll_until(slow.under_way.is_set, what="the sync is under way")
    slow.let_go.set()
    assert await noisy.reply() == noisy.writer.lsn
    assert await noisy._call.code() is grpc.StatusCode.OK


async def test_a_volume_alone_is_served_in_the_loop(start: Any) -> None:
    server = await start()
    stream = Stream(server, await Writer().open(server))
    for _ in range(20):
        await stream.commit()
    assert server.server._sharing._threads is None, "no hop to a thread"
    await stream.end()


def test_a_message_says_for_which_volume_it_is() -> None:
    writer = Writer()
    assert aim_of(join_append([writer.heartbeat()])) == (writer.volume, False)
    for nbytes in (0, 10, 300, 100_000):
        batches = writer.flush(rec.page_full(1, 0, bytes(nbytes)))
        assert aim_of(join_append(batches)) == (writer.volume, True)
    for message in (b"", b"\x0a", b"\x0a\x80", join_append([b"short"])):
        assert aim_of(message) == (b"", False)
