"""The span files of a data directory, read back: what `aurora trace` draws its waterfalls from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ray.errors import UNDECODABLE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One ended span. Times are Unix nanoseconds; ids hexadecimal; `parent_id` is "" for a trace's root."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    process: dict[str, Any]  # the attributes given to `configure`, and pid and host
    error: str | None  # the status' message, "" if it has none; None if the span did not fail

    @property
    def duration_ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


def read_spans(directory: Path) -> Iterator[StoredSpan]:
    """Every span in the directory's files, in no particular order.

    Files may be rotated, pruned and written while we read: what has gone is left out, and so is a torn last line.
    """
    for path in sorted(directory.glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                for line in file:
                    yield from _spans_of_line(line, path)
        except FileNotFoundError:
            continue


def read_traces(*directories: Path) -> dict[str, list[StoredSpan]]:
    """Spans of all these by trace id, each trace in order of start; the newest trace comes last."""
    traces: dict[str, list[StoredSpan]] = {}
    for directory in directories:
        for span in read_spans(directory):
            traces.setdefault(span.trace_id, []).append(span)
    for spans in traces.values():
        spans.sort(key=lambda span: (span.start_ns, span.end_ns))
    return dict(sorted(traces.items(), key=lambda item: item[1][0].start_ns))


def _spans_of_line(line: bytes, path: Path) -> list[StoredSpan]:
    try:
        request = json.loads(line)
        return [
            _decode(encoded, _plain_attributes(resource_spans.get("resource", {})))
            for resource_spans in request.get("resourceSpans", ())
            for scope_spans in resource_spans.get("scopeSpans", ())
            for encoded in scope_spans.get("spans", ())
        ]
    except UNDECODABLE as error:
        _log.debug("%s holds a line that is not whole (%r): its writer was killed, or is writing it", path, error)
        return []


def _decode(encoded: dict[str, Any], process: dict[str, Any]) -> StoredSpan:
    status = encoded.get("status", {})
    failed = status.get("code") == 2
    return StoredSpan(
        trace_id=encoded["traceId"],
        span_id=encoded["spanId"],
        parent_id=encoded.get("parentSpanId", ""),
        name=encoded["name"],
        service=str(process.get("service.name", "")),
        start_ns=int(encoded["startTimeUnixNano"]),
        end_ns=int(encoded["endTimeUnixNano"]),
        attributes=_plain_attributes(encoded),
        process=process,
        error=status.get("message", "") if failed else None,
    )


def _plain_attributes(owner: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: _plain(item["value"]) for item in owner.get("attributes", ())}


def _plain(value: dict[str, Any]) -> Any:
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_plain(item) for item in value["arrayValue"].get("values", ())]
    return next(iter(value.values()), None)
