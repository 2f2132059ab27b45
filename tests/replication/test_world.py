"""The decisions of several regions under many seeds: copies stay prefixes, no redo vanishes, bugs are found."""

from __future__ import annotations

import pytest

from tests.replication.world import BUGS, World

SEEDS = 400
STEPS = 150


def test_whatever_order_promotions_and_news_come_in() -> None:
    promoted = aside = 0
    for seed in range(SEEDS):
        world = World(seed)
        try:
            world.run(STEPS)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        promoted += max(region.held.generation for region in world.regions) > 0
        aside += any(region.aside for region in world.regions)
    assert promoted > SEEDS // 2, "the runs have promotions"
    assert aside > SEEDS // 10, "and tails that nobody else had"


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(2 * SEEDS):
        try:
            World(seed, bug).run(STEPS)
        except AssertionError:
            return
    raise AssertionError(f"{bug} was not found by {2 * SEEDS} seeds")
