"""The VDL of one volume as something to look at, to listen to and to wait for. For one event loop."""

from __future__ import annotations

import asyncio
import heapq
import logging
from itertools import count
from typing import TYPE_CHECKING

from aurora_ray.errors import AuroraError, QuorumLostError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Listening:
    """A listener of a `DurableLsn`; `stop` ends it, also from within the call."""

    __slots__ = ("_all", "listener")

    def __init__(self, everybody: list[Listening], listener: Callable[[int], object]) -> None:
        self.listener: Callable[[int], object] | None = listener
        self._all = everybody
        everybody.append(self)

    def stop(self) -> None:
        """The listener is not called any more. Harmless a second time."""
        if self.listener is not None:
            self.listener = None
            self._all.remove(self)


class DurableLsn:
    """Everything up to `lsn` is durable, and it never goes back. Only its owner calls `advance` and `fail`."""

    __slots__ = ("_listenings", "_ties", "_waits", "failure", "lsn")

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn
        self.failure: AuroraError | None = None  # why it moves no more
        self._listenings: list[Listening] = []
        self._waits: list[tuple[int, int, asyncio.Future[None]]] = []  # heap of (lsn, tie-breaker, wait)
        self._ties = count()

    def listen(self, listener: Callable[[int], object]) -> Listening:
        """`listener` is called with each new VDL, in the order of listening, from within the event loop.

        It must not block. One that raises is reported in the log and keeps nothing from the others.
        """
        return Listening(self._listenings, listener)

    async def wait_for(self, lsn: int, timeout_s: float) -> None:
        """Returns once the VDL has reached `lsn`. Raises QuorumLostError when the time is up, or `failure`."""
        if self.lsn >= lsn:
            return
        self.check()
        wait = asyncio.get_running_loop().create_future()
        entry = (lsn, next(self._ties), wait)
        heapq.heappush(self._waits, entry)
        try:
            async with asyncio.timeout(timeout_s):
                await wait
        except TimeoutError:
            raise QuorumLostError(
                f"LSN {lsn} was not durable within {timeout_s:g} s (VDL {self.lsn}); its outcome is not known yet"
            ) from None
        finally:
            if entry in self._waits:  # cancelled, or out of time: it shall not be kept until the VDL comes by
                self._waits.remove(entry)
                heapq.heapify(self._waits)

    def check(self) -> None:
        """Raises `failure`, if there is one."""
        if self.failure is not None:
            raise self.failure

    def advance(self, lsn: int) -> None:
        """The VDL is `lsn` now: wakes who waits for that, and tells the listeners."""
        assert lsn > self.lsn, "what is durable stays durable"  # noqa: S101
        self.lsn = lsn
        waits = self._waits
        while waits and waits[0][0] <= lsn:
            wait = heapq.heappop(waits)[2]
            if not wait.done():
                wait.set_result(None)
        for listening in tuple(self._listenings):
            if listening.listener is not None:
                try:
                    listening.listener(lsn)
                except Exception:
                    _log.exception("a listener to the VDL failed")

    def fail(self, error: AuroraError) -> None:
        """The VDL moves no more: every wait ends with `error`, those to come as well. The first error counts."""
        if self.failure is not None:
            return
        self.failure = error
        waits, self._waits = self._waits, []
        for _, _, wait in waits:
            if not wait.done():
                wait.set_exception(error)
