"""Spans: what is recorded, what is sampled, how a trace gets from one process to the next."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from aurora_ray import telemetry
from aurora_ray.telemetry.spanreader import StoredSpan, read_spans, read_traces
from tests.support.timing import scaled


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, StoredSpan]]]:
    """Telemetry is on; call it for the spans so far, by name."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry.configure("test", {"aurora.az": "a"}, tmp_path / "telemetry")

    def spans() -> dict[str, StoredSpan]:
        assert telemetry.flush()
        return {span.name: span for span in read_spans(tmp_path / "telemetry")}

    yield spans
    telemetry.shutdown()


def test_importing_is_light() -> None:
    """No SDK, no exporter, no Ray: the command line imports this before it knows whether it needs any of it."""
    program = "import sys, aurora_ray.telemetry; sys.stdout.write('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=scaled(30)
    )
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "grpc", "ray", "pydantic")
    assert not [name for name in done.stdout.split() if name.startswith(heavy)]


def test_without_configure_nothing_happens() -> None:
    with telemetry.span("a") as outer, telemetry.sampled_span("b", every=1), telemetry.stage_span("c"):
        assert outer is INVALID_SPAN
        assert telemetry.current_trace_id() is None
        assert telemetry.inject_dict() == {}
    telemetry.record_span("d", 1, 2)
    telemetry.start_span("e").end()
    assert telemetry.flush()


def test_spans_nest_and_carry_attributes(recorded: Callable[[], dict[str, StoredSpan]]) -> None:
    with telemetry.span("outer", {"lsn": 2**60, "ok": True, "share": 0.5, "groups": [0, 1], "name": "x"}):
        trace_id = telemetry.current_trace_id()
        with telemetry.span("inner"):
            telemetry.record_span("measured elsewhere", 1_000_000_000, 1_002_500_000)
    spans = recorded()
    assert spans["outer"].attributes == {"lsn": 2**60, "ok": True, "share": 0.5, "groups": [0, 1], "name": "x"}
    assert spans["outer"].parent_id == ""
    assert spans["outer"].service == "test"
    assert spans["outer"].process["aurora.az"] == "a"
    assert spans["inner"].parent_id == spans["outer"].span_id
    assert spans["measured elsewhere"].parent_id == spans["inner"].span_id
    assert spans["measured elsewhere"].duration_ms == 2.5
    assert {span.trace_id for span in spans.values()} == {trace_id}
    assert spans["outer"].duration_ms >= spans["inner"].duration_ms >= 0


def test_an_exception_is_recorded_and_goes_on(recorded: Callable[[], dict[str, StoredSpan]]) -> None:
    with pytest.raises(ZeroDivisionError), telemetry.span("fails"):
        _ = 1 / 0
    with telemetry.span("works"):
        pass
    spans = recorded()
    assert spans["fails"].error == "ZeroDivisionError: division by zero"
    assert spans["works"].error is None


def test_sampling_is_an_exact_share_by_name(recorded: Callable[[], dict[str, StoredSpan]], tmp_path: Path) -> None:
    for _ in range(100):
        with telemetry.sampled_span("flush", every=10, attributes={"n": 1}), telemetry.stage_span("encode"):
            pass
        with telemetry.sampled_span("read", every=50):
            pass
    recorded()
    names = [span.name for span in read_spans(tmp_path / "telemetry")]
    assert {name: names.count(name) for name in set(names)} == {"flush": 10, "encode": 10, "read": 2}
    assert recorded()["flush"].attributes == {"aurora.sample_every": 10, "n": 1}


@pytest.mark.parametrize("way", ["dict", "metadata"])
def test_a_trace_goes_on_in_another_process(recorded: Callable[[], dict[str, StoredSpan]], way: str) -> None:
    with telemetry.span("caller"):
        if way == "dict":
            context = telemetry.extract_dict(telemetry.inject_dict())
        else:
            metadata = telemetry.inject_metadata([("key", "value"), ("data-bin", b"\x00")])
            assert metadata[:2] == (("key", "value"), ("data-bin", b"\x00"))
            context = telemetry.extract_metadata(metadata)
    with telemetry.span("callee", parent=context):
        pass
    with telemetry.attached(context), telemetry.span("by attaching"):
        pass
    spans = recorded()
    assert spans["callee"].parent_id == spans["by attaching"].parent_id == spans["caller"].span_id
    assert spans["callee"].trace_id == spans["caller"].trace_id


@pytest.mark.parametrize("carrier", [None, {}, {"traceparent": "rubbish"}])
def test_a_message_without_a_trace_starts_one(
    recorded: Callable[[], dict[str, StoredSpan]], carrier: dict[str, str] | None
) -> None:
    with telemetry.span("unrelated"), telemetry.span("callee", parent=telemetry.extract_dict(carrier)):
        pass
    spans = recorded()
    assert spans["callee"].parent_id == ""
    assert spans["callee"].trace_id != spans["unrelated"].trace_id


def test_configure_again_replaces_and_shutdown_flushes(tmp_path: Path) -> None:
    telemetry.configure("one", span_dir=tmp_path)
    with telemetry.span("first"):
        pass
    telemetry.configure("two", span_dir=tmp_path)
    with telemetry.span("second"):
        pass
    telemetry.shutdown()
    with telemetry.span("third"):
        pass
    assert {(s.service, s.name) for s in read_spans(tmp_path)} == {("one", "first"), ("two", "second")}
    assert [spans[0].name for spans in read_traces(tmp_path).values()] == ["first", "second"]


def test_the_environment_can_turn_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry.configure("off", span_dir=tmp_path / "telemetry")
    with telemetry.span("nothing"):
        pass
    assert not (tmp_path / "telemetry").exists()


@pytest.mark.allowed_logs(r"Spans are lost until .* can be written")
def test_a_directory_that_cannot_be_written_disturbs_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    telemetry.configure("test", span_dir=tmp_path / "file" / "below")
    try:
        for _ in range(3):
            with telemetry.span("lost"):
                pass
            telemetry.flush()
    finally:
        telemetry.shutdown()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, "said once, not per span"
