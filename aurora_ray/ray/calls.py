"""Ray calls from a plain asyncio loop, with our errors instead of Ray's."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import ray
import ray.exceptions

from aurora_ray.control.model.runtime import NotMadeError, ProcessGoneError


def own_error(error: BaseException) -> BaseException:
    """What was raised over there, or ProcessGoneError if there is nobody there any more."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, BaseException) else error
    if isinstance(error, ray.exceptions.RayActorError):
        if error.actor_init_failed:  # of what it failed, Ray tells at the end of a text
            return NotMadeError(f"its process could not be made: {str(error).strip().splitlines()[-1]}")
        return ProcessGoneError("its process died")
    return error


async def result_of(ref: Any, timeout_s: float | None) -> Any:
    """Awaits an object reference. Cancelling abandons the wait and leaves the call alone."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Any] = loop.create_future()

    def settle(future: Future[Any]) -> None:
        if waiting.done():
            return
        error = future.exception()
        if error is not None:
            waiting.set_exception(own_error(error))
        else:
            waiting.set_result(future.result())

    def settled(future: Future[Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, future)

    ref.future().add_done_callback(settled)
    async with asyncio.timeout(timeout_s):
        return await waiting


def wait_for(ref: Any, timeout_s: float) -> Any:
    """The same from a thread that may block. Raises TimeoutError."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError from error
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        raise own_error(error) from None
