"""The loop thread under the actors."""

import asyncio
import inspect
import threading

import pytest

from aurora_ray.compute.loop import LoopThread
from aurora_ray.ray.actors import InstanceActor, StorageNodeActor
from aurora_ray.ray.control import ControlActor
from aurora_ray.ray.endpoints import EndpointActor


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


async def test_another_loop_asks_without_a_thread_that_waits() -> None:
    loop = LoopThread("test")
    cancelled, threads = threading.Semaphore(0), threading.active_count()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.release()

    asking = [asyncio.create_task(loop.ask(forever(), 0.05)) for _ in range(20)]
    await asyncio.sleep(0)
    assert threading.active_count() == threads
    assert all(isinstance(e, TimeoutError) for e in await asyncio.gather(*asking, return_exceptions=True))
    for _ in asking:
        assert await asyncio.to_thread(cancelled.acquire, timeout=5)
    await loop.ask(asyncio.sleep(0), 5)  # those that were cancelled are done
    loop.close()


@pytest.mark.parametrize("actor", [StorageNodeActor, InstanceActor, EndpointActor, ControlActor])
def test_no_call_of_an_actor_holds_a_thread(actor: type) -> None:
    """Ray does not end the calls of a caller that died: with a thread each, an actor runs out of them."""
    calls = {n: m for n, m in inspect.getmembers(actor, inspect.isfunction) if not n.startswith("_")}
    assert {"info"} <= calls.keys()
    assert [name for name, method in calls.items() if not inspect.iscoroutinefunction(method)] == []
