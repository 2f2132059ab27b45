"""What the benchmark of two regions makes of its figures; that it runs is shown by running it."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.regions import LoadTurn, RegionsResult, TurnOfRegions, show


def result() -> RegionsResult:
    def load(regions: int, rate: int, tps: float, lags: list[float]) -> LoadTurn:
        return LoadTurn(regions=regions, rate=rate, number=0, tps=tps, link_bytes=432.1, lags_ms=lags)

    def turn(kind: str, outage_s: float, missing: int) -> TurnOfRegions:
        lost = {"rpo_ms": 140.0, "rpo_bytes": 777} if kind == "failover" else {"rpo_ms": 0.0, "rpo_bytes": 0}
        return TurnOfRegions(kind=kind, number=0, outage_s=outage_s, rto_s=1.25, missing=missing, **lost)  # type: ignore[arg-type]

    return RegionsResult(
        started="2026-01-01T00:00:00+00:00",
        rounds=1,
        seconds=1.0,
        scale=1,
        commit={"id": "0" * 40},
        machine={"cores_usable": 2, "cpu": "some"},
        versions={},
        one_way_ms=40.0,
        loads=[load(1, 0, 2000.0, []), load(2, 100, 100.0, [float(n) for n in range(1, 101)])],
        turns=[turn("switchover", 2.5, 0), turn("failover", 3.5, 4)],
    )


def shown(of: RegionsResult) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        show(of, console)
    return captured.get()


def test_tables_say_what_was_measured() -> None:
    text = shown(result())
    for figure in ("80 ms", "2,000", "432", "2.50", "3.50", "1.25", "140", "777"):
        assert figure in text, figure
    assert "LOST" not in text, "a failover may lose what it reports"
    harmed = result()
    harmed.turns.append(
        TurnOfRegions(kind="switchover", number=1, outage_s=1, rto_s=1, rpo_ms=0, rpo_bytes=0, missing=2)
    )
    assert "LOST: 2" in shown(harmed)


def test_a_file_is_whole(tmp_path: Path) -> None:
    result().save(tmp_path / "out" / "regions.json")
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == asdict(result())
