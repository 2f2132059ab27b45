"""An asyncio loop on a thread of its own: where a Ray actor keeps everything that must go on between its calls.

Ray calls an actor's methods on threads of its choosing; gRPC streams, the volume driver and the engine's watch need one
loop that is never blocked and never goes away. The thread also is the parent of the engine: the kernel ends a child
that asked for it (PR_SET_PDEATHSIG) when the *thread* that started it ends, so that thread must live as long as the
process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Starts at once; a daemon thread, so it never keeps a process from ending."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs it on the loop; the future may be waited for from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs it on the loop and waits. Raises what it raises; TimeoutError cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    async def ask(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """The same from another loop, without a thread that waits."""
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(self.submit(coroutine))

    def close(self, timeout_s: float = 2.0) -> None:
        """Stops the loop; what still runs on it is abandoned."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self.loop.close()
