"""A trace as a waterfall: its spans as a tree in order of time, and the time that no span accounts for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aurora_ray.telemetry.spanreader import StoredSpan

GAP_MS_MIN = 1.0
ALIKE_MAX = 8  # more spans of one kind than these say more when they are drawn together
FAILOVER = "failover"
TURN = "turn"  # of a global cluster: another region becomes the primary
CAPACITY = ("capacity.step", "capacity.resume")
SAMPLED = "volume.flush"  # traces of one span each, of which there are thousands


@dataclass(frozen=True, slots=True)
class Row:
    """A span, or (`span` None) a gap: time of its parent in which none of the parent's children was at work.

    `depth` is 0 for roots; times are ms, `offset_ms` from the trace's start.
    """

    span: StoredSpan | None
    depth: int
    offset_ms: float
    duration_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; a gap's name is null."""
        times = {"depth": self.depth, "offset_ms": round(self.offset_ms, 3), "duration_ms": round(self.duration_ms, 3)}
        if self.span is None:
            return {"name": None, **times}
        span = {key: value for key, value in asdict(self.span).items() if key not in ("start_ns", "end_ns", "trace_id")}
        return {**span, **times, "start_ns": self.span.start_ns, "end_ns": self.span.end_ns}


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of the list of traces. `whole` is False when the trace's root was never written (its process died)."""

    trace_id: str
    name: str
    start_ns: int
    duration_ms: float
    span_count: int
    whole: bool
    attributes: dict[str, Any]
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Stage:
    """All spans of one name right below a trace's root, and how long they took together.

    `name` is None for the root's time in which none of them was at work.
    """

    name: str | None
    count: int
    total_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "total_ms": round(self.total_ms, 3)}


def summarise(spans: Sequence[StoredSpan]) -> Summary:
    """Of all spans of one trace, at least one."""
    known = {span.span_id for span in spans}
    roots = [span for span in spans if not span.parent_id]
    first = roots[0] if roots else min((s for s in spans if s.parent_id not in known), key=lambda span: span.start_ns)
    start_ns = first.start_ns if roots else min(span.start_ns for span in spans)
    end_ns = first.end_ns if roots else max(span.end_ns for span in spans)
    failed_over = any(span.name.startswith(f"{FAILOVER}.") for span in spans)
    return Summary(
        trace_id=first.trace_id,
        name=first.name if roots else FAILOVER if failed_over else first.name,
        start_ns=start_ns,
        duration_ms=(end_ns - start_ns) / 1e6,
        span_count=len(spans),
        whole=bool(roots),
        attributes=first.attributes,
        error=first.error,
    )


def collapsed(spans: Sequence[StoredSpan], more_than: int = ALIKE_MAX) -> list[StoredSpan]:
    """The same with many spans of one name below one parent, and nothing below them, drawn together into one.

    It reaches from the first one's start to the last one's end, and says how many they are (`aurora.spans`) and how
    long they took together (`aurora.sum_ms`). Failed ones stay as they are.
    """
    parents = {span.parent_id for span in spans}
    alike: dict[tuple[str, str], list[StoredSpan]] = {}
    for span in spans:
        if span.parent_id and span.span_id not in parents and span.error is None:
            alike.setdefault((span.parent_id, span.name), []).append(span)
    together: dict[str, StoredSpan] = {}
    hidden: set[str] = set()
    for group in alike.values():
        if len(group) > more_than:
            first = min(group, key=lambda span: span.start_ns)
            total_ms = round(sum(span.duration_ms for span in group), 3)
            facts = {"aurora.spans": len(group), "aurora.sum_ms": total_ms}
            together[first.span_id] = replace(first, end_ns=max(span.end_ns for span in group), attributes=facts)
            hidden |= {span.span_id for span in group if span is not first}
    return [together.get(span.span_id, span) for span in spans if span.span_id not in hidden]


def waterfall(spans: Iterable[StoredSpan]) -> list[Row]:
    """Rows from top to bottom: parents before children, siblings and gaps in order of time.

    A span whose parent is not there (not ended yet, or lost with its process) is shown as a root.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    known = {span.span_id for span in ordered}
    children: dict[str, list[StoredSpan]] = {}
    for span in ordered:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    if not ordered:
        return []
    origin_ns = ordered[0].start_ns
    rows: list[Row] = []

    def add(span: StoredSpan, depth: int) -> None:
        rows.append(Row(span, depth, (span.start_ns - origin_ns) / 1e6, span.duration_ms))
        below = children.get(span.span_id, [])
        reached_ns = span.start_ns
        for child in below:
            add_gap(reached_ns, min(child.start_ns, span.end_ns), depth + 1)
            add(child, depth + 1)
            reached_ns = max(reached_ns, child.end_ns)
        if below:
            add_gap(reached_ns, span.end_ns, depth + 1)

    def add_gap(start_ns: int, end_ns: int, depth: int) -> None:
        if (end_ns - start_ns) / 1e6 >= GAP_MS_MIN:
            rows.append(Row(None, depth, (start_ns - origin_ns) / 1e6, (end_ns - start_ns) / 1e6))

    for root in children.get("", []):
        add(root, 0)
    return rows


def stages(spans: Sequence[StoredSpan]) -> list[Stage]:
    """What the root's time went into, the most first. Without a root: its children as far as they are there."""
    root = next((span for span in spans if not span.parent_id), None)
    known = {span.span_id for span in spans}
    direct = [s for s in spans if (s.parent_id not in known if root is None else s.parent_id == root.span_id)]
    alike: dict[str, list[float]] = {}
    for span in direct:
        alike.setdefault(span.name, []).append(span.duration_ms)
    found = [Stage(name, len(times), sum(times)) for name, times in alike.items()]
    if root is not None and direct:
        rest_ms = root.duration_ms - covered_ms(spans, root)
        found += [Stage(None, 1, rest_ms)] if rest_ms >= GAP_MS_MIN else []
    return sorted(found, key=lambda stage: -stage.total_ms)


def covered_ms(spans: Sequence[StoredSpan], parent: StoredSpan) -> float:
    """How much of a span's time its direct children account for, each moment counted once."""
    total_ns, reached_ns = 0, parent.start_ns
    for child in sorted((s for s in spans if s.parent_id == parent.span_id), key=lambda span: span.start_ns):
        start_ns, end_ns = max(child.start_ns, reached_ns), min(child.end_ns, parent.end_ns)
        if end_ns > start_ns:
            total_ns += end_ns - start_ns
            reached_ns = end_ns
    return total_ns / 1e6
