"""What the readers' benchmark makes of its figures; that it runs is shown by running it."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import readers
from benchmarks.other_results import other_section, restored
from benchmarks.readers import AddTurn, LagTurn, MixedTurn, OutageTurn, ReadersResult, show


def result() -> ReadersResult:
    def lag(peer: str, count: int, rate: int, tps: float, lags: list[float]) -> LagTurn:
        return LagTurn(peer=peer, readers=count, rate=rate, number=0, tps=tps, cpu_ms=0.5, lags_ms=lags)

    return ReadersResult(
        started="2026-01-01T00:00:00+00:00",
        seed=1,
        rounds=1,
        seconds=1.0,
        counts=[0, 1],
        scale=1,
        large_scale=0,
        commit={"id": "0" * 40},
        machine={"cores_usable": 2, "cpu": "some"},
        versions={},
        titles={"aurora": "aurora-ray", "stock": "stock, streaming standbys"},
        memory_bytes=1 << 28,
        lags=[
            lag("aurora", 0, 0, 2000.0, []),
            lag("aurora", 1, 0, 1900.0, [float(n) for n in range(1, 101)]),
            lag("aurora", 1, 0, 1700.0, [200.0]),
            lag("stock", 1, 100, 100.0, [3.0, 4.0]),
        ],
        mixed=[MixedTurn(peer="aurora", readers=1, number=0, reads_tps=12345.0, writes_tps=678.0)],
        adds=[AddTurn(peer="stock", database_bytes=23_000_000, number=n, seconds=s) for n, s in ((0, 1.5), (1, 2.5))],
        outages=[OutageTurn(kind="kill", number=n, seconds=s, lost=0) for n, s in enumerate((0.5, 0.7, 1.5))],
        notes=["15 readers were left out: 100 MiB are free"],
    )


def shown(of: ReadersResult) -> str:
    console = Console(width=200, record=True, quiet=True, file=None)
    with console.capture() as captured:
        console.quiet = False
        show(of, console)
    return captured.get()


def test_tables_say_what_was_measured() -> None:
    text = shown(result())
    assert "51.0" in text, "the median of all lags of a case"
    assert "0.90" in text, "1,800 of 2,000: the writer's throughput beside that without readers"
    for figure in ("12,345", "678", "2.00", "20", "0.70", "1.50", "left out"):
        assert figure in text, figure
    assert "LOST" not in text
    harmed = result()
    harmed.outages.append(OutageTurn(kind="planned", number=0, seconds=0.3, lost=2))
    assert "LOST: 2" in shown(harmed)


def test_a_result_comes_back_from_its_file_and_has_its_section_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "readers.json"
    result().save(path)
    values = json.loads(path.read_text())
    assert asdict(restored(ReadersResult, values)) == asdict(result())
    assert any(
        "aurora failover" in line or "kill -9" in line for line in other_section(values, path, tmp_path, tmp_path)
    )


def test_no_more_readers_than_the_machine_has_memory_for() -> None:
    held, notes = readers._held([0, 1, 10**6])
    assert held[0] == 0
    assert 10**6 not in held
    assert any("1000000 readers were left out" in note for note in notes)
    assert readers._memory_for(15) >= 128 << 20
    assert readers._memory_for(0) <= 1 << 30
