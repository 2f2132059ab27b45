"""The process's metrics: one registry, made where they are used, read as Prometheus text.

`counter`, `gauge` and `histogram` return the same object for the same name, so a module may ask for its metrics at
import and a class may ask again. Names are `aurora_<area>_<what>_<unit>` in Prometheus' base units (seconds, bytes; a
counter's `_total` is appended by itself). Label values must come from small fixed sets (node ids, refusal reasons):
each combination lives as long as the process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Quorum commits take 1 to 20 ms here, failovers seconds: about three buckets per factor of ten over both.
LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip

_NAME = re.compile(r"aurora(_[a-z0-9]+){2,}")
_MetricT = TypeVar("_MetricT", bound=MetricWrapperBase)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second time series per counter that nobody reads
REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
_metrics: dict[str, tuple[MetricWrapperBase, tuple[str, ...]]] = {}


def counter(name: str, description: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows. Raises ValueError for a bad name, or one taken by another kind or label set."""
    return _known(Counter, name, labels) or _add(Counter(name, description, labels, registry=REGISTRY), name, labels)


def gauge(name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
    """A number that goes up and down. Raises as `counter`."""
    return _known(Gauge, name, labels) or _add(Gauge(name, description, labels, registry=REGISTRY), name, labels)


def histogram(
    name: str, description: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
) -> Histogram:
    """A distribution; `buckets` are upper bounds, ascending, in the unit the name ends with. Raises as `counter`."""
    known = _known(Histogram, name, labels)
    return known or _add(Histogram(name, description, labels, buckets=buckets, registry=REGISTRY), name, labels)


def exposition() -> bytes:
    """Every metric of this process in Prometheus' text format."""
    return generate_latest(REGISTRY)


def _known(kind: type[_MetricT], name: str, labels: Sequence[str]) -> _MetricT | None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"metric name {name!r} is not of the form aurora_<area>_<what>_<unit>")
    if name not in _metrics:
        return None
    metric, known_labels = _metrics[name]
    if not isinstance(metric, kind) or known_labels != tuple(labels):
        raise ValueError(f"metric {name!r} exists already as another kind or with the labels {known_labels}")
    return metric


def _add(metric: _MetricT, name: str, labels: Sequence[str]) -> _MetricT:
    _metrics[name] = (metric, tuple(labels))
    return metric
