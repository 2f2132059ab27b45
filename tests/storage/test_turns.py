"""Turns of volumes: who waits for whom, and who gets how much."""

from __future__ import annotations

from collections import Counter

from aurora_ray.storage.server.turns import Turns

NOISY, QUIET, OTHER = b"noisy", b"quiet", b"other"


def take(turns: Turns[int]) -> tuple[bytes, list[int]]:
    turn = turns.next()
    assert turn is not None
    turns.done(turn[0])
    return turn


def test_a_small_message_waits_for_one_turn_of_each_other_volume_at_most():
    turns = Turns[int](quantum_bytes=1000)
    for number in range(100):
        for volume in (NOISY, OTHER):
            turns.add(volume, number, 900)
    take(turns)
    turns.add(QUIET, 7, 10)
    before = []
    while (turn := take(turns))[0] != QUIET:
        before.append(turn)
    assert turn == (QUIET, [7])
    assert [volume for volume, _ in before] == [OTHER, NOISY], "one each"


def test_who_is_larger_than_a_quantum_waits_for_credit_while_others_are_served():
    turns = Turns[int](quantum_bytes=1000)
    turns.add(NOISY, 0, 3500)
    for number in range(10):
        turns.add(QUIET, number, 400)
    order = []
    while (turn := turns.next()) is not None:
        order.append(turn)
        turns.done(turn[0])
    assert order[:3] == [(QUIET, [0, 1]), (QUIET, [2, 3, 4]), (QUIET, [5, 6])]
    assert (NOISY, [0]) in order[3:5]
    assert sum(len(items) for _, items in order) == 11


def test_volumes_that_always_want_more_get_the_same_bytes_whatever_their_messages_are():
    turns, given, waiting = Turns[int](quantum_bytes=1000), Counter[bytes](), Counter[bytes]()
    sizes = {NOISY: 5000, OTHER: 700, QUIET: 30}
    for _ in range(3000):
        for volume, nbytes in sizes.items():
            while waiting[volume] < 200:
                turns.add(volume, nbytes, nbytes)
                waiting[volume] += 1
        volume, items = take(turns)
        waiting[volume] -= len(items)
        given[volume] += sum(items)
    assert max(given.values()) - min(given.values()) <= 2 * max(sizes.values()), given


def test_alone_a_volume_takes_its_next_message_whatever_its_size():
    turns = Turns[int](quantum_bytes=1000)
    turns.add(NOISY, 1, 50_000)
    turns.add(NOISY, 2, 10)
    assert turns.next() == (NOISY, [1])
    turns.done(NOISY)
    assert turns.next() == (NOISY, [2])


def test_what_comes_for_a_volume_during_its_turn_waits_for_its_next_one_and_goes_together():
    turns = Turns[int](quantum_bytes=1000)
    turns.add(NOISY, 1, 10)
    assert turns.next() == (NOISY, [1])
    for number in (2, 3, 4):
        turns.add(NOISY, number, 10)
    assert not turns.due
    assert turns.next() is None
    assert turns.has(NOISY)
    turns.done(NOISY)
    assert turns.next() == (NOISY, [2, 3, 4])
    turns.done(NOISY)
    assert not turns.has(NOISY)


def test_credit_is_not_kept_for_later():
    turns = Turns[int](quantum_bytes=1000)
    for _ in range(50):  # nothing of it waits in between
        turns.add(QUIET, 0, 1)
        take(turns)
    for number in range(10):
        turns.add(QUIET, number, 500)
        turns.add(NOISY, number, 500)
    assert take(turns) == (QUIET, [0, 1])
    assert take(turns) == (NOISY, [0, 1])
