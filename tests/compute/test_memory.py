"""How much memory processes may use together: in groups made of files, and in a real one where that can be made."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_ray.compute.cgroup import places
from aurora_ray.compute.memory import MARGIN_BYTES_MIN, MemoryNet, net_of
from aurora_ray.compute.quota import CpuQuota
from aurora_ray.config import GIB, MIB
from tests.support.polling import poll_until

# Takes so much memory that is its own, and reads a file into the page cache.
_TAKE = """import mmap, sys
mine = mmap.mmap(-1, int(sys.argv[1]))
mine.write(b"x" * len(mine))
print(len(open(sys.argv[2], "rb").read()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def taking(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Not at work yet: it begins when it is told its place."""
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    waits = "import os, sys\nsys.stdin.readline()\n" + _TAKE
    started = subprocess.Popen(
        [sys.executable, "-c", waits, str(96 * MIB), str(tmp_path / "file")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield started
    started.kill()
    started.communicate(timeout=10)


def _machine(root: Path, version: int) -> Path:
    """The files of a machine with control groups of that version."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n" if version == 2 else "4:memory:/service\n3:cpu:/\n0::/\n")
    top = root / "sys/fs/cgroup" / ("" if version == 2 else "memory")
    for directory in (top, top / "service"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("")
    (top / "cgroup.subtree_control").write_text("cpu memory")
    return top


def _says(group: Path, version: int, *, usage: int, files: int, dirty: int = 0) -> None:
    group.mkdir(exist_ok=True)
    (group / ("memory.current" if version == 2 else "memory.usage_in_bytes")).write_text(f"{usage}\n")
    name = "file_dirty" if version == 2 else "dirty"
    (group / "memory.stat").write_text(f"inactive_file {files}\nactive_file 0\n{name} {dirty}\nother x\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_net_is_raised_at_once_and_lowered_to_what_cannot_be_taken_back(tmp_path: Path, version: int) -> None:
    top = _machine(tmp_path, version)
    group = top / ("service/engine" if version == 1 else "engine")
    limit = group / ("memory.limit_in_bytes" if version == 1 else "memory.max")
    _says(group, version, usage=100 * MIB, files=0)
    net = MemoryNet("engine", tmp_path)
    with subprocess.Popen(["sleep", "60"]) as process:
        net.hold(process.pid, 4 * GIB)
        process.kill()
    assert (net.in_force_bytes, limit.read_text()) == (5 * GIB, str(5 * GIB))
    assert (group / "cgroup.procs").read_text().startswith(str(process.pid))
    net.change(8 * GIB)
    assert (net.in_force_bytes, net.is_lowered) == (10 * GIB, True)
    net.change(1 * GIB)
    assert (net.in_force_bytes, net.is_lowered) == (10 * GIB, False), "what runs may use what it was given"
    _says(group, version, usage=7 * GIB, files=3 * GIB, dirty=1 * GIB)
    net.lower()
    assert net.in_force_bytes == 5 * GIB * 5 // 4, "5 GiB cannot be taken back, and a margin"
    assert not net.is_lowered
    _says(group, version, usage=3 * GIB, files=3 * GIB - 100 * MIB)
    net.lower()
    assert (net.in_force_bytes, net.is_lowered) == (net_of(1 * GIB), True)
    (group / "memory.stat").unlink()
    net.change(GIB // 2)
    net.lower()
    assert net.in_force_bytes == net_of(1 * GIB), "what is not known is not lowered to"
    net.free()
    assert (net.in_force_bytes, limit.read_text()) == (0, "-1" if version == 1 else "max")


def test_in_version_2_it_is_in_the_group_of_the_quota_or_nowhere(tmp_path: Path) -> None:
    _machine(tmp_path, 2)
    net = MemoryNet("engine", tmp_path)
    net.hold(os.getpid(), GIB)
    assert net.in_force_bytes == 0, "there is no quota, so the processes are where they were"
    quota = CpuQuota("engine", tmp_path)
    quota.hold(os.getpid(), 1.0)
    _says(tmp_path / "sys/fs/cgroup/engine", 2, usage=0, files=0)
    net.hold(os.getpid(), GIB)
    assert net.in_force_bytes == GIB + MARGIN_BYTES_MIN


def test_where_no_group_can_be_made_nothing_is_bounded(tmp_path: Path) -> None:
    net = MemoryNet("engine", tmp_path)
    net.hold(os.getpid(), GIB)
    for step in (lambda: net.change(2 * GIB), net.lower, net.free, net.close):
        step()
    assert (net.in_force_bytes, net.is_lowered) == (0, True)


async def test_a_real_process_keeps_what_is_its_own_when_its_net_is_lowered(
    taking: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_ray.compute.memory.MARGIN_BYTES_MIN", 8 * MIB)
    name = f"aurora-ray-test-{os.getpid()}"
    quota, net = CpuQuota(name), MemoryNet(name)
    quota.hold(taking.pid, 0)
    net.hold(taking.pid, 1 * GIB)
    if not net.in_force_bytes:
        pytest.skip("no control group can be made here")
    try:
        assert taking.stdin is not None
        assert taking.stdout is not None
        taking.stdin.write("go\n")
        taking.stdin.flush()
        assert int(taking.stdout.readline()) == 64 * MIB
        net.change(16 * MIB)
        net.lower()
        assert 96 * MIB <= net.in_force_bytes < 256 * MIB, "its own, and a margin; its page cache was taken back"
        assert not net.is_lowered
        assert taking.poll() is None
        net.change(1 * GIB)
        assert net.in_force_bytes == net_of(1 * GIB)
    finally:
        taking.kill()
        taking.wait(10)
        await poll_until(lambda: _are_gone(quota, net), what="the groups' end")


def _are_gone(quota: CpuQuota, net: MemoryNet) -> bool:
    quota.close()
    net.close()
    return not quota.is_enforced and not any(each.directory.exists() for each in places("memory", net._name))
