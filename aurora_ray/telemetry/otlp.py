"""Export to an OTLP collector, if the standard environment variables ask for it; the exporters are imported only then.

Spans go through the SDK. Metrics live in our Prometheus registry and are translated here, on the exporter's own thread:
the code that counts pays for one registry only.

OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT, …_METRICS_ENDPOINT) turns the export on; so does OTEL_TRACES_EXPORTER
or OTEL_METRICS_EXPORTER = "otlp", to the default endpoint; "none" there turns it off. The exporters read the rest of
OTEL_EXPORTER_OTLP_* (headers, timeout, TLS, compression) themselves.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from aurora_ray.errors import ConfigurationError
from aurora_ray.telemetry.metrics import REGISTRY

DEFAULT_PUSH_INTERVAL_MS = 60_000

_log = logging.getLogger(__name__)


def wanted(environment: Mapping[str, str], signal: str) -> bool:
    """Whether the environment asks for OTLP export of `signal`, "TRACES" or "METRICS"."""
    chosen = environment.get(f"OTEL_{signal}_EXPORTER")
    if chosen is not None:
        return "otlp" in (name.strip() for name in chosen.split(","))
    return any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT", "").strip() for part in ("", f"{signal}_"))


def span_exporters(environment: Mapping[str, str]) -> list[SpanExporter]:
    """The OTLP span exporter, or none."""
    if not wanted(environment, "TRACES"):
        return []
    exporter: SpanExporter = _load(environment, "TRACES", "trace_exporter", "OTLPSpanExporter")
    return [exporter]


def start_metrics_pusher(environment: Mapping[str, str], resource: Resource) -> MetricsPusher | None:
    """A running pusher, or None if nobody asked for one."""
    if not wanted(environment, "METRICS"):
        return None
    exporter: sdk.MetricExporter = _load(environment, "METRICS", "metric_exporter", "OTLPMetricExporter")
    text = environment.get("OTEL_METRIC_EXPORT_INTERVAL", str(DEFAULT_PUSH_INTERVAL_MS))
    if not text.isdigit() or int(text) == 0:
        raise ConfigurationError(f"OTEL_METRIC_EXPORT_INTERVAL is {text!r}: give whole milliseconds, more than 0.")
    return MetricsPusher(exporter, resource, interval_s=int(text) / 1000)


def _load(environment: Mapping[str, str], signal: str, module: str, name: str) -> Any:
    protocol = environment.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    if protocol not in ("grpc", "http/protobuf"):
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: use grpc or http/protobuf.")
    package = "grpc" if protocol == "grpc" else "http"
    try:
        return getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), name)()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"OTLP over {protocol} needs a package: pip install opentelemetry-exporter-otlp-proto-{package}"
        ) from error


class MetricsPusher:
    """Sends the registry's content to a collector every `interval_s`, and once more when stopped."""

    def __init__(self, exporter: sdk.MetricExporter, resource: Resource, interval_s: float) -> None:
        self._exporter = exporter
        self._resource = resource
        self._interval_s = interval_s
        self._started_ns = time.time_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aurora-metrics-pusher", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Push a last time and end the thread; waits at most `timeout_s` for a collector that does not answer."""
        self._stopping.set()
        self._thread.join(timeout_s)
        self._exporter.shutdown(timeout_millis=timeout_s * 1000)

    def _run(self) -> None:
        while True:
            stopping = self._stopping.wait(self._interval_s)
            try:
                self._exporter.export(snapshot(REGISTRY.collect(), self._resource, self._started_ns, time.time_ns()))
            except Exception:  # a collector's trouble must not end the export for good
                _log.exception("Metrics could not be exported; the next attempt follows in %s s.", self._interval_s)
            if stopping:
                return


def snapshot(families: Iterable[Family], resource: Resource, started_ns: int, now_ns: int) -> sdk.MetricsData:
    """Prometheus metric families as OTLP metrics data; kinds other than counter, gauge and histogram are left out."""
    translated = [
        sdk.Metric(name=family.name, description=family.documentation, unit="", data=data)
        for family in families
        if (data := _translate(family, started_ns, now_ns)) is not None
    ]
    scope = sdk.ScopeMetrics(scope=InstrumentationScope("aurora_ray"), metrics=translated, schema_url="")
    return sdk.MetricsData([sdk.ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


def _translate(family: Family, started_ns: int, now_ns: int) -> sdk.Sum | sdk.Gauge | sdk.Histogram | None:
    cumulative = sdk.AggregationTemporality.CUMULATIVE
    if family.type == "counter":
        totals = [s for s in family.samples if s.name.endswith("_total")]
        points = [sdk.NumberDataPoint(s.labels, started_ns, now_ns, s.value) for s in totals]
        return sdk.Sum(points, cumulative, is_monotonic=True)
    if family.type == "gauge":
        return sdk.Gauge([sdk.NumberDataPoint(s.labels, started_ns, now_ns, s.value) for s in family.samples])
    if family.type == "histogram":
        return sdk.Histogram(_histogram_points(family.samples, started_ns, now_ns), cumulative)
    return None


def _histogram_points(samples: Iterable[Sample], started_ns: int, now_ns: int) -> list[sdk.HistogramDataPoint]:
    """Prometheus counts every observation in all larger buckets too and ends with +Inf; OTLP counts each once."""
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, int]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    points = []
    for labels, pairs in buckets.items():
        pairs.sort()
        upto = [count for _, count in pairs]
        points.append(
            sdk.HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=started_ns,
                time_unix_nano=now_ns,
                count=upto[-1],
                sum=sums.get(labels, 0.0),
                bucket_counts=[high - low for low, high in zip([0, *upto], upto, strict=False)],
                explicit_bounds=[bound for bound, _ in pairs[:-1]],
                # Prometheus does not keep the extremes: None leaves these optional fields out of the message.
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
        )
    return points
