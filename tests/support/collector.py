"""A little OTLP collector: a real gRPC server that keeps what it is sent."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
    """Both services call their method Export; the request says which it is."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.port = 0

    def Export(self, request: object, _context: object) -> object:  # noqa: N802 - the protocol's name
        """Keeps the request."""
        self.requests.append(request)
        if isinstance(request, trace_pb2.ExportTraceServiceRequest):
            return trace_pb2.ExportTraceServiceResponse()
        return metrics_pb2.ExportMetricsServiceResponse()

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[tuple[str, Span]]:
        """Every span so far, with the name of the service that it is from."""
        found = []
        for request in list(self.requests):
            if isinstance(request, trace_pb2.ExportTraceServiceRequest):
                for resource in request.resource_spans:
                    names = {a.key: a.value.string_value for a in resource.resource.attributes}
                    spans = [span for scope in resource.scope_spans for span in scope.spans]
                    found += [(names.get("service.name", ""), span) for span in spans]
        return found


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Listens on loopback until the end of the block."""
    servicer = Collector()
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        trace_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        metrics_grpc.add_MetricsServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        servicer.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield servicer
        finally:
            server.stop(grace=1).wait(5)
