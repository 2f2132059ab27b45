"""Spans in local files: OTLP JSON lines, one file per process, bounded in size.

Each line is one complete OTLP request, `{"resourceSpans": [...]}`, as OpenTelemetry's file exporter specification has
it: ids in hexadecimal, 64-bit numbers as strings. Jaeger's "upload" takes such a file as it is, and so does a
collector's `otlpjsonfile` receiver. `aurora_ray.telemetry.spanreader` reads them back.

    <span_dir>/<service>-<pid>-<start, Unix ms>.jsonl        and, after a rotation, one predecessor:
    <span_dir>/<service>-<pid>-<start, Unix ms>.1.jsonl

A process keeps at most two files of FILE_BYTES_MAX; the oldest files of a directory go when it exceeds
DIRECTORY_BYTES_MAX. A line is written by one `write`, so a killed process leaves at most one torn line, the last.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, format_span_id, format_trace_id

FILE_BYTES_MAX = 16 * 1024 * 1024
DIRECTORY_BYTES_MAX = 256 * 1024 * 1024

_log = logging.getLogger(__name__)


class SpanFileExporter(SpanExporter):
    """Appends ended spans to this process's file. Called by one exporting thread at a time, as the SDK promises.

    A write that fails (disk full, directory gone) loses those spans, is logged once until it works again, and never
    disturbs the traced work.
    """

    def __init__(
        self,
        directory: Path,
        service_name: str,
        file_bytes_max: int = FILE_BYTES_MAX,
        directory_bytes_max: int = DIRECTORY_BYTES_MAX,
    ) -> None:
        stem = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', service_name)}-{os.getpid()}-{time.time_ns() // 1_000_000}"
        self.path = directory / f"{stem}.jsonl"
        self._previous = directory / f"{stem}.1.jsonl"
        self._file_bytes_max = file_bytes_max
        self._directory_bytes_max = directory_bytes_max
        self._fd = -1
        self._written_bytes = 0
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append one line; FAILURE if it could not be written."""
        line = json.dumps(encode_request(spans), separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            if not self._failing:
                _log.warning("Spans are lost until %s can be written again: %s", self.path, error)
            self._failing = True
            self.shutdown()
            return SpanExportResult.FAILURE
        self._failing = False
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is buffered here."""
        del timeout_millis
        return True

    def shutdown(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: bytes) -> None:
        if self._fd >= 0 and self._written_bytes + len(line) > self._file_bytes_max:
            self.shutdown()
            self.path.replace(self._previous)
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._written_bytes = os.fstat(self._fd).st_size
            self._prune()
        if os.write(self._fd, line) != len(line):
            raise OSError("a span line was written only in part; is the disk full?")
        self._written_bytes += len(line)

    def _prune(self) -> None:
        """Delete the directory's oldest files until it is within its bound; other processes may be doing the same."""
        found: list[tuple[float, int, Path]] = []
        for path in self.path.parent.glob("*.jsonl"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        total_bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total_bytes <= self._directory_bytes_max:
                return
            if path not in (self.path, self._previous):
                path.unlink(missing_ok=True)
                total_bytes -= size


def encode_request(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Spans of one process (so: of one resource) as an OTLP JSON ExportTraceServiceRequest."""
    by_scope: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        scope = span.instrumentation_scope.name if span.instrumentation_scope else ""
        by_scope.setdefault(scope, []).append(_encode_span(span))
    resource = _attributes(spans[0].resource.attributes) if spans else []
    scope_spans = [{"scope": {"name": scope}, "spans": encoded} for scope, encoded in by_scope.items()]
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": scope_spans}]}


def _encode_span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    encoded: dict[str, Any] = {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "name": span.name,
        "kind": span.kind.value + 1,  # the API counts from 0 = internal, OTLP from 1 = internal
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value},
    }
    if span.parent is not None:
        encoded["parentSpanId"] = format_span_id(span.parent.span_id)
    if span.status.description:
        encoded["status"]["message"] = span.status.description
    if span.events:
        encoded["events"] = [_encode_event(event) for event in span.events]
    if span.links:
        encoded["links"] = [_encode_link(link) for link in span.links]
    return encoded


def _encode_event(event: Event) -> dict[str, Any]:
    return {
        "timeUnixNano": str(event.timestamp),
        "name": event.name,
        "attributes": _attributes(event.attributes or {}),
    }


def _encode_link(link: Link) -> dict[str, Any]:
    context: SpanContext = link.context
    return {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "attributes": _attributes(link.attributes or {}),
    }


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: object) -> dict[str, Any]:
    if isinstance(value, bool):  # before int: a bool is one
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
