"""Waiting for something to become true, with a deadline: the only place in the tests that sleeps.

    await poll_until(lambda: server.scl >= lsn, what="the node has caught up")
    port = poll_until_blocking(lambda: read_port(path), timeout_s=5)

A condition is a function, plain or (for `poll_until`) async. It holds once its result is true; that result is returned.
Deadlines go through `scaled`.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

from tests.support.timing import scaled

T = TypeVar("T")


@overload
async def poll_until(
    condition: Callable[[], Awaitable[T]], timeout_s: float = ..., *, interval_s: float = ..., what: str = ...
) -> T: ...


@overload
async def poll_until(
    condition: Callable[[], T], timeout_s: float = ..., *, interval_s: float = ..., what: str = ...
) -> T: ...


async def poll_until(
    condition: Callable[[], object], timeout_s: float = 10.0, *, interval_s: float = 0.01, what: str = ""
) -> object:
    """Ask again and again without blocking the event loop. Raises AssertionError, naming `what`, at the deadline."""
    deadline = time.monotonic() + scaled(timeout_s)
    while True:
        answer = condition()
        result = await answer if inspect.isawaitable(answer) else answer
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, timeout_s, what, result))
        await asyncio.sleep(interval_s)


def poll_until_blocking(
    condition: Callable[[], T], timeout_s: float = 10.0, *, interval_s: float = 0.01, what: str = ""
) -> T:
    """As `poll_until`, for code without an event loop."""
    deadline = time.monotonic() + scaled(timeout_s)
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, timeout_s, what, result))
        time.sleep(interval_s)


def _complaint(condition: Callable[[], object], timeout_s: float, what: str, result: object) -> str:
    what = what or getattr(condition, "__qualname__", repr(condition))
    return f"not within {scaled(timeout_s):g} s: {what} (last result: {result!r})"
