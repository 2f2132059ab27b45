"""The local span files: what other software expects of them, their bounds, and what a kill leaves."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from aurora_ray.telemetry.spanfile import SpanFileExporter, encode_request
from aurora_ray.telemetry.spanreader import read_spans
from tests.support.polling import poll_until_blocking


def make_span(name: str = "work", size: int = 0) -> ReadableSpan:
    """An ended span with one of everything."""
    tracer = TracerProvider(resource=Resource({"service.name": "s"}), shutdown_on_exit=False).get_tracer("scope")
    parent = tracer.start_span("parent")
    span = tracer.start_span(name, kind=SpanKind.SERVER, links=[Link(parent.get_span_context(), {"why": "test"})])
    span.set_attribute("padding", "x" * size)
    span.add_event("halfway", {"lsn": 5})
    span.set_status(Status(StatusCode.ERROR, "no luck"))
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def test_lines_are_otlp_as_the_protocol_defines_it() -> None:
    """Checked against OpenTelemetry's own messages: any unknown field or wrong type fails to parse."""
    span = make_span()
    encoded = json.loads(json.dumps(encode_request([span])))
    decoded = encoded["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    # OTLP's JSON writes ids in hexadecimal; protobuf's own JSON mapping, which we parse with, takes base64.
    for owner in (decoded, *decoded["links"]):
        for key in ("traceId", "spanId"):
            owner[key] = base64.b64encode(bytes.fromhex(owner[key])).decode()
    request = json_format.ParseDict(encoded, ExportTraceServiceRequest())
    parsed = request.resource_spans[0].scope_spans[0].spans[0]
    assert parsed.name == "work"
    assert parsed.kind == parsed.SPAN_KIND_SERVER
    assert parsed.trace_id == span.context.trace_id.to_bytes(16, "big")
    assert parsed.start_time_unix_nano == span.start_time
    assert parsed.end_time_unix_nano == span.end_time
    assert parsed.status.message == "no luck"
    assert parsed.status.code == parsed.status.STATUS_CODE_ERROR
    assert parsed.events[0].attributes[0].value.int_value == 5
    assert request.resource_spans[0].scope_spans[0].scope.name == "scope"
    assert request.resource_spans[0].resource.attributes[0].value.string_value == "s"


def test_a_file_is_rotated_and_bounded(tmp_path: Path) -> None:
    exporter = SpanFileExporter(tmp_path, "writer #1", file_bytes_max=10_000)
    for number in range(40):
        assert exporter.export([make_span(f"span{number}", size=1000)]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert len(sizes) == 2
    assert all(0 < size <= 10_000 for size in sizes.values())
    assert all(name.startswith(f"writer_1-{os.getpid()}-") for name in sizes)
    names = {span.name for span in read_spans(tmp_path)}
    assert "span39" in names
    assert len(names) >= 8, "the newest are kept"


def test_old_files_of_a_directory_go(tmp_path: Path) -> None:
    now_s = time.time()
    for age in range(10):
        path = tmp_path / f"old-{age}.jsonl"
        path.write_bytes(b"{}\n" * 1000)
        os.utime(path, (now_s - 100 - age, now_s - 100 - age))
    exporter = SpanFileExporter(tmp_path, "new", directory_bytes_max=9_500)
    exporter.export([make_span()])
    exporter.shutdown()
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if name.startswith("old")} == {"old-0.jsonl", "old-1.jsonl", "old-2.jsonl"}
    assert exporter.path.name in left


def test_a_killed_process_leaves_what_it_wrote(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from aurora_ray import telemetry\n"
        "telemetry.configure('victim', span_dir=pathlib.Path(sys.argv[1]))\n"
        "while True:\n"
        "    with telemetry.span('busy'): time.sleep(0.001)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as victim:
        poll_until_blocking(lambda: len(list(read_spans(tmp_path))) > 10, timeout_s=30, what="spans reach the file")
        victim.send_signal(signal.SIGKILL)
    spans = list(read_spans(tmp_path))
    assert len(spans) > 10
    assert {span.service for span in spans} == {"victim"}


@pytest.mark.parametrize("tail", [b'{"resourceSpans": [{"resou', b"\xff\xfe\n", b"\n"])
def test_a_torn_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    exporter = SpanFileExporter(tmp_path, "s")
    exporter.export([make_span("whole")])
    exporter.shutdown()
    with exporter.path.open("ab") as file:
        file.write(tail)
    assert [span.name for span in read_spans(tmp_path)] == ["whole"]
