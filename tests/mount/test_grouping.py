"""Which commits a flush waits for."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from aurora_ray.mount.grouping import Grouping
from tests.support.polling import poll_until


class Bell:
    """The region's part in it: arrivals are counted, and one of them rings."""

    def __init__(self) -> None:
        self.arrivals = 0
        self.at = 0

    def bell_at(self, arrival: int) -> int:
        self.at = arrival
        return self.arrivals

    def arrive(self, count: int = 1) -> int:
        """How many of them rang."""
        before, self.arrivals = self.arrivals, self.arrivals + count
        return sum(number >= self.at for number in range(before + 1, self.arrivals + 1))


class Ground:
    def __init__(self) -> None:
        self.bell = Bell()
        self.gone = 0
        self.grouping = Grouping(cast("Any", self.bell), self.go)

    def go(self) -> None:
        self.gone += 1
        self.flush()

    def flush(self) -> None:
        self.grouping.sent(self.bell.arrivals)


@pytest.fixture
async def ground() -> Any:
    it = Ground()
    yield it
    it.grouping.close()


async def test_the_first_commit_rings(ground: Ground) -> None:
    assert ground.bell.arrive() == 1


async def test_a_session_that_commits_alone_never_waits(ground: Ground) -> None:
    for _ in range(5):
        assert ground.bell.arrive() == 1
        ground.flush()
        assert not ground.grouping.done()
        assert not ground.grouping.holds()


async def test_nobody_rings_while_a_flush_is_on_its_way(ground: Ground) -> None:
    ground.bell.arrive(3)
    ground.flush()
    assert ground.bell.arrive(10) == 0


async def test_who_comes_meanwhile_goes_at_once_if_it_is_most_of_them(ground: Ground) -> None:
    ground.bell.arrive(1)
    ground.flush()
    ground.bell.arrive(9)
    assert ground.grouping.done()


async def test_the_next_waits_for_most_of_those_who_were_released(ground: Ground) -> None:
    ground.bell.arrive(20)
    ground.flush()
    assert not ground.grouping.done()
    assert ground.grouping.holds()
    assert ground.bell.arrive(16) == 0
    assert ground.bell.arrive() == 1  # 17 of 20
    assert not ground.grouping.holds()


async def test_and_not_for_long(ground: Ground) -> None:
    ground.bell.arrive(20)
    ground.flush()
    ground.grouping.done()
    ground.bell.arrive(2)
    await poll_until(lambda: ground.gone == 1)
    assert not ground.grouping.done(), "two of two were released: the next may wait for them"
    assert ground.bell.arrive(2) == 1


async def test_when_all_have_gone_the_next_one_does_not_wait_for_them(ground: Ground) -> None:
    ground.bell.arrive(20)
    ground.flush()
    ground.grouping.done()
    await poll_until(lambda: not ground.grouping.holds())
    assert ground.gone == 0
    assert ground.bell.arrive() == 1


async def test_closed_means_silent(ground: Ground) -> None:
    ground.bell.arrive(20)
    ground.flush()
    ground.grouping.done()
    ground.bell.arrive(2)
    ground.grouping.close()
    _, pending = await asyncio.wait({asyncio.ensure_future(poll_until(lambda: ground.gone, 0.5))}, timeout=0.05)
    assert pending
    for task in pending:
        task.cancel()
