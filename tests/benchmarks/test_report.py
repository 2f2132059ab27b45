"""What the report makes of raw figures: I/Os, images of pages, comparisons, results of other benchmarks."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from rich.table import Table

from benchmarks.derived import database_ios_per_transaction, disk_bytes_per_redo_byte, memory_mib
from benchmarks.failover import FailoverResult, Turn
from benchmarks.failover_peers import Account
from benchmarks.failover_stages import OURS
from benchmarks.histograms import encode
from benchmarks.images import images, per_transaction
from benchmarks.markdown import Page, table
from benchmarks.other_results import restored
from benchmarks.report import write
from benchmarks.results import Result, Sample
from benchmarks.tables import summary

LATENCIES = {"p50": 1000.0, "p95": 2000.0, "p99": 3000.0, "p99.9": 4000.0, "max": 5000.0, "mean": 1200.0}


def _sample(system: str, number: int, tps: float, workload: str = "tpcb", **counters: float) -> Sample:
    return Sample(
        workload=workload,
        clients=32,
        system=system,
        round=number,
        seconds=10.0,
        transactions=round(10 * tps),
        failed=0,
        tps=tps,
        latency_us=LATENCIES,
        histogram=encode({1000: 10}),
        client_cpu_s=1.0,
        cpu_s={"engine": 2.0},
        dirtied_bytes={},
        memory_bytes={"engine": 3 << 20, "node a1": 10 << 20, "node a2": 20 << 20},
        counters=counters,
        machine_cpu_s=3.0,
        deferred_cpu_s=0.0,
        device_bytes=0,
        device_bytes_settled=12_000,
        loopback_packets=0,
        loopback_bytes=0,
    )


def _result(*samples: Sample) -> Result:
    return Result(
        suite="quick",
        started="2026-01-01T00:00:00+00:00",
        seed=1,
        commit={"id": "0123456789abcdef", "modified": False},
        machine={"cpu": "some", "cores_usable": 2},
        versions={"postgres": "18.4"},
        options={"scale": 150},
        titles={"aurora": "aurora-ray"},
        settings={"aurora": {"shared_buffers": "1GB"}, "stock": {"shared_buffers": "1GB", "fsync": "on"}},
        samples=list(samples),
    )


def test_ios_are_sends_and_writes_of_what_was_counted() -> None:
    ours = _sample("aurora", 0, 10, network_writes=200.0)
    theirs = _sample("standbys", 0, 10, network_writes=400.0, wal_writes=90.0, page_writes=10.0)
    assert database_ios_per_transaction(ours) == 2.0
    assert database_ios_per_transaction(theirs) == 5.0
    assert database_ios_per_transaction(_sample("stock", 0, 10)) is None


def test_amplification_is_for_each_byte_of_redo() -> None:
    assert disk_bytes_per_redo_byte(_sample("stock", 0, 1, wal_bytes=1_000.0)) == 12.0
    assert disk_bytes_per_redo_byte(_sample("aurora", 0, 1, wal_bytes=1_000.0, flush_bytes=2_000.0)) == 6.0


def test_memory_of_the_copies_is_that_of_one() -> None:
    sample = _sample("aurora", 0, 1)
    assert (memory_mib(sample), memory_mib(sample, "engine"), memory_mib(sample, "copies")) == (33.0, 3.0, 15.0)
    assert memory_mib(sample, "driver") is None


def test_images_grow_rare_as_pages_have_theirs() -> None:
    assert per_transaction(1000, 1) == pytest.approx(1, abs=0.001)
    assert per_transaction(1000, 1000) == pytest.approx(1 - math.exp(-1))
    assert per_transaction(1000, 1_000_000) == pytest.approx(0.001)
    result = _result(
        _sample("stock", 0, 100, wal_full_images=900.0),
        _sample("stock", 0, 100, workload="tpcb-warm", wal_full_images=10.0),
        _sample("aurora", 0, 100, wal_full_images=0.0),
        _sample("aurora", 0, 100, workload="tpcb-warm", wal_full_images=0.0),
    )
    (found,) = images(result)
    assert (found.system, found.clients, found.from_checkpoint, found.paid) == ("stock", 32, 0.9, 0.01)
    assert 0.9 < found.long_run < 1, "30,000 transactions on 246,000 pages"


def test_a_report_compares_only_what_can_be_compared(tmp_path: Path) -> None:
    clear = [_sample("aurora", n, 200 + n, network_writes=1.0) for n in range(3)]
    clear += [_sample("stock", n, 100 + n, wal_writes=1.0) for n in range(3)]
    noisy = [_sample("aurora", n, tps, workload="select") for n, tps in enumerate((90, 100, 110))]
    noisy += [_sample("stock", n, tps, workload="select") for n, tps in enumerate((100, 100, 100))]
    result = _result(*clear, *noisy)
    path = tmp_path / "quick-x.json"
    result.save(path)
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| aurora-ray / that |  | 1.99 (1.98 to 2.00) |" in text
    assert "| aurora-ray / that |  | no difference measurable (0.90 to 1.10) |" in text
    ratios = {(each["workload"], each["system"]): each.get("ratio") for each in summary(result)["groups"]}
    assert ratios["select", "stock"] is None
    assert ratios["tpcb", "stock"] == pytest.approx(1.99, abs=0.01)
    for chart in (tmp_path / "charts").glob("*.svg"):
        assert chart.name in text
        assert chart.with_suffix(".png").exists()


def test_results_of_other_benchmarks_are_shown_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "thing-x.json"
    rows = [{"what": "segment", "seconds": 12.345678, "more": {"not": "flat"}}, {"what": "volume", "seconds": 3.0}]
    path.write_text(json.dumps({"suite": "thing", "bytes": 7, "rounds": rows, "machine": {"cpu": "some"}}))
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## thing-x" in text
    assert "| segment | 12.35 |" in text
    assert "| bytes | 7 |" in text
    assert "not" not in text.split("## thing-x")[1]


@dataclass
class Part:
    name: str
    seconds: float


@dataclass
class Whole:
    first: Part
    maybe: Part | None
    parts: list[Part]
    facts: dict[str, int]


def test_results_come_back_from_json_as_what_they_were() -> None:
    for maybe in (None, Part("maybe", 2.0)):
        whole = Whole(Part("first", 1.0), maybe, [Part("one", 3.0)], {"n": 1})
        assert restored(Whole, json.loads(json.dumps(asdict(whole)))) == whole


def test_the_failover_benchmark_shows_its_own_tables(tmp_path: Path) -> None:
    turn = Turn(
        peer="aurora",
        kind="kill",
        number=0,
        at="2026-01-01T00:00:00+00:00",
        load_s=6.0,
        load_tps=100.0,
        outage_s=1.25,
        fault_to_write_s=1.5,
        lost=0,
        account=Account(1.3, 1.2, {next(iter(OURS.values())): 0.5}, "0123", []),
    )
    result = FailoverResult(
        started="2026-01-01T00:00:00+00:00",
        seed=1,
        kills=1,
        kinds=["kill"],
        peers=["aurora"],
        clients=8,
        load_s=[6.0, 20.0],
        scale=10,
        commit={},
        machine={"cores_usable": 2},
        versions={},
        titles={"aurora": "aurora-ray"},
        turns=[turn],
    )
    path = tmp_path / "failover-x.json"
    result.save(path)
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| aurora-ray | 1 | 1.25 |" in text
    assert "failover-x-outages.svg" in text


def test_a_file_of_another_version_does_not_stop_the_report(tmp_path: Path) -> None:
    path = tmp_path / "failover-old.json"
    path.write_text(json.dumps({"suite": "failover", "kills": 3, "turns": []}))
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "another version" in text
    assert "| kills | 3 |" in text


def test_a_page_takes_what_a_console_would_print() -> None:
    rich = Table(title="outages")
    rich.add_column("fault")
    rich.add_column("s", justify="right")
    rich.add_row("kill | -9", "1.5")
    page = Page()
    page.print(rich)
    page.print("a line", style="bold red")
    assert page.lines == ["**outages**", "", *table(["fault", "s"], [["kill | -9", "1.5"]]), "a line", ""]
    assert "| kill \\| -9 | 1.5 |" in page.lines
