"""When a difference may be reported, and when not."""

import pytest

from benchmarks.statistics import compare, spread


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == spread([1.0, 2.0, 3.0])
    found = spread([10.0, 30.0, 20.0, 100.0])
    assert (found.median, found.low, found.high, found.count) == (25.0, 10.0, 100.0, 4)


def test_ratios_are_taken_within_rounds() -> None:
    """Both systems slow down tenfold in the second round: the ratio stays."""
    comparison = compare({0: 200.0, 1: 20.0}, {0: 100.0, 1: 10.0})
    assert comparison.measurable
    assert str(comparison) == "2.00 (2.00 to 2.00)"


@pytest.mark.parametrize(
    ("ratios", "measurable"),
    [
        ([1.40, 1.45, 1.60], True),  # all on one side
        ([0.60, 0.70, 0.71], True),
        ([0.98, 1.01, 1.04], False),  # both sides, and the median is nearer to 1 than they are to each other
        ([0.69, 0.80, 1.37], False),
        ([0.99, 1.50, 1.55], True),  # one round on the other side does not hide a large difference
    ],
)
def test_noise_larger_than_the_difference_is_no_comparison(ratios: list[float], measurable: bool) -> None:
    comparison = compare(dict(enumerate(ratios)), dict.fromkeys(range(len(ratios)), 1.0))
    assert comparison.measurable is measurable
    assert ("no difference measurable" in str(comparison)) is not measurable


def test_one_round_or_none_is_no_comparison() -> None:
    assert str(compare({0: 2.0}, {0: 1.0})) == "one round: no comparison"
    assert str(compare({0: 2.0}, {1: 1.0})) == "no round in common"
    assert not compare({0: 2.0}, {0: 1.0}).measurable
