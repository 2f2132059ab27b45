"""The simulator: quiet on some seeds (`make sim` runs many), repeatable, and loud when a bug is planted."""

from __future__ import annotations

import pytest

from tests.sim import bugs
from tests.sim.oracle import InvariantError
from tests.sim.simulation import run_seed

QUIET_SEEDS = 60
SEEDS_MAX = 400
# Where the search for what shows rarely begins: shortly before the seed that showed it when this was written.
STARTS = {
    "fetch_what_is_annulled": 130,
    "recover_by_what_was_written_down": 65,
    "recover_on_the_next_members_only": 105,
}


@pytest.mark.parametrize("start", range(0, QUIET_SEEDS, 20))
def test_nothing_to_complain_about(start: int) -> None:
    durable = sum(run_seed(seed).oracle.flush_count for seed in range(start, start + 20))
    assert durable > 100


def test_a_seed_repeats_itself() -> None:
    first, second = run_seed(7), run_seed(7)
    assert first.world.steps == second.world.steps
    assert list(first.world.trace) == list(second.world.trace)
    assert first.oracle.end_lsn == second.oracle.end_lsn


def run_seeds_until_failure(start: int) -> None:
    for seed in range(start, start + SEEDS_MAX):
        run_seed(seed)


@pytest.mark.parametrize("plant", bugs.PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: bugs.Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(InvariantError, match=r"^seed "):
        run_seeds_until_failure(STARTS.get(plant.__name__, 0))
