"""Who is admitted and who is believed: the secret on both sides, over real connections."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aurora_ray.errors import ConfigurationError, StorageError
from aurora_ray.rpc import channel as channel_module
from aurora_ray.rpc import stream_client, stream_server
from aurora_ray.rpc.admission import PROOF_KEY, Caller, Doorkeeper, Holder, ImpostorError, Proof, Secret
from aurora_ray.rpc.channel import bind, make_server, open_channel
from aurora_ray.rpc.frames import PREFACE, Kind, pack_frame
from aurora_ray.rpc.secret_file import ensure_secret, load_secret
from aurora_ray.rpc.stream_client import StreamEndedError, open_stream
from aurora_ray.rpc.stream_server import StreamServer
from tests.support.inbox import Inbox
from tests.support.polling import poll_until

OURS_TEXT, THEIRS_TEXT = "0f" * 32, "f0" * 32
OURS, THEIRS = Secret.from_text(OURS_TEXT), Secret.from_text(THEIRS_TEXT)
SAY, COUNT, STREAM = "/test.Echo/Say", "/test.Echo/Count", "/test.Echo/Stream"


class Echo:
    """A server with both kinds of doors, and what its handlers saw."""

    def __init__(self, name: str, secret: Secret) -> None:
        self.served: list[bytes] = []
        self.refused: Counter[str] = Counter()
        self.doorkeeper = Doorkeeper(name, lambda: self.refused.update(["all"]), secret)
        self.streams = StreamServer({STREAM: lambda: self}, name, self.doorkeeper)
        self.port = self.stream_port = 0

    def on_message(self, message: bytes) -> bytes:
        self.served.append(message)
        return message

    async def say(self, request: bytes, context: Any) -> bytes:
        self.served.append(request)
        if request == b"no":
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name")
        return request

    async def count(self, request: bytes, context: Any) -> None:
        self.served.append(request)
        for number in range(int(request)):
            await context.write(bytes([number]))


@asynccontextmanager
async def serving(name: str = "a-1", secret: Secret = OURS, port: int = 0) -> AsyncIterator[Echo]:
    echo = Echo(name, secret)
    server, guard = make_server(echo.doorkeeper)
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(echo.say),
        "Count": grpc.unary_stream_rpc_method_handler(echo.count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    echo.port = bind(server, "127.0.0.1", port)
    guard.door = str(echo.port)
    await server.start()
    echo.stream_port = await echo.streams.start("127.0.0.1")
    try:
        yield echo
    finally:
        await server.stop(0)
        await echo.streams.stop()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with serving() as served:
        yield served


async def test_who_proves_itself_is_served(echo: Echo) -> None:
    async with open_channel(f"127.0.0.1:{echo.port}", "a-1", OURS) as channel:
        assert await channel.unary_unary(SAY)(b"x", timeout=10) == b"x"
        assert [m async for m in channel.unary_stream(COUNT)(b"3", timeout=10)] == [b"\0", b"\1", b"\2"]
        assert [m async for m in channel.unary_stream(COUNT)(b"0", timeout=10)] == []
        with pytest.raises(StorageError, match="storage node a-1: nothing of that name"):
            await channel.unary_unary(SAY)(b"no", timeout=10)
        inbox = Inbox()
        caller = Caller("a-1", str(echo.stream_port), OURS, channel.caller.challenge)
        call = await open_stream("127.0.0.1", echo.stream_port, STREAM, inbox, caller)
        call.send_message(b"redo")
        assert await inbox.next() == b"redo"
        call.cancel()
    assert not echo.refused, "who only asks for the challenge is not refused"


@pytest.mark.parametrize("secret", [THEIRS], ids=["another fleet's"])
async def test_another_fleet_is_refused_and_changes_nothing(echo: Echo, secret: Secret) -> None:
    async with open_channel(f"127.0.0.1:{echo.port}", "a-1", secret) as channel:
        with pytest.raises(ImpostorError):
            await channel.unary_unary(SAY)(b"x", timeout=10)
        with pytest.raises(ImpostorError):
            _ = [m async for m in channel.unary_stream(COUNT)(b"3", timeout=10)]
    caller = Caller("a-1", str(echo.stream_port), secret, echo.doorkeeper.challenge)
    call = await open_stream("127.0.0.1", echo.stream_port, STREAM, Inbox(), caller)
    call.send_message(b"redo")
    assert (await call.ended()).code is grpc.StatusCode.UNAVAILABLE
    assert echo.served == []
    assert echo.refused["all"] >= 3


async def _code(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


async def test_without_a_proof_every_method_is_refused(echo: Echo) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{echo.port}") as channel:
        for metadata in ((), ((PROOF_KEY, ""),), ((PROOF_KEY, "x" * 195),), ((PROOF_KEY, "...".rjust(195, "0")),)):
            for method in (SAY, COUNT, "/test.Echo/Nothing", "/grpc.health.v1.Health/Check"):
                code = await _code(channel.unary_unary(method)(b"x", timeout=10, metadata=metadata))
                assert code is grpc.StatusCode.UNAUTHENTICATED, (method, metadata)
    assert echo.served == []
    assert echo.refused["all"] == 16


MISUSES: dict[str, Callable[[Echo], tuple[str, Proof, bytes]]] = {
    "another method": lambda e: (COUNT, caller_of(e).prove(SAY, b"1"), b"1"),
    "another request": lambda e: (SAY, caller_of(e).prove(SAY, b"x"), b"y"),
    "another server": lambda e: (SAY, caller_of(e, server="a-2").prove(SAY, b"x"), b"x"),
    "another door": lambda e: (SAY, caller_of(e, door="1").prove(SAY, b"x"), b"x"),
    "an earlier start of the server": lambda e: (SAY, caller_of(e, challenge="c" * 32).prove(SAY, b"x"), b"x"),
}


def caller_of(echo: Echo, *, server: str = "a-1", door: str = "", challenge: str = "") -> Caller:
    return Caller(server, door or str(echo.port), OURS, challenge or echo.doorkeeper.challenge)


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
async def test_a_proof_serves_for_what_it_was_made(
    echo: Echo, misuse: Callable[[Echo], tuple[str, Proof, bytes]]
) -> None:
    """What a stranger at the port of a server that ended has heard is of no use anywhere else."""
    method, proof, request = misuse(echo)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{echo.port}") as channel:
        code = await _code(channel.unary_unary(method)(request, timeout=10, metadata=(proof.entry,)))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert echo.served == []


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND])
async def test_a_stranger_at_a_servers_port_is_not_believed(code: grpc.StatusCode) -> None:
    """It promises, acknowledges, or says that somebody else is the writer: none of it counts."""
    heard: list[str] = []

    async def say(request: bytes, context: Any) -> bytes:
        heard.extend(value for key, value in context.invocation_metadata() if key == PROOF_KEY)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "fenced: a higher epoch exists")
        return request

    server = grpc.aio.server()
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Count": grpc.unary_stream_rpc_method_handler(Echo("a-1", THEIRS).count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", "a-1", OURS) as channel:
            with pytest.raises(ImpostorError, match="does not prove to be our a-1"):
                await channel.unary_unary(SAY)(b"x", timeout=10)
            with pytest.raises(ImpostorError):
                _ = [m async for m in channel.unary_stream(COUNT)(b"3", timeout=10)]
    finally:
        await server.stop(0)
    assert heard
    assert OURS_TEXT not in "".join(heard), "the secret itself is never handed out"


async def test_a_stranger_at_the_append_port_gets_no_redo(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts and acknowledges: no redo goes to it, and nothing it says counts."""
    monkeypatch.setattr(stream_client, "CONNECT_TIMEOUT_S", 0.3)
    received = bytearray()
    hello = pack_frame(Kind.SETTINGS, 0, 0)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello + pack_frame(Kind.DATA, 0, 1, b"\0\0\0\0\2ok"))
        while data := await reader.read(65536):
            received.extend(data)
        writer.close()

    stranger = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with stranger:
        port = stranger.sockets[0].getsockname()[1]
        inbox = Inbox()
        caller = Caller("a-1", str(port), OURS, echo.doorkeeper.challenge)
        with pytest.raises(StreamEndedError):
            raise await (await open_stream("127.0.0.1", port, STREAM, inbox, caller)).ended()
    assert inbox.messages.empty()
    assert OURS.raw not in received
    assert OURS_TEXT.encode() not in received


async def test_a_server_that_starts_anew_tells_its_challenge(free_port: int) -> None:
    async with open_channel(f"127.0.0.1:{free_port}", "a-1", OURS) as channel:
        for _ in range(2):
            async with serving(port=free_port) as echo:
                assert await channel.unary_unary(SAY)(b"x", timeout=10, wait_for_ready=True) == b"x"
                assert not echo.refused


async def test_connections_that_prove_nothing_cost_little(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_server, "_UNPROVED_MAX", 8)
    strangers = [await asyncio.open_connection("127.0.0.1", echo.stream_port) for _ in range(40)]
    await poll_until(lambda: len(echo.streams.connections) == 8, what="only so many are kept")
    inbox = Inbox()
    caller = Caller("a-1", str(echo.stream_port), OURS, echo.doorkeeper.challenge)
    call = await open_stream("127.0.0.1", echo.stream_port, STREAM, inbox, caller)
    call.send_message(b"redo")
    assert await inbox.next() == b"redo"
    monkeypatch.setattr(stream_server, "_UNPROVED_S", 0.05)
    late = await asyncio.open_connection("127.0.0.1", echo.stream_port)
    assert await asyncio.wait_for(late[0].read(), 10) is not None, "it is cut off"
    large = await asyncio.open_connection("127.0.0.1", echo.stream_port)
    large[1].write(PREFACE + b"\x00\x40\x01\0\0\0\0\0\1")  # announces a frame that only one of ours may send
    assert await asyncio.wait_for(large[0].read(), 10)
    for _, writer in (*strangers, late, large):
        writer.close()
    call.send_message(b"more")
    assert await inbox.next() == b"more"
    call.cancel()
    await poll_until(lambda: not echo.streams.unproved, what="they are forgotten")


async def test_connections_that_say_nothing_do_not_fill_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "connections_max", lambda: 16)
    monkeypatch.setattr(channel_module, "HANDSHAKE_TIMEOUT_S", 0.5)
    async with serving() as echo, open_channel(f"127.0.0.1:{echo.port}", "a-1", OURS) as before:
        say = before.unary_unary(SAY)
        assert await say(b"x", timeout=10) == b"x"
        strangers = [await asyncio.open_connection("127.0.0.1", echo.port) for _ in range(100)]
        assert await say(b"y", timeout=10) == b"y", "who was there is served on"
        for reader, writer in strangers:
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    while await reader.read(1000):
                        pass
            writer.close()
        async with open_channel(f"127.0.0.1:{echo.port}", "a-1", OURS) as after:
            assert await after.unary_unary(SAY)(b"z", timeout=10, wait_for_ready=True) == b"z"


def test_a_process_without_a_secret_neither_calls_nor_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_ray.rpc.admission.OURS", Holder())
    with pytest.raises(ConfigurationError, match="secret"):
        Doorkeeper("a-1")
    with pytest.raises(ConfigurationError, match="secret"):
        Caller("a-1", "1")


def test_a_secret_is_not_shown() -> None:
    shown = f"{OURS!r} {OURS} {[OURS]} {OURS.subkey('calls') != OURS.subkey('sealing')}"
    assert OURS_TEXT not in shown
    assert repr(OURS.raw)[2:20] not in shown
    assert len(hashlib.sha256(OURS.subkey("calls")).digest()) == 32


def test_the_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = ensure_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_secret(path) == load_secret(path) == secret
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_secret(path)
    path.chmod(0o600)
    for damage in ("", "abc", "z" * 64, "\N{SNOWMAN}" * 64):
        path.write_text(damage)
        with pytest.raises(ConfigurationError, match="damaged"):
            ensure_secret(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        ensure_secret(path)


async def test_calls_at_once_all_learn_the_challenge(echo: Echo) -> None:
    async with open_channel(f"127.0.0.1:{echo.port}", "a-1", OURS) as channel:
        say = channel.unary_unary(SAY)
        assert await asyncio.gather(*(say(b"%d" % n, timeout=10) for n in range(20))) == [b"%d" % n for n in range(20)]
