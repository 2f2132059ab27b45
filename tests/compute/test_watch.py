"""A process that a signal stopped is found without asking it; one that goes on in time is left alone."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.progress import STOPPED, state_of
from aurora_ray.compute.watch import Watch, Watched
from tests.support.polling import poll_until
from tests.support.timing import scaled

RULES = HealthRules(hung_after_s=2.5)


@pytest.fixture
def child() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process.pid
        process.kill()


def watch_of(pid: int, *, stalled: bool = False) -> Watch:
    async def ask(_: float) -> bool:
        return state_of(pid) != STOPPED

    async def storage() -> tuple[int, bool]:
        return 0, stalled

    return Watch(Watched("a child", ask, lambda: pid, storage), RULES)


async def test_a_stopped_process_is_hung_sooner_than_a_silent_one(child: int) -> None:
    watch = watch_of(child)
    waiting = asyncio.create_task(watch.wait_hung())
    await asyncio.sleep(0)
    os.kill(child, signal.SIGSTOP)
    stopped_ns = time.time_ns()
    finding = await asyncio.wait_for(waiting, scaled(10))
    took_s = (time.time_ns() - stopped_ns) / 1e9
    assert "stopped by a signal" in finding.why
    assert RULES.stopped_after_s <= took_s < scaled(RULES.hung_after_s)
    assert abs(watch.good_at_ns - stopped_ns) < scaled(0.5) * 1e9


async def test_one_that_goes_on_in_time_is_left_alone(child: int) -> None:
    waiting = asyncio.create_task(watch_of(child).wait_hung())
    for _ in range(4):
        os.kill(child, signal.SIGSTOP)
        stopped_s = time.monotonic()
        await poll_until(lambda at=stopped_s: time.monotonic() - at > RULES.stopped_after_s / 2, 10)
        os.kill(child, signal.SIGCONT)
        await poll_until(lambda: state_of(child) != STOPPED, 10)
        going_s = time.monotonic()
        await poll_until(lambda at=going_s: time.monotonic() - at > 0.3, 10)
    assert not waiting.done()
    waiting.cancel()


async def test_nobody_is_found_hung_while_storage_is_stalled(child: int) -> None:
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch_of(child, stalled=True).wait_hung(), 2 * RULES.stopped_after_s)
