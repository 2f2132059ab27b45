"""A run in miniature: each kind of system starts, is measured and goes; the result can be read back and reported."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import sysbench
from benchmarks.data import DataSpec
from benchmarks.report import write
from benchmarks.results import Result
from benchmarks.schedule import Run
from benchmarks.site import prepared
from benchmarks.suites import MIB, QUICK, Suite, Turns
from benchmarks.tables import show
from benchmarks.workloads import CATALOGUE

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(240)]
NAMES = ["aurora", "standbys", "stock"]
MEMORY_BYTES = 256 * MIB
DATA = DataSpec(scale=1, sysbench_tables=1, sysbench_rows=20_000)


def _miniature(*workloads: str) -> Suite:
    turns = tuple(Turns(workload=CATALOGUE[name], clients=(2,), warm_s=1, run_s=1) for name in workloads)
    return replace(
        QUICK,
        data=DATA,
        memory_bytes=MEMORY_BYTES,
        turns=turns,
        rounds=1,
        opening_rounds=1,
        copy_bytes=MIB,
        copy_rounds=1,
        settle_s_max=0.3,
        first_settle_s_max=0.3,
    )


@pytest.mark.chaos
def test_a_run_in_miniature(data_dir: Path, tmp_path: Path) -> None:
    suite = _miniature("tpcb-warm", "tpcb-warm-direct", "sysbench-write", "tpcb")
    steps: list[str] = []
    run = Run(suite, NAMES, seed=7, progress=steps.append)
    expected = run.steps
    with prepared(data=suite.data, memory_bytes=suite.memory_bytes, work_dir=data_dir) as site:
        result = run(site)
    assert len(steps) == expected
    assert list(data_dir.iterdir()) == []

    assert result.finished
    assert {sample.system for sample in result.samples} == set(NAMES)
    measured = {sample.workload for sample in result.samples}
    assert measured == {"tpcb-warm", "tpcb-warm-direct", "tpcb"} | (
        {"sysbench-write"} if sysbench.installed() else set()
    )
    assert all(sample.transactions > 0 for sample in result.samples)
    # sysbench's transactions delete and insert rows that others delete and insert: a few find each other.
    assert all(sample.failed <= 0.02 * sample.transactions for sample in result.samples)
    assert all(sample.failed == 0 for sample in result.samples if sample.workload.startswith("tpcb"))
    assert all(sample.latency_us["p50"] > 0 for sample in result.samples)
    spent_s = result.samples[0].cpu_s  # a copy that hears later may take less than a tick in so short a time
    assert spent_s["engine"] > 0
    assert sum(seconds > 0 for seconds in spent_s.values()) >= len(spent_s) / 2
    assert {result.settings[name]["shared_buffers"] for name in NAMES} == {"64MB"}
    assert {result.settings[name]["maintenance_work_mem"] for name in NAMES} == {"64MB"}
    assert {"create a cluster (command)", "scan, cold", "bulk load, COPY"} <= {each.name for each in result.figures}
    _check_counters(result)

    path = tmp_path / "miniature.json"
    result.save(path)
    assert Result.load(path) == result
    console = Console(file=StringIO(), width=140)
    show(Result.load(path), console)
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    assert "one round: no comparison" in (tmp_path / "RESULTS.md").read_text()
    assert len(list((tmp_path / "charts").glob("*tpcb-*.svg"))) >= 3


def _check_counters(result: Result) -> None:
    """A checkpoint makes stock pay for images, aurora-ray never; what goes to the copies was counted for both."""
    images = {
        (workload, system): result.rounds(workload, 2, system)[0].counters["wal_full_images"]
        for workload in ("tpcb-warm", "tpcb")
        for system in NAMES
    }
    assert images["tpcb", "stock"] > 10 + images["tpcb-warm", "stock"]
    assert images["tpcb", "aurora"] == images["tpcb-warm", "aurora"] == 0
    for system in ("aurora", "standbys"):
        sample = result.rounds("tpcb", 2, system)[0]
        assert sample.counters["network_writes"] > sample.transactions


@pytest.mark.long
def test_data_is_kept_for_the_next_run_and_a_run_goes_on_where_it_was(data_dir: Path) -> None:
    suite = replace(_miniature("tpcb-warm", "select"), opening_rounds=0, copy_rounds=0)
    names = ["aurora", "stock"]
    saved: list[int] = []

    class StoppedError(Exception):
        pass

    def save(result: Result) -> None:
        saved.append(len(result.samples))
        if len(result.samples) == 3:
            raise StoppedError

    run = Run(suite, names, 7, lambda _: None, save=save)
    with (
        prepared(data=suite.data, memory_bytes=suite.memory_bytes, keep_in=data_dir / "kept") as site,
        pytest.raises(StoppedError),
    ):
        run(site)
    result = run.result
    first = list(result.samples)
    assert [(sample.workload, sample.system) for sample in first][-1] == ("select", "aurora")
    assert not result.finished

    steps: list[str] = []
    run = Run(suite, names, 7, steps.append, earlier=result)
    with prepared(data=suite.data, memory_bytes=suite.memory_bytes, keep_in=data_dir / "kept") as site:
        result = run(site)
    assert result.finished
    assert len(result.resumed) == 1
    assert result.samples[:3] == first
    assert [(sample.workload, sample.system) for sample in result.samples[3:]] == [("select", "stock")]
    assert sum(each.name == "start with data" for each in result.figures) == 2, "the second run found its data"
