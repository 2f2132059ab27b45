"""Traces over gRPC: a call made inside a recorded span says so, and what the server does for it becomes a span too.

A client passes `metadata=trace_metadata()`; the server needs nothing but the interceptor. Calls that say nothing are
not traced and cost one look at their metadata. The stream that carries redo never says anything: it lives as long as
its writer, and no single failover is its cause.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from aurora_ray import telemetry
from aurora_ray.rpc.partition import PARTY

if TYPE_CHECKING:
    from opentelemetry.context import Context

_KEY: Final = "traceparent"


def trace_metadata() -> tuple[tuple[str, str | bytes], ...] | None:
    """The current span, for a call's metadata; None where none is being recorded, or the last one has ended."""
    return telemetry.inject_metadata() if trace.get_current_span().is_recording() else None


if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor  # the type stubs know it as generic, the library does not


class ServerSpans(_Interceptor):
    """Makes a span of every traced call with one request, named `<Service>.<Method>`, with the server's own party."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata
        if handler is None or not any(key == _KEY for key, _ in metadata or ()):
            return handler
        name, parent = _span_name(handler_call_details.method), telemetry.extract_metadata(metadata)
        if inspect.iscoroutinefunction(handler.unary_unary):
            return grpc.unary_unary_rpc_method_handler(
                _traced(handler.unary_unary, name, parent), handler.request_deserializer, handler.response_serializer
            )
        if inspect.iscoroutinefunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                _traced(handler.unary_stream, name, parent), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _traced(
    serve: Callable[[Any, Any], Awaitable[Any]], name: str, parent: Context
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def wrapped(request: Any, context: Any) -> Any:
        with telemetry.span(name, {"aurora.party": PARTY.name}, parent=parent, kind=SpanKind.SERVER) as span:
            try:
                return await serve(request, context)
            except grpc.aio.AbortError as error:  # a refusal: what it says went to the caller, and is not in the error
                aborted = error
                span.set_status(StatusCode.ERROR, context.details())
        raise aborted

    return wrapped


def _span_name(method: str) -> str:
    """`/package.v1.Service/Method` without the package."""
    service, _, name = method.removeprefix("/").partition("/")
    return f"{service.rpartition('.')[2]}.{name}"
