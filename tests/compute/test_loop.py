"""The loop thread under the actors."""

import asyncio
import threading

import pytest

from aurora_ray.compute.loop import LoopThread


def test_calls_run_on_the_thread_and_raise_here() -> None:
    loop = LoopThread("test")

    async def name() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise ValueError("no")

    assert loop.call(name()) == "test"
    with pytest.raises(ValueError, match="no"):
        loop.call(fail())
    loop.close()


def test_a_call_that_takes_too_long_is_cancelled() -> None:
    loop = LoopThread("test")
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        loop.call(forever(), timeout_s=0.01)
    assert cancelled.wait(5)
    loop.close()
