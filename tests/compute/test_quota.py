"""How much CPU processes may use together: in groups made of files, and in real ones where those can be made."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_ray.compute.quota import PERIOD_US, CpuQuota
from aurora_ray.compute.usage import cpu_seconds, processes_below
from tests.support.polling import poll_until

# A parent with a child; both go round in circles.
_SPIN = "import os\nos.fork()\nprint(1, flush=True)\nwhile True: pass\n"


@pytest.fixture
def spinning() -> Iterator[int]:
    started = subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert started.stdout is not None
    started.stdout.readline()
    yield started.pid
    os.killpg(started.pid, 9)
    started.communicate(timeout=10)


@pytest.fixture
def childless() -> Iterator[int]:
    """A process that has nobody below it, as this one may have."""
    started = subprocess.Popen(["sleep", "600"])
    yield started.pid
    started.kill()
    started.wait(timeout=10)


def _machine(root: Path, version: int, own: str = "/service") -> Path:
    """The files of a machine with control groups of that version; this process is in `own`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{own}\n" if version == 2 else f"3:cpu,cpuacct:{own}\n0::/\n")
    top = root / "sys/fs/cgroup" / ("" if version == 2 else "cpu,cpuacct")
    for directory in (top, top / own.lstrip("/")):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("")
        (directory / "cgroup.subtree_control").write_text("cpu memory" if directory == top else "")
        if version == 1:
            (directory / "cpu.cfs_quota_us").write_text("-1")
    return top


def test_version_2_is_told_quota_and_period_where_the_controller_is_handed_down(tmp_path: Path, childless: int) -> None:
    top = _machine(tmp_path, 2)
    quota = CpuQuota("engine", tmp_path)
    assert not quota.is_enforced
    quota.hold(childless, 0.25)
    assert quota.is_enforced
    assert (top / "engine/cpu.max").read_text() == f"25000 {PERIOD_US}"
    assert (top / "engine/cgroup.procs").read_text() == str(childless)
    quota.limit(2.0)
    assert (top / "engine/cpu.max").read_text() == f"200000 {PERIOD_US}"
    (top / "engine/cpu.stat").write_text("usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\n")
    assert quota.held_back_s() == 0.4


def test_version_1_is_told_in_the_group_of_this_process(tmp_path: Path) -> None:
    top = _machine(tmp_path, 1)
    quota = CpuQuota("engine", tmp_path)
    quota.hold(os.getpid(), 0.125)
    assert (top / "service/engine/cpu.cfs_quota_us").read_text() == "12500"
    assert (top / "service/engine/cpu.cfs_period_us").read_text() == str(PERIOD_US)


def test_where_no_group_can_be_made_nothing_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    quota = CpuQuota("engine", tmp_path)
    quota.hold(os.getpid(), 0.5)
    assert not quota.is_enforced
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    quota.hold(os.getpid(), 0.5)
    quota.limit(1.0)
    assert (quota.is_enforced, quota.held_back_s()) == (False, 0.0)
    quota.close()


async def test_two_processes_that_spin_get_no_more_than_their_quota_together(spinning: int) -> None:
    quota = CpuQuota(f"aurora-ray-test-{os.getpid()}")
    quota.hold(spinning, 0.2)
    if not quota.is_enforced:
        pytest.skip("no control group can be made here")
    try:
        await poll_until(lambda: processes_below(spinning) != [], what="its child")
        below = processes_below(spinning)
        assert _cpus_used(spinning, below) < 0.35
        assert quota.held_back_s() > 0
        quota.limit(0)
        before_s = quota.held_back_s()
        _cpus_used(spinning, below)
        assert quota.held_back_s() <= before_s + PERIOD_US / 1e6
    finally:
        os.killpg(spinning, 9)
        await poll_until(lambda: _is_gone(quota), what="the group's end")


def _cpus_used(pid: int, below: list[int]) -> float:
    began_s, before_s = time.monotonic(), cpu_seconds(pid, below)
    while time.monotonic() - began_s < 1.0:
        time.sleep(0.05)  # not synchronisation: what they use meanwhile is measured
    return (cpu_seconds(pid, below) - before_s) / (time.monotonic() - began_s)


def _is_gone(quota: CpuQuota) -> bool:
    quota.close()
    return not quota.is_enforced
