"""What stands behind a relay in these tests."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.timing import scaled

_AT_ONCE = struct.pack("ii", 1, 0)


class Backend:
    """Sends its name and a newline to each client, then every byte back; ends its direction when the client does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions = 0
        self.resets = 0
        self.ends = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ("", 0)

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", port, backlog=1024)
        self.address = self._server.sockets[0].getsockname()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio complains about those it makes itself when they are cancelled.
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        try:
            writer.write(self.name.encode() + b"\n")
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            self.ends += 1
            writer.write_eof()
        except ConnectionError:
            self.resets += 1
        except OSError:
            pass
        finally:
            self.sessions -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[Backend]:
    server = Backend(name)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Client:
    """A connection with deadlines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> "Client":
        async with asyncio.timeout(scaled(10)):
            return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def greeting(self) -> str:
        async with asyncio.timeout(scaled(10)):
            return (await self.reader.readline()).decode().strip()

    async def echo(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(scaled(10)):
            return await self.reader.readexactly(len(data))

    async def read_to_end(self) -> bytes:
        """Everything up to the end. Raises ConnectionError when the connection is reset."""
        async with asyncio.timeout(scaled(30)):
            return await self.reader.read(-1)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Closes with an RST, whatever state it is in."""
        connection = self.writer.get_extra_info("socket")
        if connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.writer.transport.abort()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    connected = await Client.connect(port)
    try:
        yield connected
    finally:
        await connected.close()


def unused_address() -> tuple[str, int]:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
        return address


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
