"""A call made inside a span continues the trace at the server; any other call costs nothing and leaves nothing."""

import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aurora_ray import telemetry
from aurora_ray.errors import StorageError
from aurora_ray.rpc.admission import Doorkeeper
from aurora_ray.rpc.channel import bind, make_server, open_channel
from aurora_ray.rpc.partition import PARTY
from aurora_ray.rpc.tracing import trace_metadata
from aurora_ray.telemetry.spanreader import StoredSpan, read_spans


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, StoredSpan]]]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr(PARTY, "name", "storage-a-1")
    telemetry.configure("test", span_dir=tmp_path)

    def ended() -> dict[str, StoredSpan]:
        assert telemetry.flush()
        return {span.name: span for span in read_spans(tmp_path)}

    yield ended
    telemetry.shutdown()


async def _say(request: bytes, context: Any) -> bytes:
    if request == b"no":
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name")
    with telemetry.span("work"):
        return request


async def _count(request: bytes, context: Any) -> None:
    for number in range(int(request)):
        await context.write(bytes([number]))


@pytest.fixture
async def channel() -> AsyncIterator[Any]:
    server, guard = make_server(Doorkeeper("echo"))
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(_say),
        "Count": grpc.unary_stream_rpc_method_handler(_count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Echo", handlers),))
    port = bind(server, "127.0.0.1", 0)
    guard.door = str(port)
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", "echo") as opened:
        yield opened
    await server.stop(0)


async def test_the_servers_part_is_a_span_of_the_callers_trace(
    channel: Any, spans: Callable[[], dict[str, StoredSpan]]
) -> None:
    with telemetry.span("caller"):
        assert await channel.unary_unary("/test.v1.Echo/Say")(b"a", timeout=10, metadata=trace_metadata()) == b"a"
        count = channel.unary_stream("/test.v1.Echo/Count")(b"3", timeout=10, metadata=trace_metadata())
        assert [message async for message in count] == [b"\x00", b"\x01", b"\x02"]
    found = spans()
    caller, served, work = found["caller"], found["Echo.Say"], found["work"]
    assert served.parent_id == caller.span_id == found["Echo.Count"].parent_id
    assert work.parent_id == served.span_id
    assert {span.trace_id for span in found.values()} == {caller.trace_id}
    assert served.attributes["aurora.party"] == "storage-a-1"


async def test_a_refused_call_says_why(channel: Any, spans: Callable[[], dict[str, StoredSpan]]) -> None:
    with telemetry.span("caller"), pytest.raises(StorageError, match="nothing of that name"):
        await channel.unary_unary("/test.v1.Echo/Say")(b"no", timeout=10, metadata=trace_metadata())
    assert "nothing of that name" in (spans()["Echo.Say"].error or "")


async def test_calls_outside_of_a_trace_leave_none(channel: Any, spans: Callable[[], dict[str, StoredSpan]]) -> None:
    with telemetry.span("ended"):
        context = contextvars.copy_context()
    assert context.run(trace_metadata) is None, "whatever runs on in an ended span's context is no part of it"
    assert trace_metadata() is None
    await channel.unary_unary("/test.v1.Echo/Say")(b"a", timeout=10, metadata=trace_metadata())
    assert "Echo.Say" not in spans()
