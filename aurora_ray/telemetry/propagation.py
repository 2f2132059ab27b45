"""A trace's way from one process to the next: W3C trace context in gRPC metadata and in plain dictionaries (Ray calls).

Sender:    stub.Seal(request, metadata=inject_metadata())            actor.open.remote(spec, trace=inject_dict())
Receiver:  with span("storage.seal", parent=extract_metadata(context.invocation_metadata())): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

_PROPAGATOR = TraceContextTextMapPropagator()


def inject_dict(context: Context | None = None) -> dict[str, str]:
    """The trace that `context` (default: the current one) belongs to, as strings; empty outside of a trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return carrier


def extract_dict(carrier: Mapping[str, str] | None) -> Context:
    """The sender's context, for `span(parent=…)`; one without a trace if the carrier holds none, or rubbish."""
    # An empty base, not the current context: whatever this task happens to run under did not cause the message.
    return _PROPAGATOR.extract(dict(carrier or {}), Context())


def inject_metadata(metadata: Metadata = (), context: Context | None = None) -> tuple[tuple[str, str | bytes], ...]:
    """gRPC call metadata: what is given, and the trace."""
    return (*metadata, *inject_dict(context).items())


def extract_metadata(metadata: Metadata | None) -> Context:
    """As `extract_dict`, from a servicer's `context.invocation_metadata()`."""
    return extract_dict({key: value for key, value in metadata or () if isinstance(value, str)})


@contextmanager
def attached(context: Context) -> Iterator[None]:
    """Make `context` the current one inside a block, without a span of its own."""
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)
