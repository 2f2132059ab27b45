"""News that something changed: the control plane's loop decides anew, and those who wait for a state look again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aurora_ray.errors import QuorumLostError


class Changes:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.notes: tuple[str, ...] = ()  # what has to wait, and for what, as the last decision said
        self._wake = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something changed."""
        self._wake.set()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def next(self, timeout_s: float) -> None:
        """Returns at the next change since the last call began to wait, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    def begin(self) -> None:
        """What changes from here on wakes `next`."""
        self._wake.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Waits for a state; `condition` may raise to give up. Raises QuorumLostError when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.add(changed)
                    try:
                        await changed
                    finally:
                        self._waiting.discard(changed)
        except TimeoutError:
            notes = "; ".join(self.notes) or "no reason is known"
            raise QuorumLostError(f"{what} took longer than {timeout_s:g} s: {notes}") from None
