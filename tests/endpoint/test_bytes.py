"""Every byte arrives, in order, whatever the chunks, the pace and the end of a session."""

import asyncio
import hashlib
import random
import resource
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from aurora_ray.endpoint.relay import Relay
from tests.endpoint.backends import Client, backend, client, open_fds
from tests.support.polling import poll_until
from tests.support.timing import scaled


async def _write_randomly(writer: asyncio.StreamWriter, data: bytes, rng: random.Random) -> None:
    sent = 0
    while sent < len(data):
        n = rng.choice((1, 7, 100, 4096, 65535, 65536, 65537, 300_000))
        writer.write(data[sent : sent + n])
        await writer.drain()
        sent += n
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    writer.write_eof()


async def _read_randomly(reader: asyncio.StreamReader, rng: random.Random, *, slow: bool) -> bytes:
    parts = []
    while part := await reader.read(rng.choice((1, 50, 4096, 100_000))):
        parts.append(part)
        if slow and rng.random() < 0.05:
            await asyncio.sleep(0.001)  # not synchronisation: the slow reader's pace
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(6))
async def test_bytes_arrive_in_order(relay: Relay, seed: int) -> None:
    rng = random.Random(seed)
    data = [rng.randbytes(rng.choice((0, 1, 65536, 1_000_000, 3_000_000))) for _ in range(6)]
    async with backend("a") as a, AsyncExitStack() as stack:
        relay.set_targets([a.address], 1)
        sessions = [await stack.enter_async_context(client(relay.port)) for _ in data]
        for session in sessions:
            assert await session.greeting() == "a"

        async def run(session: Client, sent: bytes) -> bytes:
            _, received = await asyncio.gather(
                _write_randomly(session.writer, sent, rng), _read_randomly(session.reader, rng, slow=seed % 2 == 0)
            )
            return received

        async with asyncio.timeout(scaled(60)):
            received = await asyncio.gather(*map(run, sessions, data))
        assert [hashlib.sha256(part).digest() for part in received] == [hashlib.sha256(d).digest() for d in data]
        await poll_until(lambda: relay.stats().open == 0)
        stats = relay.stats()
        assert stats.bytes_up == sum(map(len, data))
        assert stats.bytes_down == stats.bytes_up + len(data) * len("a\n")


async def test_each_direction_ends_by_itself(relay: Relay) -> None:
    """The client ends first and still gets an answer; then the server ends first and still gets a question."""
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"q":
            question = await reader.read(-1)
            writer.write(b"answer to " + question)
        else:
            writer.write(b"no more from here")
            writer.write_eof()
            served.append(await reader.read(-1))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        relay.set_targets([server.sockets[0].getsockname()], 1)
        async with client(relay.port) as session:
            session.writer.write(b"question")
            session.writer.write_eof()
            assert await session.read_to_end() == b"answer to uestion"
        async with client(relay.port) as session:
            session.writer.write(b"-")
            assert await session.read_to_end() == b"no more from here"
            session.writer.write(b"late question")
            session.writer.write_eof()
            await poll_until(lambda: served == [b"late question"])
        await poll_until(lambda: relay.stats().open == 0)


async def test_all_that_was_sent_before_the_end_arrives_at_a_slow_reader(relay: Relay) -> None:
    size = 8 << 20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        writer.close()  # the socket ends as soon as it has taken all of it

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        relay.set_targets([server.sockets[0].getsockname()], 1)
        async with client(relay.port) as session:
            session.writer.write_eof()
            session.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await poll_until(lambda: relay.stats().bytes_down > 0)
            session.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await session.read_to_end()) == size


async def test_a_slow_reader_holds_up_its_sender_and_nobody_else(relay: Relay) -> None:
    async with backend("a") as a, client(relay.port) as slow, client(relay.port) as other:
        relay.set_targets([a.address], 1)
        assert await slow.greeting() == await other.greeting() == "a"
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.writer.write(bytes(256 << 20))
        await poll_until(lambda: relay.stats().bytes_up > 1 << 20)
        for _ in range(100):
            assert await other.echo(b"quick") == b"quick"
        assert relay.stats().bytes_up < 128 << 20  # the rest waits at the sender
        slow.abort()


async def test_a_reset_is_passed_on(relay: Relay) -> None:
    async with backend("a") as a:
        relay.set_targets([a.address], 1)
        session = await Client.connect(relay.port)
        assert await session.greeting() == "a"
        session.abort()
        await session.close()
        await poll_until(lambda: a.resets == 1)
        await poll_until(lambda: relay.stats().open == 0)


@pytest.mark.usefixtures("many_fds")
async def test_500_sessions_at_once(relay: Relay) -> None:
    async with backend("a") as a, backend("b") as b, AsyncExitStack() as stack:
        relay.set_targets([a.address, b.address], 1)
        sessions = await asyncio.gather(*(stack.enter_async_context(client(relay.port)) for _ in range(500)))

        async def use(session: Client, number: int) -> None:
            assert await session.greeting() in "ab"
            for turn in range(3):
                message = b"%d-%d" % (number, turn) * 50
                assert await session.echo(message) == message

        async with asyncio.timeout(scaled(60)):
            await asyncio.gather(*(use(session, number) for number, session in enumerate(sessions)))
        assert relay.stats().open == 500
        assert a.sessions == b.sessions == 250


@pytest.mark.parametrize("seed", range(4))
async def test_abrupt_ends_of_all_kinds(make_relay: Callable[..., Relay], seed: int) -> None:
    """Peers reset, end, half-close, stop reading and vanish in the middle, targets come and go: what is left works, and
    nothing stays behind."""
    rng = random.Random(seed)
    relay = make_relay(hold_s=1.0, held_max=30, sessions_max=60)
    fds_idle = open_fds()
    async with backend("a") as a, backend("b") as b:
        fds_ready = open_fds()

        async def one_session() -> None:
            try:
                session = await Client.connect(relay.port)
            except OSError:
                return
            try:
                for _ in range(rng.randrange(4)):
                    session.writer.write(bytes(rng.choice((1, 1000, 200_000, 2_000_000))))
                    if rng.random() < 0.7:
                        await asyncio.wait_for(session.reader.read(rng.choice((1, 70_000))), 0.2)
                if rng.random() < 0.3:
                    session.writer.write_eof()
                    await asyncio.wait_for(session.reader.read(-1), 0.2)
            except (OSError, TimeoutError):
                pass
            if rng.random() < 0.5:
                session.abort()
            closing = asyncio.create_task(session.close())
            await asyncio.wait([closing], timeout=1)
            session.abort()
            await closing

        async def change_targets() -> None:
            for generation in range(1, 12):
                relay.set_targets([t.address for t in (a, b) if rng.random() < 0.7], generation)
                await asyncio.sleep(rng.random() * 0.1)  # not synchronisation: the pace of the changes

        async with asyncio.timeout(scaled(60)):
            async with asyncio.TaskGroup() as group:
                group.create_task(change_targets())
                for _ in range(8):
                    await asyncio.gather(*(one_session() for _ in range(25)))
        relay.set_targets([a.address], 100)
        await poll_until(lambda: relay.stats().open + relay.stats().held == 0, what="all sessions ended")
        async with client(relay.port) as session:
            assert await session.greeting() == "a"
            assert await session.echo(b"fine") == b"fine"
        await poll_until(lambda: open_fds() <= fds_ready, what="no file descriptor stays behind")
    await poll_until(lambda: open_fds() <= fds_idle)


async def test_running_out_of_file_descriptors_is_survived(relay: Relay) -> None:
    async with backend("a") as a, client(relay.port) as first:
        relay.set_targets([a.address], 1)
        assert await first.greeting() == "a"
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        session = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (session.fileno() + 1, limits[1]))
        try:
            session.connect(("127.0.0.1", relay.port))  # the kernel takes it; the relay cannot
            began_ns = relay.stats().cpu_ns
            assert await first.echo(b"goes on") == b"goes on"
            await asyncio.sleep(0.3)  # not synchronisation: the time during which it may not spin
            assert relay.stats().cpu_ns - began_ns < 20_000_000
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        session.setblocking(False)
        async with asyncio.timeout(scaled(10)):
            assert await asyncio.get_running_loop().sock_recv(session, 2) == b"a\n"
        session.close()
