"""Histograms survive the way from one machine to another, and add up."""

from hdrh.histogram import HdrHistogram

from benchmarks.load import DIGITS, HIGHEST_US, LoadResult, encode, merge


def _result(latency_us: int, transactions: int) -> LoadResult:
    histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
    histogram.record_value(latency_us, transactions)
    return LoadResult(transactions, 0, 10.0, transactions / 10, 1.5, encode(histogram))


def test_results_of_several_generators_become_one() -> None:
    merged = merge([_result(1_000, 990), _result(50_000, 10)])
    assert (merged.transactions, merged.tps, merged.client_cpu_s, merged.seconds) == (1_000, 100.0, 3.0, 10.0)
    assert 999 <= merged.latency_us["p50"] <= 1_001
    assert 49_900 <= merged.latency_us["p99.9"] <= 50_100
