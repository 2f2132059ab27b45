"""Latencies as counts by microsecond, and as HDR histograms (hdrhistogram.org) for keeping and for percentiles.

Load generators return counts, which need no library on the machine that they ran on, and which add up. Both keep three
significant digits: a percentile is within 0.1 % of what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

HIGHEST_US: Final = 600_000_000
DIGITS: Final = 3
PERCENTILES: Final = (50, 95, 99, 99.9)

Counts = Mapping[int, int]  # microseconds -> how many


def rounded(latency_us: int) -> int:
    """To three significant digits, at least 1."""
    unit = 1
    while latency_us >= 1000 * unit:
        unit *= 10
    return max(1, (latency_us + unit // 2) // unit * unit)


def added(several: Iterable[Counts]) -> dict[int, int]:
    """All of them together."""
    total: Counter[int] = Counter()
    for counts in several:
        total.update(counts)
    return dict(total)


def encode(counts: Counts) -> str:
    """An HDR histogram of microseconds in its own compressed, printable form, as other HDR tools read it."""
    histogram = _empty()
    for latency_us, count in counts.items():
        histogram.record_value(min(latency_us, HIGHEST_US), count)
    return bytes(histogram.encode()).decode("ascii")


def percentiles(encoded: Iterable[str], wanted: Iterable[float] = PERCENTILES) -> dict[str, float]:
    """Microseconds by name (p50, p99.9, max, mean) over all these histograms together."""
    histogram = _empty()
    for text in encoded:
        histogram.decode_and_add(text)
    found = {f"p{each:g}": float(histogram.get_value_at_percentile(each)) for each in wanted}
    return {**found, "max": float(histogram.get_max_value()), "mean": round(histogram.get_mean_value(), 1)}


def _empty() -> HdrHistogram:
    from hdrh.histogram import HdrHistogram

    return HdrHistogram(1, HIGHEST_US, DIGITS)
