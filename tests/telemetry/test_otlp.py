"""Export to a collector: when the environment asks for it, and that spans and metrics arrive."""

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from aurora_ray import telemetry
from aurora_ray.errors import ConfigurationError
from aurora_ray.telemetry import otlp

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


class Collector(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
    """Keeps what it is sent. Both services call their method Export; the request says which it is."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.port = 0

    def Export(self, request: object, _context: object) -> object:  # noqa: N802 - the protocol's name
        self.requests.append(request)
        if isinstance(request, trace_pb2.ExportTraceServiceRequest):
            return trace_pb2.ExportTraceServiceResponse()
        return metrics_pb2.ExportMetricsServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A running OTLP/gRPC collector."""
    servicer = Collector()
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        trace_grpc.add_TraceServiceServicer_to_server(servicer, server)
        metrics_grpc.add_MetricsServiceServicer_to_server(servicer, server)
        servicer.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer
        server.stop(grace=1).wait(5)


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
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    latency = telemetry.histogram("aurora_test_otlp_seconds", "Latency.", ["node"], buckets=(0.1, 1.0))
    for value_s in (0.05, 0.5, 0.6, 7.0):
        latency.labels("n1").observe(value_s)
    telemetry.counter("aurora_test_otlp_refusals", "Refusals.").inc(3)
    telemetry.configure("exporting", {"aurora.az": "b"}, tmp_path)
    with telemetry.span("sent"):
        pass
    telemetry.shutdown()

    traces = [r for r in collector.requests if isinstance(r, trace_pb2.ExportTraceServiceRequest)]
    assert [s.name for r in traces for s in r.resource_spans[0].scope_spans[0].spans] == ["sent"]
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
