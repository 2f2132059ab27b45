"""What an engine uses, of real processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest

from aurora_ray.compute.usage import LOOK_EVERY_S, Usage, cpu_seconds, processes_below
from tests.support.polling import poll_until, poll_until_blocking

# A parent that sleeps, with a child that goes round in circles.
_PARENT = "import os, sys, time\nif os.fork() == 0:\n    while True: pass\nprint(1, flush=True)\ntime.sleep(600)\n"


@pytest.fixture
def parent() -> Iterator[int]:
    started = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert started.stdout is not None
    started.stdout.readline()
    yield started.pid
    os.killpg(started.pid, 9)
    started.communicate(timeout=10)


async def test_the_cpu_of_all_below_counts_and_sessions_are_asked_for(parent: int) -> None:
    now_s = [100.0]
    asked: list[tuple[int, Sequence[int]]] = []

    def sessions(pid: int, pids: Sequence[int]) -> int:
        asked.append((pid, pids))
        assert threading.current_thread() is not threading.main_thread(), "the loop is not held up"
        return len(pids)

    usage = Usage(sessions, clock=lambda: now_s[0])
    assert usage.of(0) == {}
    await poll_until(lambda: usage.of(parent) == {"connections": 1})
    assert asked == [(parent, processes_below(parent))]
    before_s = cpu_seconds(parent, asked[0][1])
    await poll_until(lambda: cpu_seconds(parent, asked[0][1]) > before_s + 0.2, what="the child uses the CPU")
    now_s[0] += LOOK_EVERY_S
    await poll_until(lambda: "cpu_percent" in usage.of(parent))
    least = 100 * 0.2 / LOOK_EVERY_S / (os.cpu_count() or 1)
    assert usage.of(parent)["cpu_percent"] >= round(least, 1)
    assert usage.of(os.getpid()) == {}, "that is another engine"


async def test_who_decides_by_it_gets_the_look_that_is_due_and_waits_no_longer_than_it_says(parent: int) -> None:
    now_s, hold, held = [100.0], threading.Event(), threading.Event()
    hold.set()

    def sessions(_: int, pids: Sequence[int]) -> int:
        held.set()
        hold.wait(10)
        return len(pids)

    usage = Usage(sessions, clock=lambda: now_s[0])
    assert await usage.fresh(parent, 10) == {"connections": 1}
    assert "looked_at_s" not in await usage.fresh(parent, 10), "none is due"
    now_s[0] += LOOK_EVERY_S
    assert (await usage.fresh(parent, 10))["looked_at_s"] == now_s[0]
    now_s[0] += LOOK_EVERY_S
    hold.clear()
    held.clear()
    assert (await usage.fresh(parent, 0.01))["looked_at_s"] == now_s[0] - LOOK_EVERY_S, "what was seen last"
    assert held.wait(10)
    hold.set()
    assert (await usage.fresh(parent, 10))["looked_at_s"] == now_s[0]


async def test_after_another_capacity_nothing_counts_that_was_before(parent: int) -> None:
    now_s, grown = [100.0], [0.0]
    usage = Usage(lambda *_: 0, clock=lambda: now_s[0], counters=lambda: {"held_back": grown[0]})
    await usage.fresh(parent, 10)
    now_s[0], grown[0] = now_s[0] + 1.0, 1.0
    usage.begin_anew()
    await usage.fresh(parent, 10)
    now_s[0] += LOOK_EVERY_S
    grown[0] += LOOK_EVERY_S / 4
    assert (await usage.fresh(parent, 10))["held_back_rate"] == 0.25


def test_cpu_time_is_finer_than_the_ticks_of_the_clock() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        what = "it has used a part of a tick"
        poll_until_blocking(lambda: (round(1e6 * cpu_seconds(one.pid, [])) % 10_000) > 0, what=what)
        one.communicate(b"\n", timeout=10)


def test_what_is_gone_uses_nothing() -> None:
    assert processes_below(2**22 - 1) == []
    assert cpu_seconds(2**22 - 1, []) == 0.0
