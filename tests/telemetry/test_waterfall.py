"""Waterfalls: order, depth, gaps, and traces that are not whole."""

from dataclasses import replace

from aurora_ray.telemetry.spanreader import StoredSpan
from aurora_ray.telemetry.waterfall import Stage, collapsed, covered_ms, stages, summarise, waterfall


def span(name: str, parent: str, start_ms: float, end_ms: float) -> StoredSpan:
    start_ns, end_ns = int(start_ms * 1e6), int(end_ms * 1e6)
    return StoredSpan("t", name, parent, name, "test", start_ns, end_ns, {}, {}, None)


TRACE = [
    span("failover.detect", "failover", 0, 10),
    span("failover", "", 0, 100),
    span("open", "failover", 20, 60),
    span("seal", "open", 20, 59.5),
    span("write", "failover", 60, 100),
]


def test_parents_come_first_and_gaps_are_shown() -> None:
    rows = [
        (row.span.name if row.span else None, row.depth, row.offset_ms, row.duration_ms) for row in waterfall(TRACE)
    ]
    assert rows == [
        ("failover", 0, 0, 100),
        ("failover.detect", 1, 0, 10),
        (None, 1, 10, 10),
        ("open", 1, 20, 40),
        ("seal", 2, 20, 39.5),
        ("write", 1, 60, 40),
    ]


def test_each_moment_is_covered_once() -> None:
    root = TRACE[1]
    assert covered_ms(TRACE, root) == 90
    assert covered_ms([*TRACE, span("beside", "failover", 25, 70)], root) == 90


def test_a_trace_without_its_root_is_still_shown() -> None:
    orphans = [one for one in TRACE if one.name != "failover"]
    summary = summarise(orphans)
    assert not summary.whole
    assert summary.name == "failover"
    assert summary.duration_ms == 100
    assert [row.depth for row in waterfall(orphans) if row.span] == [0, 0, 1, 0]


def test_a_whole_trace_lasts_as_long_as_its_root() -> None:
    summary = summarise([*TRACE, span("late", "failover", 90, 130)])
    assert summary.whole
    assert summary.duration_ms == 100


def test_stages_are_what_lies_right_below_the_root_the_longest_first() -> None:
    twice = span("again", "failover", 0, 5)
    assert stages([*TRACE, replace(twice, name="open")]) == [
        Stage("open", 2, 45),
        Stage("write", 1, 40),
        Stage("failover.detect", 1, 10),
        Stage(None, 1, 10),
    ]
    assert stages([one for one in TRACE if one.parent_id]) == [
        Stage("open", 1, 40),
        Stage("write", 1, 40),
        Stage("failover.detect", 1, 10),
    ]
    assert stages([TRACE[1]]) == stages([]) == []


def test_nothing_is_drawn_from_nothing() -> None:
    assert waterfall([]) == []


def test_many_alike_are_drawn_together_and_what_differs_is_not() -> None:
    reads = [replace(span(f"r{number}", "root", 10 + number, 12 + number), name="read") for number in range(20)]
    reads[5] = replace(reads[5], error="no luck")
    others = [span("root", "", 0, 100), span("seal", "root", 1, 2), span("truncate", "root", 3, 4)]
    shown = collapsed([*others, *reads])
    assert [one.name for one in shown] == ["root", "seal", "truncate", "read", "read"]
    together, failed = shown[3:]
    assert together.attributes == {"aurora.spans": 19, "aurora.sum_ms": 38.0}
    assert (together.start_ns, together.end_ns) == (10_000_000, 31_000_000)
    assert failed.error == "no luck"
    assert collapsed(shown) == shown
