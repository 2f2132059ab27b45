"""Long-running work of a node that no single failure may end, and how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Iterable

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

PAUSE_S: Final = (0.1, 30.0)  # first and longest wait after a failure
CALM_S: Final = 60.0  # work that ran for so long begins with the first pause again


async def supervised(
    name: str, work: Callable[[], Awaitable[object]], counters: Counter[str], *, pause_s: tuple[float, float] = PAUSE_S
) -> None:
    """Does `work` until it is done; one that an exception ended begins anew after a pause, twice as long each time.

    Each kind of failure is logged once with all its circumstances and counted always, as `failed_<name>`. Being
    cancelled ends it, as does what is no Exception.
    """
    wait_s, seen = pause_s[0], ""
    while True:
        started_s = time.monotonic()
        try:
            await work()
        except Exception as error:
            counters[f"failed_{name}"] += 1
            if (said := repr(error)) != seen:
                seen = said
                _log.exception("%s failed and goes on in %.1f s; the same again is counted only", name, wait_s)
        else:
            return
        if time.monotonic() - started_s > CALM_S:
            wait_s = pause_s[0]
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, pause_s[1])


async def end(tasks: Iterable[asyncio.Task[object]], *, again_s: float = 1.0) -> None:
    """Cancels tasks and waits until they are over, whatever they end by.

    One that is still there is cancelled again: an error in the cleanup of what was cancelled takes the cancellation's
    place, and whoever catches errors there, to go on with the next item, goes on.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)


async def in_thread(work: Callable[..., _T], *args: object) -> _T:
    """The result of `work(*args)`, done in a thread; its errors are raised.

    A thread cannot be cancelled. Who waits here is cancelled when it is over, so that no cleanup (removing what it
    writes, closing what it reads) meets it at work.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # again
                await asyncio.wait({running})
        running.exception()  # nobody is left to hear of it
        raise
