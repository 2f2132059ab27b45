"""Bytes by hand at our streams' server: what is within the protocol is understood, what is not harms nobody."""

import asyncio
import random
import struct

import grpc
import hpack
import pytest

from aurora_ray.rpc import http2
from aurora_ray.rpc.channel import MESSAGE_BYTES_MAX
from aurora_ray.rpc.frames import PREFACE, Code, Flag, Kind, pack_frame
from aurora_ray.rpc.stream_client import open_stream
from aurora_ray.rpc.stream_server import StreamServer
from tests.rpc.echo import METHOD, caller
from tests.support.inbox import TIMEOUT_S, Inbox
from tests.support.polling import poll_until

REQUEST = ((":method", "POST"), (":scheme", "http"), (":path", METHOD), ("content-type", "application/grpc"))


def request() -> tuple[tuple[str, str], ...]:
    return (*REQUEST, caller().prove(METHOD).entry)


def opening(settings: bytes = b"") -> bytes:
    headers = hpack.Encoder().encode(request())
    return PREFACE + pack_frame(Kind.SETTINGS, 0, 0, settings) + pack_frame(Kind.HEADERS, Flag.END_HEADERS, 1, headers)


async def frames_after(port: int, content: bytes) -> list[tuple[int, int, int, bytes]]:
    """What the server sends until it closes, or to the end of a call: type, flags, stream, payload."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    frames = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(content)
            while True:
                head = await reader.readexactly(9)
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                frames.append((kind, flags, stream, await reader.readexactly(int.from_bytes(head[:3], "big"))))
                if kind == Kind.GOAWAY or (kind in (Kind.HEADERS, Kind.DATA) and flags & Flag.END_STREAM):
                    return frames
    except (asyncio.IncompleteReadError, ConnectionError):
        return frames
    finally:
        writer.close()


async def trailers_after(port: int, data: bytes) -> dict[str, str]:
    """How a call ends that sends this data."""
    frames = await frames_after(port, opening() + pack_frame(Kind.DATA, 0, 1, data))
    decoder = hpack.Decoder()
    found: dict[str, str] = {}
    for kind, _, _, payload in frames:
        if kind == Kind.HEADERS:
            found.update(decoder.decode(payload))  # type: ignore[arg-type]
    return found


async def test_a_message_beyond_the_limit(server: tuple[StreamServer, int]) -> None:
    status = await trailers_after(server[1], struct.pack(">BI", 0, MESSAGE_BYTES_MAX + 1))
    assert status["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


async def test_frames_in_any_pieces(server: tuple[StreamServer, int]) -> None:
    """Padding, priorities, headers in several frames, messages across frames, bytes one at a time."""
    headers = hpack.Encoder().encode(request())
    message = struct.pack(">BI", 0, 6) + b"abcdef"
    content = PREFACE + pack_frame(Kind.SETTINGS, 0, 0)
    content += pack_frame(Kind.HEADERS, Flag.PADDED | Flag.PRIORITY, 1, b"\x02" + bytes(5) + headers[:7] + bytes(2))
    content += pack_frame(Kind.CONTINUATION, 0, 1, headers[7:9])
    content += pack_frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, headers[9:])
    content += pack_frame(Kind.PRIORITY, 0, 1, bytes(5)) + bytes(
        (0, 0, 1, 0xEE, 0, 0, 0, 0, 0, 7)
    )  # of an unknown type
    content += pack_frame(Kind.DATA, 0, 1, message[:3]) + pack_frame(
        Kind.DATA, Flag.PADDED, 1, b"\1" + message[3:9] + b"x"
    )
    content += pack_frame(Kind.DATA, Flag.END_STREAM, 1, message[9:] + message)
    reader, writer = await asyncio.open_connection("127.0.0.1", server[1])
    for byte in content:
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT_S):
        received = b""
        while received.count(message) < 2:
            received += await reader.read(1000)
    writer.close()


async def test_a_small_window_is_kept(server: tuple[StreamServer, int]) -> None:
    window = struct.pack(">HI", 4, 10)  # SETTINGS_INITIAL_WINDOW_SIZE
    message = struct.pack(">BI", 0, 20) + bytes(20)
    content = opening(window) + pack_frame(Kind.DATA, 0, 1, message)
    for _ in range(3):
        content += pack_frame(Kind.WINDOW_UPDATE, 0, 1, struct.pack(">I", 5))
    content += pack_frame(Kind.DATA, 0, 1, b"\1")  # half a message; then one that ends the call
    content += pack_frame(Kind.DATA, 0, 1, struct.pack(">I", 1))
    frames = await frames_after(server[1], content)
    sizes = [len(payload) for kind, _, _, payload in frames if kind == Kind.DATA]
    assert sum(sizes) == 25
    assert max(sizes) <= 10


BAD = {
    "nothing": b"",
    "http 1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a preface": PREFACE[:10],
    "another preface": PREFACE[:10] + b"x" * 30,
    "a frame too long": PREFACE + b"\xff\xff\xff\0\0\0\0\0\1",
    "data of no stream": PREFACE + pack_frame(Kind.DATA, 0, 0, b"abc"),
    "headers of no stream": PREFACE + pack_frame(Kind.HEADERS, Flag.END_HEADERS, 0, b""),
    "headers that are none": PREFACE + pack_frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\xff" * 50),
    "headers cut off": PREFACE + pack_frame(Kind.HEADERS, 0, 1, b"") + pack_frame(Kind.PING, 0, 0, bytes(8)),
    "headers without end": PREFACE
    + pack_frame(Kind.HEADERS, 0, 1)
    + pack_frame(Kind.CONTINUATION, 0, 1, bytes(999)) * 99,
    "a continuation of nothing": PREFACE + pack_frame(Kind.CONTINUATION, 0, 1, b""),
    "a push": PREFACE + pack_frame(Kind.PUSH_PROMISE, 0, 1, bytes(8)),
    "a ping cut short": PREFACE + pack_frame(Kind.PING, 0, 0, b"1234"),
    "a reset cut short": PREFACE + pack_frame(Kind.RST_STREAM, 0, 1, b"1"),
    "a window cut short": PREFACE + pack_frame(Kind.WINDOW_UPDATE, 0, 0, b"1"),
    "a window too large": PREFACE + pack_frame(Kind.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "settings cut short": PREFACE + pack_frame(Kind.SETTINGS, 0, 0, b"12345"),
    "a window of settings too large": PREFACE + pack_frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)),
    "padding without end": opening() + pack_frame(Kind.DATA, Flag.PADDED, 1, b"\x09abc"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
async def test_nonsense_ends_its_connection_and_no_other(server: tuple[StreamServer, int], content: bytes) -> None:
    inbox = Inbox()
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    reader, writer = await asyncio.open_connection("127.0.0.1", server[1])
    writer.write(content)
    writer.write_eof()
    async with asyncio.timeout(TIMEOUT_S):
        try:
            received = await reader.read()
        except ConnectionError:
            received = b""
    writer.close()
    if content.startswith(PREFACE):
        goaway = received[received.rindex(pack_frame(Kind.GOAWAY, 0, 0)[3:]) :]
        assert Code(int.from_bytes(goaway[10:14], "big")) is not Code.NO_ERROR
    call.send_message(b"a")
    assert await inbox.next() == b"a"
    call.cancel()
    await poll_until(lambda: not server[0].connections, what="connections are forgotten")


async def test_random_frames_harm_nobody(server: tuple[StreamServer, int]) -> None:
    choose = random.Random(3)
    for _ in range(300):
        content = bytearray(opening())
        for _ in range(choose.randrange(8)):
            payload = choose.randbytes(choose.choice((0, 1, 4, 5, 8, 9, 40)))
            kind, flags, stream = choose.randrange(12), choose.randrange(256), choose.choice((0, 1, 1, 1, 2, 3))
            content += bytes((0, 0, len(payload), kind, flags)) + stream.to_bytes(4, "big") + payload
        if choose.random() < 0.3:
            content[choose.randrange(len(PREFACE), len(content))] ^= 1 << choose.randrange(8)
        _, writer = await asyncio.open_connection("127.0.0.1", server[1])
        writer.write(content)
        writer.write_eof()
        writer.close()
    inbox = Inbox()
    call = await open_stream("127.0.0.1", server[1], METHOD, inbox, caller())
    call.send_message(b"a")
    assert await inbox.next() == b"a"
    call.cancel()
    await poll_until(lambda: not server[0].connections, what="connections are forgotten")


async def test_who_never_reads_is_cut_off(server: tuple[StreamServer, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_UNSENT_BYTES_MAX", 100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", server[1])
    writer.write(opening(struct.pack(">HI", 4, 0)))  # no room for a single byte
    message = struct.pack(">BI", 0, 10_000) + bytes(10_000)
    writer.write(pack_frame(Kind.DATA, 0, 1, message) * 20)
    await poll_until(lambda: not server[0].connections, what="the connection has been cut")
    writer.close()
    del reader
