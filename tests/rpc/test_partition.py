"""A server that hears nothing from some parties: running calls break, new ones wait until it is healed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from aurora_ray.errors import NodeTimeoutError, NodeUnreachableError
from aurora_ray.rpc.admission import Doorkeeper
from aurora_ray.rpc.channel import bind, make_server, open_channel
from aurora_ray.rpc.partition import PARTY, Cut

ECHO = "/test.Echo/Say"
STREAM = "/test.Echo/Stream"
TELL = "/test.Echo/Tell"


async def _say(request: bytes, context: object) -> bytes:
    return request


async def _stream(_: object, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def _tell(request: bytes, context: Any) -> None:
    while True:
        await context.write(request)
        await asyncio.sleep(0.01)  # not synchronisation: a log that grows


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server, guard = make_server(Doorkeeper("echo"))
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(_say),
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
        "Tell": grpc.unary_stream_rpc_method_handler(_tell),
    }
    server.add_registered_method_handlers("test.Echo", handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = bind(server, "127.0.0.1", 0)
    guard.door = str(port)
    await server.start()
    yield f"127.0.0.1:{port}"
    PARTY.set_cut(Cut())
    await server.stop(0)


@pytest.fixture
def party(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(PARTY, "name", "instance-demo-1-77")
    return PARTY.name


async def test_a_muted_party_gets_no_answer_until_healed(address: str, party: str) -> None:
    async with open_channel(address, "echo") as channel:
        say: Any = channel.unary_unary(ECHO)
        assert await say(b"a", timeout=10) == b"a"
        PARTY.set_cut(Cut(frozenset({party})))
        with pytest.raises(NodeTimeoutError):
            await say(b"b", timeout=0.3)
        waiting = asyncio.ensure_future(say(b"c", timeout=10))
        PARTY.set_cut(Cut())
        assert await waiting == b"c"


async def test_running_streams_break(address: str, party: str) -> None:
    async with open_channel(address, "echo") as channel:
        caller = channel.caller
        await channel.unary_unary(ECHO)(b"", timeout=10)
    async with grpc.aio.insecure_channel(address, [("grpc.primary_user_agent", PARTY.user_agent)]) as library:
        stream: Any = library.stream_stream(STREAM)(metadata=(caller.prove(STREAM).entry,))
        await stream.write(b"a")
        assert await stream.read() == b"a"
        PARTY.set_cut(Cut(allowed=frozenset({"storage-a-1"})))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stream.read(), 10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_is_told_without_being_asked_breaks_too(address: str, party: str) -> None:
    """Of the calls that run on, a follower's of the log: it would go on hearing what it cannot ask for."""
    async with open_channel(address, "echo") as channel:
        told = aiter(channel.unary_stream(TELL)(b"a"))
        assert await anext(told) == b"a"
        PARTY.set_cut(Cut(frozenset({party})))

        async def hear() -> None:
            async for _ in told:
                pass

        with pytest.raises(NodeUnreachableError):
            await asyncio.wait_for(hear(), 10)


async def test_others_are_heard(address: str, party: str) -> None:
    PARTY.set_cut(Cut(frozenset({"instance-demo-1-78"})))
    async with open_channel(address, "echo") as channel:
        say: Any = channel.unary_unary(ECHO)
        assert await say(b"a", timeout=10) == b"a"
