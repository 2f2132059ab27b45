"""A port through which another one is as far away as another region: the simulated link of the product, for others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Self

from aurora_ray.replication.distance import link_of
from aurora_ray.rpc.link import Link, Way, delayed

if TYPE_CHECKING:
    from types import TracebackType

CHUNK_BYTES: Final = 64 << 10
START_TIMEOUT_S: Final = 10.0


class LinkProxy:
    """From `with` to the end of the block, on loopback: `port` leads to `target_port`. Delay, jitter, bandwidth and
    stalls are those that calls between two regions of a global cluster meet."""

    def __init__(self, one_way_s: float, target_port: int) -> None:
        self.port = 0
        self._link = link_of(one_way_s) or Link()
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._ready, self._ended = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    @property
    def nbytes(self) -> int:
        """That have crossed, both ways."""
        return self._link.out.nbytes + self._link.back.nbytes

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise RuntimeError("the simulated link does not begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(START_TIMEOUT_S)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        out = asyncio.create_task(_one_way(reader, far_writer, self._link.out))
        back = asyncio.create_task(_one_way(far_reader, writer, self._link.back))
        try:
            # Whichever end goes, the session is over; what it had sent before has arrived. So it is when the link ends.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({out, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (out, back):
                task.cancel()
            await asyncio.gather(out, back, return_exceptions=True)
            for each in (writer, far_writer):
                each.close()


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    with contextlib.suppress(OSError):
        async for chunk in delayed(_chunks(reader), way, len):
            writer.write(chunk)
            await writer.drain()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(CHUNK_BYTES):
        yield chunk
