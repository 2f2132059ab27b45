"""Whose commits background work keeps out of the way of."""

import math
import time
from typing import Any

import pytest

from aurora_ray.log import record as rec
from aurora_ray.storage import pacing
from aurora_ray.storage.pacing import BUSY_REST, OTHERS_REST, STEP_COUNTS_S, STEP_S, Traffic
from aurora_ray.storage.segment import segment as segments
from tests.storage.harness import Writer


def test_of_each_volume_the_commits_of_all_others_are_known() -> None:
    traffic = Traffic()
    assert traffic.of_others_s(b"a") == -math.inf
    traffic.note(b"a", 1)
    traffic.note(b"a", 2)
    assert (traffic.of_others_s(b"a"), traffic.of_others_s(b"b")) == (-math.inf, 2)
    traffic.note(b"b", 3)
    traffic.note(b"c", 4)
    traffic.note(b"c", 5)
    assert [traffic.of_others_s(each) for each in (b"a", b"b", b"c")] == [5, 5, 3]


async def test_a_segment_that_has_fallen_behind_goes_on_and_leaves_others_their_time(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start()
    noisy, quiet = [await Writer().open(server, groups=(0,)) for _ in range(2)]
    change = rec.page_delta(1, 0, [(0, b"some redo")])
    await server.send(quiet.flush(change))
    await server.send(noisy.flush(change))
    server.server.node.openings._since_s = 0.0  # the writers opened long ago
    segment = server.segment(noisy)
    monkeypatch.setattr(segments, "BUSY_FOR_S", 60.0)
    assert segment.rests() == BUSY_REST, "its own commits come in"
    assert segment.merging_rest_s(0.004) == BUSY_REST * 0.004, (
        "beside others' commits, a long step is followed by a long rest"
    )
    assert segment.rest_s(0.004) == BUSY_REST * 0.001, "but not where a peer waits for it"
    assert segment.merging_rest_s(10.0) == BUSY_REST * STEP_COUNTS_S
    segment.tail_bytes = segments.URGENT_TAIL_BYTES
    assert segment.rests() == OTHERS_REST
    assert not segment.is_busy, "its turn is not put off for that"
    monkeypatch.setattr(segments, "BUSY_FOR_S", 0.0)
    assert segment.rests() == 0, "nobody commits"
    segment.tail_bytes, segment.last_append_s = 0, time.monotonic() - 100
    monkeypatch.setattr(segments, "BUSY_FOR_S", 60.0)
    assert segment.rests() == OTHERS_REST, "in its own pause"


async def test_beside_nobody_a_long_step_is_not_followed_by_a_longer_rest(start: Any, monkeypatch: Any) -> None:
    server = await start()
    alone = await Writer().open(server, groups=(0,))
    await server.send(alone.flush(rec.page_delta(1, 0, [(0, b"some redo")])))
    server.server.node.openings._since_s = 0.0
    monkeypatch.setattr(segments, "BUSY_FOR_S", 60.0)
    assert server.segment(alone).merging_rest_s(0.004) == BUSY_REST * STEP_S


async def test_whoever_works_rests_for_as_long_as_that_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept = [100.0], list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now_s[0])
    monkeypatch.setattr(pacing.asyncio, "sleep", sleep)
    pacer = pacing.Pacer(0.001, rest_s=lambda worked_s: 9 * worked_s)
    assert not pacer.due
    now_s[0] += 0.003
    assert pacer.due
    await pacer.rest()
    assert slept == [pytest.approx(0.027)]
    assert not pacer.due
