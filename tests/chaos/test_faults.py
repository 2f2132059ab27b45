"""Which fault comes in which round: all of them in a short run, and the same ones for the same seed."""

from collections import Counter

from tests.chaos.faults import FAULTS, fault_of_round

COUNT = len(FAULTS)


def test_a_short_run_has_every_fault() -> None:
    for seed in (7, 104):
        assert sorted(fault_of_round(seed, number) for number in range(1, COUNT + 1)) == sorted(FAULTS)


def test_rounds_repeat_by_seed_and_number_alone() -> None:
    later = [fault_of_round(7, number) for number in range(COUNT, 3 * COUNT)]
    assert later == [fault_of_round(7, number) for number in range(COUNT, 3 * COUNT)]
    assert later != [fault_of_round(8, number) for number in range(COUNT, 3 * COUNT)]


def test_in_a_long_run_the_weights_show() -> None:
    seen = Counter(fault_of_round(7, number) for number in range(1, 100 * COUNT + 1))
    heavy, light = (sorted(FAULTS, key=lambda name: FAULTS[name][1])[place] for place in (-1, 0))
    assert seen[heavy] > 1.5 * seen[light]
    assert min(seen.values()) >= 50
