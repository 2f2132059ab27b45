"""Which misses are taken for one reader in sequence, and how far ahead of it pages are asked for."""

from __future__ import annotations

import random

from aurora_ray.mount.readahead import AHEAD_MAX, AHEAD_MIN, Stream

RUN = 16  # pages that a worker of an engine asks for at once


def test_a_reader_in_sequence_is_never_waited_for_again() -> None:
    stream = Stream()
    asked = 0
    for first in range(0, 20_000, RUN):
        due = stream.follow(first, first + RUN)
        if due:
            assert due.start == max(asked, first + RUN)
            asked = due.stop
        assert first == 0 or first + RUN < asked <= first + RUN + AHEAD_MAX
    assert asked >= 20_000 + 512


def test_workers_that_overtake_each_other_are_one_reader() -> None:
    order = list(range(0, 20_000, RUN))
    chosen = random.Random(5)
    for at in range(0, len(order) - 8, 8):
        order[at : at + 8] = chosen.sample(order[at : at + 8], 8)
    stream, asked = Stream(), []
    for first in order:
        asked += stream.follow(first, first + RUN)
    assert len(asked) == len(set(asked)), "no page twice"
    assert len(asked) > 19_000


def test_scattered_reads_are_left_alone() -> None:
    stream, chosen = Stream(), random.Random(7)
    ahead = sum(len(stream.follow(first, first + 1)) for first in chosen.sample(range(1_000_000), 2_000))
    assert ahead < 200


def test_a_second_scan_begins_anew() -> None:
    stream = Stream()
    for first in range(0, 4_000, RUN):
        stream.follow(first, first + RUN)
    assert not stream.follow(0, RUN)
    assert stream.follow(RUN, 2 * RUN) == range(2 * RUN, 2 * RUN + AHEAD_MIN)
