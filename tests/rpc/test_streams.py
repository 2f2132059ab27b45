"""gRPC streams on connections of their own: ours at both ends, and against gRPC's library at either."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest

from aurora_ray.errors import ConfigurationError
from aurora_ray.rpc import http2
from aurora_ray.rpc.admission import Proof
from aurora_ray.rpc.channel import MESSAGE_BYTES_MAX, bind, make_server
from aurora_ray.rpc.frames import Flag, Kind, pack_frame
from aurora_ray.rpc.partition import PARTY, Cut
from aurora_ray.rpc.stream_client import StreamCall, StreamEndedError, open_stream
from aurora_ray.rpc.stream_server import StreamServer
from tests.rpc.echo import DOOR, METHOD, REFUSED, caller, doorkeeper
from tests.support.inbox import TIMEOUT_S, Inbox
from tests.support.polling import poll_until

SIZES = (0, 1, 5, 16_379, 16_380, 70_000, (1 << 20) - 5, 1 << 20, 5_000_001, 40 << 20)


def library_channel(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)])


def begin(channel: Any, **options: Any) -> Any:
    """A stream by gRPC's library that proves itself."""
    return channel.stream_stream(METHOD)(timeout=TIMEOUT_S, metadata=(caller().prove(METHOD).entry,), **options)


async def echo_of_library(_: object, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        if message == b"refuse":
            await context.abort(grpc.StatusCode.ABORTED, REFUSED)
        await context.write(message)


@pytest.fixture
async def library_port() -> AsyncIterator[int]:
    server, guard = make_server(doorkeeper())
    guard.door = DOOR
    handlers = {"Stream": grpc.stream_stream_rpc_method_handler(echo_of_library)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    yield port
    await server.stop(0)


@pytest.fixture(params=["ours", "library"])
def any_port(request: pytest.FixtureRequest, server: tuple[StreamServer, int], library_port: int) -> int:
    return server[1] if request.param == "ours" else library_port


async def how_it_ended(call: StreamCall) -> StreamEndedError:
    return await asyncio.wait_for(call.ended(), TIMEOUT_S)


# ---- our client


async def test_messages_of_all_sizes_come_back_in_order(any_port: int) -> None:
    inbox = Inbox()
    call = await open_stream("127.0.0.1", any_port, METHOD, inbox, caller())
    choose = random.Random(1)
    for size in SIZES:
        messages = [choose.randbytes(size), b"between"]
        for message in messages:
            call.send_message(message)
        assert [await inbox.next() for _ in messages] == messages, size
    for number in range(3_000):  # more than any window, none of them awaited
        call.send_message(b"%d" % number * 50)
    assert [await inbox.next() for _ in range(3_000)] == [b"%d" % number * 50 for number in range(3_000)]
    call.cancel()
    assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_the_server_s_refusal_is_told(any_port: int) -> None:
    inbox = Inbox()
    call = await open_stream("127.0.0.1", any_port, METHOD, inbox, caller())
    for message in (b"a", b"refuse", b"b"):
        call.send_message(message)
    end = await how_it_ended(call)
    assert (end.code, end.details) == (grpc.StatusCode.ABORTED, REFUSED)
    assert await inbox.next() == b"a"
    assert inbox.messages.empty()


async def test_an_unknown_method(any_port: int) -> None:
    call = await open_stream("127.0.0.1", any_port, "/test.Echo/Nothing", Inbox(), caller())
    assert (await how_it_ended(call)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            await StreamServer({}, "echo", doorkeeper()).start("127.0.0.1", port)
    with pytest.raises(StreamEndedError) as caught:
        await open_stream("127.0.0.1", port, METHOD, Inbox(), caller())
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_ends(server: tuple[StreamServer, int]) -> None:
    inbox = Inbox()
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    call.send_message(b"a")
    assert await inbox.next() == b"a"
    await server[0].stop()
    assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE
    for _ in range(10):  # harmless: who sends it keeps it until it is acknowledged (asyncio would warn at the fifth)
        call.send_message(b"into the void")


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), b"\xff" * 100])
async def test_a_server_that_speaks_something_else(greeting: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with stranger:
        call = await open_stream("127.0.0.1", stranger.sockets[0].getsockname()[1], METHOD, Inbox(), caller())
        assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(http2, "KEEPALIVE_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, nobody reads from it
        call = await open_stream("127.0.0.1", silent.getsockname()[1], METHOD, Inbox(), caller())
        assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_silence_alone_ends_nothing(server: tuple[StreamServer, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "KEEPALIVE_S", 0.02)
    monkeypatch.setattr(http2, "KEEPALIVE_TIMEOUT_S", 0.5)
    inbox = Inbox()
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    pings: list[object] = []
    [connection] = server[0].connections
    connection._on_frame[Kind.PING] = lambda frame: (pings.append(frame), connection._on_ping(frame))[0]
    await poll_until(lambda: len(pings) >= 4, what="both sides ask for signs of life")
    call.send_message(b"a")
    assert await inbox.next() == b"a"
    call.cancel()


# ---- our server


async def test_the_library_s_client(server: tuple[StreamServer, int]) -> None:
    choose = random.Random(2)
    async with library_channel(server[1]) as channel:
        for _ in range(3):  # calls one after the other on one connection
            call: Any = begin(channel)
            for size in SIZES:
                message = choose.randbytes(size)
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
            assert await call.code() is grpc.StatusCode.OK
        call = begin(channel)
        await call.write(b"refuse")
        assert await call.code() is grpc.StatusCode.ABORTED
        assert await call.details() == REFUSED
        nothing: Any = channel.unary_unary("/test.Echo/Nothing")
        proof = caller().prove("/test.Echo/Nothing")
        assert await nothing(b"", timeout=TIMEOUT_S, metadata=(proof.entry,)).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_replies_that_wait_for_room_come_before_the_end(server: tuple[StreamServer, int]) -> None:
    async with library_channel(server[1]) as channel:
        call: Any = begin(channel)
        messages = [bytes([number]) * 3_000_000 for number in range(8)]
        for message in messages:
            await call.write(message)
        await call.done_writing()
        assert [reply async for reply in call] == messages
        assert await call.code() is grpc.StatusCode.OK


async def test_two_calls_at_once_take_turns(server: tuple[StreamServer, int]) -> None:
    async with library_channel(server[1]) as channel:
        first: Any = begin(channel)
        await first.write(b"1")
        assert await first.read() == b"1"
        second: Any = begin(channel)
        writing = asyncio.ensure_future(second.write(b"2"))
        await first.done_writing()
        await writing
        assert await second.read() == b"2"


async def test_messages_that_are_not_taken(server: tuple[StreamServer, int]) -> None:
    async with library_channel(server[1]) as channel:
        for options in ({}, {"compression": grpc.Compression.Gzip}):
            call: Any = begin(channel, **options)
            await call.write(bytes(2_000 if options else 1))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED if options else await call.read() == b"\0"
            call.cancel()


async def test_a_partition_breaks_what_runs_and_what_begins(
    server: tuple[StreamServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PARTY, "name", "instance-demo-1-77")
    inbox = Inbox()
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    call.send_message(b"a")
    assert await inbox.next() == b"a"
    PARTY.set_cut(Cut(frozenset({PARTY.name})))
    assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE
    PARTY.set_cut(Cut())
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    call.send_message(b"b")
    assert await inbox.next() == b"b"
    call.cancel()


async def test_somebody_else_at_the_port(server: tuple[StreamServer, int]) -> None:
    call = await open_stream("127.0.0.1", server[1], METHOD, Inbox(), caller("another"))
    end = await how_it_ended(call)
    assert (end.code, "another" in end.details) == (grpc.StatusCode.UNAVAILABLE, True)


@pytest.mark.allowed_logs("a call failed")
async def test_what_nobody_foresaw_is_told_and_logged(
    server: tuple[StreamServer, int], caplog: pytest.LogCaptureFixture
) -> None:
    call = await open_stream("127.0.0.1", server[1], METHOD, Inbox(), caller())
    call.send_message(b"fail")
    end = await how_it_ended(call)
    assert (end.code, "not foreseen" in end.details) == (grpc.StatusCode.UNKNOWN, True)
    assert "a call failed" in caplog.text


async def test_a_slow_link_is_not_taken_for_a_dead_one(
    server: tuple[StreamServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that takes much longer than the keepalive, with acknowledgements of pings stuck behind it."""
    monkeypatch.setattr(http2, "KEEPALIVE_S", 1.5)
    monkeypatch.setattr(http2, "KEEPALIVE_TIMEOUT_S", 1.0)
    reader_done = asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection("127.0.0.1", server[1])

        async def replies() -> None:
            while data := await onward.read(65536):
                writer.write(data)
            reader_done.set()

        task = asyncio.create_task(replies())
        while data := await reader.read(64 << 10):
            back.write(data)
            await asyncio.sleep(0.015)  # not synchronisation: about 4 MB a second
        back.close()
        writer.close()
        await task

    slow = await asyncio.start_server(relay, "127.0.0.1", 0, limit=64 << 10)
    async with slow:
        inbox = Inbox()
        call = await open_stream("127.0.0.1", slow.sockets[0].getsockname()[1], METHOD, inbox, caller())
        message = bytes(15 << 20)
        call.send_message(message)
        assert await inbox.next() == message
        call.cancel()
        await asyncio.wait_for(reader_done.wait(), TIMEOUT_S)


@pytest.mark.parametrize("goodbye", [pack_frame(Kind.GOAWAY, 0, 0, bytes(8)), b""])
async def test_a_server_that_leaves_with_our_messages_unread(goodbye: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    stay, told = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(Proof, "is_answered", lambda *_: True)
    hello = pack_frame(Kind.HEADERS, Flag.END_HEADERS, 1, hpack.Encoder().encode(((":status", "200"),)))

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack_frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 30)) + hello)
        await told.wait()
        writer.write(goodbye)
        if not goodbye:
            writer.write_eof()
        await stay.wait()
        writer.close()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1)
    async with stranger:
        call = await open_stream("127.0.0.1", stranger.sockets[0].getsockname()[1], METHOD, Inbox(), caller())
        call.send_message(bytes(40 << 20))
        told.set()
        assert (await how_it_ended(call)).code is grpc.StatusCode.UNAVAILABLE
        call.cancel()
        stay.set()
