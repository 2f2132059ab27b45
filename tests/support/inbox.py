"""What a stream brings, to be awaited."""

from __future__ import annotations

import asyncio

TIMEOUT_S = 20


class Inbox:
    """See `aurora_ray.rpc.stream_client.Receiver`."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    def on_message(self, message: bytes) -> None:
        self.messages.put_nowait(message)

    def on_writable(self) -> None:
        """Nobody waits for that here."""

    async def next(self) -> bytes:
        """The next message. Raises TimeoutError."""
        return await asyncio.wait_for(self.messages.get(), TIMEOUT_S)
