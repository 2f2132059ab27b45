"""Export to a collector: when the environment asks for it, and that spans and metrics arrive."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2

from aurora_ray import telemetry
from aurora_ray.errors import ConfigurationError
from aurora_ray.telemetry import otlp
from aurora_ray.telemetry.spanreader import read_spans
from aurora_ray.telemetry.tracing import SHUTDOWN_TIMEOUT_S
from tests.support.collector import Collector, running_collector
from tests.support.timing import scaled

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as started:
        yield started


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, True),
    ],
)
def test_the_environment_decides(environment: dict[str, str], wanted: bool) -> None:
    assert otlp.wanted(environment, "TRACES") is wanted


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use grpc or http/protobuf"):
        otlp.span_exporters({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"})


def test_spans_and_metrics_arrive(collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    latency = telemetry.histogram("aurora_test_otlp_seconds", "Latency.", ["node"], buckets=(0.1, 1.0))
    for value_s in (0.05, 0.5, 0.6, 7.0):
        latency.labels("n1").observe(value_s)
    telemetry.counter("aurora_test_otlp_refusals", "Refusals.").inc(3)
    telemetry.configure("exporting", {"aurora.az": "b"}, tmp_path)
    with telemetry.span("sent"):
        pass
    telemetry.shutdown()

    assert [(service, span.name) for service, span in collector.spans()] == [("exporting", "sent")]
    metrics = [r for r in collector.requests if isinstance(r, metrics_pb2.ExportMetricsServiceRequest)]
    by_name = {m.name: m for m in metrics[-1].resource_metrics[0].scope_metrics[0].metrics}
    point = by_name["aurora_test_otlp_seconds"].histogram.data_points[0]
    assert list(point.bucket_counts) == [1, 2, 1]
    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert (point.count, point.sum) == (4, pytest.approx(8.15))
    assert not point.HasField("min")
    assert point.attributes[0].key == "node"
    refusals = by_name["aurora_test_otlp_refusals"].sum
    assert refusals.is_monotonic
    assert refusals.data_points[0].as_double == 3
    resource = {a.key: a.value.string_value for a in metrics[-1].resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "exporting"
    assert resource["aurora.az"] == "b"


LONELY = """
import pathlib, sys, time
from aurora_ray import telemetry
telemetry.configure("alone", span_dir=pathlib.Path(sys.argv[1]))
started_s = time.monotonic()
for _ in range(100):
    with telemetry.span("kept"): pass
traced_s = time.monotonic()
telemetry.shutdown()
sys.stdout.write(f"{traced_s - started_s} {time.monotonic() - traced_s}")
"""


def test_a_collector_that_is_not_there_delays_nobody(free_port: int, tmp_path: Path) -> None:
    """Spans go to the local file all the same, and the process ends in time."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port}", "OTEL_METRICS_EXPORTER": "none"}
    done = subprocess.run(
        [sys.executable, "-c", LONELY, str(tmp_path)],
        env={**os.environ, **endpoint},
        check=True,
        capture_output=True,
        text=True,
        timeout=scaled(30),
    )
    tracing_s, ending_s = map(float, done.stdout.split())
    assert tracing_s < scaled(1)
    assert ending_s < scaled(SHUTDOWN_TIMEOUT_S + 1.5)
    assert len(list(read_spans(tmp_path))) == 100
