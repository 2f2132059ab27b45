"""The process's tracer: set-up, tear-down, and the four ways to make a span.

We keep our own provider instead of OpenTelemetry's global one: the global can be set only once per process, belongs to
whoever comes first (Ray, an application that embeds us), and cannot be shut down and set up again as tests do.

The SDK is imported inside `configure`, the OTLP exporter only when the environment asks for it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NoOpTracer, Span, SpanKind, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from aurora_ray.telemetry.otlp import MetricsPusher

AttributeValue: TypeAlias = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Attributes: TypeAlias = Mapping[str, AttributeValue]

SCOPE_NAME = "aurora_ray"
QUEUE_SPANS_MAX = 4096
SHUTDOWN_TIMEOUT_S = 3.0  # for collectors; the local file, which comes first, takes no time
EXPORT_DELAY_MS = 500  # also what a `kill -9` can lose of the local span file

_TRUE = ("1", "true", "yes")


class _NoSpan(AbstractContextManager[Span]):
    """A context manager that does nothing, shared by all callers: the cost of a span that is not sampled."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return INVALID_SPAN

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None


@dataclass(slots=True)
class _Process:
    """What `configure` set up; `provider` is None while telemetry is off."""

    tracer: Tracer
    provider: TracerProvider | None = None
    pusher: MetricsPusher | None = None


_NO_SPAN = _NoSpan()
_process = _Process(tracer=NoOpTracer())
_sample_counts: dict[str, int] = {}


def configure(service_name: str, attributes: Attributes | None = None, span_dir: Path | None = None) -> None:
    """Start telemetry for this process; a second call replaces the first.

    `attributes` describe the process (cluster, AZ, node id …) and go with every span. `span_dir`, usually
    `<data_dir>/telemetry`, receives one bounded JSON-lines file per process; it is created if need be. OTLP export
    follows OTEL_EXPORTER_OTLP_* and OTEL_{TRACES,METRICS}_EXPORTER; OTEL_SDK_DISABLED=true turns everything off.
    Raises ConfigurationError if the environment asks for a protocol whose exporter is not installed.
    """
    shutdown()
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() in _TRUE:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from aurora_ray.telemetry import otlp
    from aurora_ray.telemetry.spanfile import SpanFileExporter

    resource = Resource.create(
        {
            "service.name": service_name,
            "service.namespace": "aurora-ray",
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            **(attributes or {}),
        }
    )
    provider = TracerProvider(resource=resource)
    exporters = [SpanFileExporter(span_dir, service_name)] if span_dir is not None else []
    for exporter in (*exporters, *otlp.span_exporters(os.environ)):
        provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=EXPORT_DELAY_MS)
        )
    _process.provider = provider
    _process.tracer = provider.get_tracer(SCOPE_NAME)
    _process.pusher = otlp.start_metrics_pusher(os.environ, resource)


def flush(timeout_s: float = 2.0) -> bool:
    """Hand every ended span to the exporters now; False if that took longer than `timeout_s`."""
    provider = _process.provider
    return provider is None or provider.force_flush(int(timeout_s * 1000))


def shutdown() -> None:
    """Flush and stop; spans are no-ops afterwards. Harmless when telemetry was never configured.

    A collector that does not answer loses what it was not sent: it is waited for `SHUTDOWN_TIMEOUT_S` at most.
    """
    provider, pusher = _process.provider, _process.pusher
    _process.provider = _process.pusher = None
    _process.tracer = NoOpTracer()
    _sample_counts.clear()
    if pusher is not None:
        pusher.stop()
    if provider is not None:
        ending = threading.Thread(target=provider.shutdown, name="aurora-telemetry-shutdown", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_TIMEOUT_S)


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> AbstractContextManager[Span]:
    """A span around a block, current inside it. An exception that leaves the block is recorded and goes on.

    `parent` is what `extract_metadata` or `extract_dict` returned, for work that a message from elsewhere caused;
    without it the current span is the parent.
    """
    if _process.provider is None:
        return _NO_SPAN
    return _process.tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes)


def sampled_span(name: str, *, every: int, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """`span` for the first and then each `every`-th call with this name; else a shared no-op (about 0.1 us).

    Counting rather than drawing lots: the share is exact, and a run can be repeated. `every` goes with the span, so
    that totals can be estimated.
    """
    if _process.provider is None:
        return _NO_SPAN
    count = _sample_counts.get(name, 0)
    _sample_counts[name] = count + 1
    if count % every:
        return _NO_SPAN
    return _process.tracer.start_as_current_span(name, attributes={"aurora.sample_every": every, **(attributes or {})})


def stage_span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """A part of a larger span: recorded if the current span is, so that stages are sampled with their whole."""
    if _process.provider is None or not trace.get_current_span().is_recording():
        return _NO_SPAN
    return _process.tracer.start_as_current_span(name, attributes=attributes)


def start_span(
    name: str, attributes: Attributes | None = None, *, parent: Context | None = None, start_ns: int | None = None
) -> Span:
    """A span that outlives a block, not made current; the caller must `end()` it (a failover has many callbacks).

    `start_ns`: the Unix time it began, if that was before now.
    """
    return _process.tracer.start_span(name, context=parent, attributes=attributes, start_time=start_ns)


def record_span(
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: Attributes | None = None,
    *,
    parent: Context | None = None,
) -> None:
    """A span after the fact, from two Unix times in ns, for what was measured where no tracer is (C, an engine)."""
    if _process.provider is None:
        return
    recorded = _process.tracer.start_span(name, context=parent, attributes=attributes, start_time=start_ns)
    recorded.end(end_time=end_ns)


def current_trace_id() -> str | None:
    """The current trace's id as 32 hexadecimal digits, to print beside what it explains; None outside of a trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
