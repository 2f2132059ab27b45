"""What of a reader's own writes the volume has, by the notes that were taken."""

from random import Random

import pytest

from aurora_ray.compute.floors import NOTES_MAX, Floors


def test_nothing_is_known_before_the_first_note_and_of_what_is_older() -> None:
    floors = Floors()
    assert floors.at(1 << 60) == 0
    floors.note(500, 0)
    assert floors.at(1 << 60) == 0, "it had not been given all that there was"
    floors.note(500, 100)
    assert (floors.at(99), floors.at(100)) == (0, 500)


@pytest.mark.parametrize("seed", range(5))
def test_a_floor_is_never_above_the_newest_note_at_or_below_the_position(seed: int) -> None:
    rng, floors = Random(seed), Floors()
    notes, log, given = [], 0, 1
    for _ in range(5 * NOTES_MAX):
        log, given = log + rng.randrange(100), given + rng.randrange(3)
        notes.append((given, log))
        floors.note(log, given)
        position = rng.randrange(given + 5)
        right = max((log for given, log in notes if given <= position), default=0)
        assert floors.at(position) <= right
    assert floors.at(given) == log
