"""What opening a volume asks of the storage nodes belongs to the opener's trace, and nothing afterwards does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from aurora_ray import telemetry
from aurora_ray.telemetry.spanreader import read_spans
from tests.volume.cluster import pages

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.volume.cluster import Cluster


async def test_the_nodes_add_their_part_of_a_recovery(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry.configure("test", span_dir=tmp_path / "telemetry")
    try:
        with telemetry.span("opening") as opening:
            volume = await cluster.open()
            trace_id = f"{opening.get_span_context().trace_id:032x}"
        await volume.append(pages((0, b"x" * 100)))
        assert telemetry.flush()
        spans = list(read_spans(tmp_path / "telemetry"))
    finally:
        telemetry.shutdown()
    served = Counter(span.name for span in spans if span.name.startswith("StorageNode."))
    assert served["StorageNode.Seal"] >= 4
    assert served["StorageNode.Truncate"] >= 4
    assert served["StorageNode.State"] >= 3
    assert "StorageNode.Append" not in served
    assert {span.trace_id for span in spans if span.name in served} == {trace_id}
