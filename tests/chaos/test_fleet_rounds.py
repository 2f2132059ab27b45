"""What the rounds on a fleet are made of; the rounds themselves take a fleet and minutes."""

import pytest

from tests.chaos.fleet import UNKNOWN_ROUNDS_MIN, FleetRound, FleetSummary
from tests.chaos.fleet_rota import FLEET_FAULTS, fault_of_round
from tests.chaos.history_round import Verdict
from tests.histories.check import Unknown


def test_every_fault_comes_up_before_one_comes_again() -> None:
    count = len(FLEET_FAULTS)
    turns = [[fault_of_round(7, number) for number in range(first, first + count)] for first in (1, count + 1)]
    assert [sorted(turn) for turn in turns] == [sorted(FLEET_FAULTS)] * 2
    assert turns[0] != turns[1]
    assert turns[0] == [fault_of_round(7, number) for number in range(1, count + 1)]
    assert turns[0] != [fault_of_round(8, number) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("rounds", "unknown", "complains"),
    [
        (UNKNOWN_ROUNDS_MIN, Unknown(happened=1), True),
        (UNKNOWN_ROUNDS_MIN, Unknown(absent=1), True),
        (UNKNOWN_ROUNDS_MIN, Unknown(open=1), True),
        (UNKNOWN_ROUNDS_MIN, Unknown(happened=1, absent=1), False),
        (UNKNOWN_ROUNDS_MIN - 1, Unknown(), False),
    ],
)
def test_a_long_run_must_see_both_outcomes_of_unknown_commits(rounds: int, unknown: Unknown, complains: bool) -> None:
    none = Verdict(ok=100, failed=3, unknown=Unknown(), outage_s=1.0, check_s=0.1)
    one = Verdict(ok=100, failed=3, unknown=unknown, outage_s=1.0, check_s=0.1)
    verdicts = [one, *[none] * (rounds - 1)]
    summary = FleetSummary(1, [FleetRound(number, "kill", verdict, 5.0) for number, verdict in enumerate(verdicts)])
    assert bool(summary.one_sided()) is complains
