"""Generations, epochs and successions by example; `test_world.py` tries all orders."""

from __future__ import annotations

import pytest

from aurora_ray.errors import UsageError
from aurora_ray.replication.succession import (
    SLOTS,
    TURNS_MAX,
    Succession,
    Turn,
    common_lsn,
    epochs_of,
    generation,
    generation_of,
    next_generation,
    slot_of,
    term_of,
)


def test_epochs_carry_the_generation_and_a_cluster_without_regions_counts_as_ever() -> None:
    assert epochs_of(0).start == 1
    for number in (0, 1, 17, next_generation(17, 3)):
        epochs = epochs_of(number)
        assert generation_of(epochs.start) == generation_of(epochs.stop - 1) == number
        assert epochs_of(number + 1).start == epochs.stop
    assert epochs_of(generation((1 << 31) // SLOTS - 1, SLOTS - 1)).stop <= 1 << 63


def test_two_regions_never_take_the_same_generation() -> None:
    taken = {next_generation(highest, slot) for highest in range(SLOTS) for slot in range(SLOTS)}
    assert len(taken) == SLOTS, "the term is the next one, whoever had the last"
    assert all(term_of(number) == 1 for number in taken)
    assert sorted(map(slot_of, taken)) == list(range(SLOTS))
    assert min(next_generation(number, 0) for number in taken) > max(taken)
    with pytest.raises(UsageError):
        next_generation(0, SLOTS)


def test_copies_are_the_same_up_to_where_their_successions_part() -> None:
    first = Succession()
    west = first.promoted(100, 17)
    assert west.turns == (Turn(0, 0), Turn(100, 17))
    assert common_lsn(first, 100, west) == 100
    assert common_lsn(first, 90, west) == 90
    assert common_lsn(first, 140, west) == 100, "what the old primary wrote on"
    assert common_lsn(west, 140, west) == 140
    # Promoted without having seen what west wrote: all of west's goes, and nothing of the first one's below.
    east = first.promoted(80, 33)
    assert common_lsn(west, 140, east) == 80
    later = first.promoted(120, 33)  # it has more of the first one's than west had
    assert common_lsn(west, 140, later) == 100
    assert common_lsn(later, 130, west) == 100


def test_a_promotion_where_the_one_before_began_takes_its_place() -> None:
    once = Succession().promoted(50, 17)
    assert once.promoted(50, 33).turns == (Turn(0, 0), Turn(50, 33))
    assert once.promoted(40, 33).turns == (Turn(0, 0), Turn(40, 33))
    assert Succession().promoted(0, 17).at(0) == 17
    with pytest.raises(UsageError):
        once.promoted(60, 17)


def test_a_long_succession_forgets_its_beginning_and_says_no_less_of_its_end() -> None:
    long = Succession()
    for turn in range(1, TURNS_MAX + 50):
        long = long.promoted(10 * turn, 16 * turn)
    assert len(long.turns) == TURNS_MAX
    assert Succession.from_list(long.to_list()) == long
    end = long.turns[-1].lsn + 5
    assert common_lsn(long, end, long.promoted(end - 2, 1 << 20)) == end - 2
    assert common_lsn(Succession(long.turns[:-3]), end, long) == long.turns[-3].lsn
