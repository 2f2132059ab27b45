"""Whole flushes out of the logs of groups, however these come in."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import MalformedError
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.flush import Flush, LogEnd
from aurora_ray.log.record import RecordBuilder, page_full
from aurora_ray.volume.follow.merge import FlushMerger

if TYPE_CHECKING:
    from collections.abc import Sequence


def flush_after(log: LogEnd, groups: Sequence[int], content: bytes = b"x", epoch: int = 1) -> Flush:
    builder = RecordBuilder(log.lsn)
    for group in groups:
        builder.add(page_full(1, 0, content, group=group))
    start, end = builder.start_lsn, builder.end_lsn
    batches = {
        part.group: encode_batch(
            group=part.group,
            volume=bytes(16),
            epoch=epoch,
            prev_lsn=log.tail(part.group),
            flush_start=start,
            flush_end=end,
            time_us=0,
            vdl=0,
            record_count=part.record_count,
            groups=groups,
            records=part.payload,
        )
        for part in builder.take()
    }
    return Flush(start, end, batches)


def log_of(count: int, choose: random.Random, groups: int = 4) -> list[Flush]:
    log, flushes = LogEnd(), []
    for _ in range(count):
        touched = sorted(choose.sample(range(groups), choose.randint(1, groups)))
        flushes.append(flush_after(log, touched))
        log.advance(flushes[-1])
    return flushes


@pytest.mark.parametrize("seed", range(10))
def test_groups_may_be_apart_and_repeat_themselves(seed: int) -> None:
    choose = random.Random(seed)
    flushes = log_of(40, choose)
    logs = {group: [f.batches[group] for f in flushes if group in f.batches] for group in range(4)}
    at = dict.fromkeys(logs, 0)
    merger, found = FlushMerger(0), []
    while len(found) < len(flushes):
        group = choose.choice([group for group in logs if at[group] < len(logs[group])] or [0])
        if choose.random() < 0.2:
            at[group] = max(0, at[group] - 3)  # another copy begins a little earlier
        if at[group] < len(logs[group]):
            merger.add(group, logs[group][at[group]])
            at[group] += 1
        while (flush := merger.take()) is not None:
            found.append(flush)
    assert found == flushes
    assert all(merger.buffered_bytes(group) == 0 for group in logs)


def test_it_says_which_groups_a_flush_waits_for() -> None:
    log = LogEnd()
    flush = flush_after(log, (0, 2, 7))
    merger = FlushMerger(0)
    assert merger.missing() is None
    merger.add(2, flush.batches[2])
    assert merger.missing() == {0, 7}
    assert merger.take() is None


def test_it_may_begin_within_a_flush() -> None:
    flushes = log_of(5, random.Random(1), groups=1)
    merger = FlushMerger(flushes[2].start + 8)
    for flush in flushes:
        merger.add(0, flush.batches[0])
    assert [merger.take() for _ in range(3)] == flushes[2:]
    assert merger.take() is None


def test_two_flushes_at_one_place_are_refused() -> None:
    merger = FlushMerger(0)
    merger.add(0, flush_after(LogEnd(), (0, 1)).batches[0])
    with pytest.raises(MalformedError, match="two flushes"):
        merger.add(1, flush_after(LogEnd(), (0, 1), epoch=2).batches[1])
    with pytest.raises(MalformedError, match="came from the log"):
        merger.add(3, flush_after(LogEnd(), (0, 1)).batches[1])
