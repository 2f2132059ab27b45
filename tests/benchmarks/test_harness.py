"""A run in miniature: each kind of system starts, is measured and goes; the result can be read back and reported."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.report import write
from benchmarks.results import Result
from benchmarks.schedule import Run
from benchmarks.site import prepared
from benchmarks.suites import MIB, QUICK, Suite
from benchmarks.systems.base import Sizes
from benchmarks.tables import show

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]
NAMES = ["aurora", "standbys", "stock"]
SIZES = Sizes(shared_buffers_bytes=64 * MIB, standby_buffers_bytes=16 * MIB, cache_bytes=256 * MIB, max_connections=30)


def _miniature() -> Suite:
    tpcb = replace(QUICK.workloads[0], clients=(2,), warm_s=1, run_s=1)
    return replace(
        QUICK, scale=1, sizes=SIZES, workloads=(tpcb,), rounds=1, opening_rounds=1, copy_bytes=MIB, settle_s_max=0.3
    )


def test_a_run_in_miniature(data_dir: Path, tmp_path: Path) -> None:
    suite = _miniature()
    steps: list[str] = []
    run = Run(suite, NAMES, seed=7, progress=steps.append)
    with prepared(scale=suite.scale, sizes=suite.sizes, version=None, work_dir=data_dir, keep=False) as site:
        result = run(site)
    assert len(steps) == run.steps
    assert list(data_dir.iterdir()) == []

    assert {sample.system for sample in result.samples} == set(NAMES)
    assert all(sample.transactions > 0 and sample.failed == 0 for sample in result.samples)
    assert all(seconds > 0 for seconds in result.samples[0].cpu_s.values())
    assert all(result.settings[name]["shared_buffers"] == "64MB" for name in NAMES)
    assert {"mount, small", "mount, large", "scan, cold", "bulk load, COPY"} <= {each.name for each in result.figures}

    path = tmp_path / "miniature.json"
    result.save(path)
    assert Result.load(path) == result
    console = Console(file=StringIO(), width=140)
    show(Result.load(path), console)
    write([path], tmp_path / "RESULTS.md", tmp_path / "charts")
    assert "one round: no comparison" in (tmp_path / "RESULTS.md").read_text()
    assert len(list((tmp_path / "charts").glob("*.svg"))) == 3
