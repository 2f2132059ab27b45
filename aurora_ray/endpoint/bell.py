"""Heard when somebody has come to an endpoint that leads nowhere: without looking again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

from aurora_ray.endpoint import native

T = TypeVar("T")


class HeldBell:
    """One a process: all of its relays ring it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: set[asyncio.Future[None]] = set()
        asyncio.get_running_loop().add_reader(self._fd, self._rung)
        native.library().ar_relay_ring_when_held(self._fd)

    def _rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait(self, look: Callable[[], T], timeout_s: float) -> T:
        """What `look` finds, as soon as that is anything, and when the time is over whatever it is."""
        ends_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(rung)
            try:
                found = look()
                left_s = ends_s - asyncio.get_running_loop().time()
                if found or left_s <= 0:
                    return found
                await asyncio.wait({rung}, timeout=left_s)
            finally:
                self._waiting.discard(rung)

    def close(self) -> None:
        """Nobody rings any more."""
        native.library().ar_relay_ring_when_held(-1)
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
