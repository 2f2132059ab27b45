"""Bytes fed to the serving end of a stream's connection, without a socket."""

import asyncio
from typing import Any

from aurora_ray.rpc.admission import Admitted, Doorkeeper, Secret
from aurora_ray.rpc.stream_server import StreamServer

WRITTEN_BYTES_MAX = 1 << 20  # what a connection may answer to a few hundred bytes


class _Everybody(Doorkeeper):
    """Admits whoever comes: what is behind the door is to be reached."""

    def admit(self, method: str, proof: str, door: str) -> Admitted | None:
        return Admitted("a" * 64, "")


class _Echo:
    def on_message(self, message: bytes) -> bytes:
        return message


class _Transport:
    """Counts what is written; closing is noted only."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits here."""

    def get_extra_info(self, _: str) -> Any:
        return self

    def setsockopt(self, *_: object) -> None:
        """Not a socket."""

    def pause_reading(self) -> None:
        """Nothing is read."""

    resume_reading = pause_reading


def feed(content: bytes) -> None:
    """All of it at once, then in pieces to another one; neither raises, nor answers without bounds."""
    asyncio.run(_feed(content))


async def _feed(content: bytes) -> None:
    server = StreamServer({"/test.Echo/Stream": _Echo}, "echo", _Everybody("echo", secret=Secret.new()))
    for pieces in ([content], [content[at : at + 7] for at in range(0, len(content), 7)]):
        transport = _Transport()
        connection = server.connection()
        connection.connection_made(transport)
        for piece in pieces:
            if transport.closed:
                break
            connection.data_received(piece)
        assert transport.written < WRITTEN_BYTES_MAX, "too much of an answer"
        connection.connection_lost(None)
    assert not server.connections
    assert not server.unproved
