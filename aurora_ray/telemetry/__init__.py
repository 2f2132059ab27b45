"""OpenTelemetry spans and Prometheus metrics for every layer; importing it is cheap and exports nothing by itself.

A process calls `configure` once. From then on spans go to a local file (if a directory is given), which `aurora trace`
and Jaeger read, and to an OTLP collector (if the standard OTEL_* variables name one). Without `configure` a span is a
no-op that costs well under a microsecond, so library code never has to ask whether telemetry is on.

    with telemetry.span("volume.recover", {"aurora.volume": str(volume_id)}) as span: ...   # always recorded
    with telemetry.sampled_span("volume.flush", every=256): ...                            # hot path: one in 256
    with telemetry.stage_span("volume.flush.encode"): ...                                  # only below a recorded one
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.telemetry.propagation import attached, extract_dict, extract_metadata, inject_dict, inject_metadata
from aurora_ray.telemetry.tracing import (
    Attributes,
    configure,
    current_trace_id,
    flush,
    record_span,
    sampled_span,
    shutdown,
    span,
    stage_span,
    start_span,
)

if TYPE_CHECKING:
    from aurora_ray.telemetry.metrics import REGISTRY, counter, exposition, gauge, histogram
    from aurora_ray.telemetry.serving import Rendered, serve_metrics

__all__ = [
    "REGISTRY",
    "Attributes",
    "Rendered",
    "attached",
    "configure",
    "counter",
    "current_trace_id",
    "exposition",
    "extract_dict",
    "extract_metadata",
    "flush",
    "gauge",
    "histogram",
    "inject_dict",
    "inject_metadata",
    "record_span",
    "sampled_span",
    "serve_metrics",
    "shutdown",
    "span",
    "stage_span",
    "start_span",
]

# Imported when one is asked for: commands have spans and no metrics, and Prometheus' client takes 30 ms to import.
_OF_METRICS: Final = {
    "REGISTRY": "metrics",
    "Rendered": "serving",
    "counter": "metrics",
    "exposition": "metrics",
    "gauge": "metrics",
    "histogram": "metrics",
    "serve_metrics": "serving",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OF_METRICS[name]}"), name)
