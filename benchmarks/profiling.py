"""Where the data path's CPU goes: py-spy on the driver and one storage node, under load.

py-spy samples from outside, so the processes run as always; native frames show what time goes into gRPC and RocksDB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.load import run_load
from benchmarks.loads import Load, LoadResult
from benchmarks.systems.aurora import Aurora

RATE_HZ: Final = 200
_WAITING: Final = ("Thread.run (threading.py", "_worker (concurrent/futures/", "EpollSelector.select (selectors.py")
_GRACE_S: Final = 60.0


class ProfilerMissingError(Exception):
    """py-spy is not installed."""


def find_profiler() -> str:
    """The program's path. Raises ProfilerMissingError."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise ProfilerMissingError("py-spy is not installed: pip install py-spy")
    return found


def profile(system: Aurora, load: Load, directory: Path, *, native: bool) -> tuple[LoadResult, dict[str, Path]]:
    """Samples while the load runs; stacks as py-spy's "raw" format (a stack a line, its count last) by process."""
    program = find_profiler()
    directory.mkdir(parents=True, exist_ok=True)
    targets = {"driver": system.driver_pid, "node": next(iter(system.node_pids.values()))}
    seconds = max(1, round(load.seconds) - 1)
    outputs = {name: directory / f"{name}.raw" for name in targets}
    children = []
    for name, pid in targets.items():
        command = [program, "record", "--format", "raw", "--output", str(outputs[name]), "--pid", str(pid)]
        command += ["--duration", str(seconds), "--rate", str(RATE_HZ), *(["--native"] if native else [])]
        children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        result = run_load(system.dsn, load, system.site.bin_dir)
        for child in children:
            _, errors = child.communicate(timeout=_GRACE_S)
            if child.returncode != 0:
                raise RuntimeError(f"py-spy failed: {errors.strip()[-400:]}")
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
    return result, outputs


def heaviest(path: Path, count: int) -> list[tuple[str, float, float]]:
    """(frame, its own share, its share with what it calls) of the frames with most time, in percent.

    Stacks that only wait are left out; so is gRPC's poller thread, which py-spy cannot tell from one.
    """
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in path.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames, hits = stack.split(";"), int(samples)
        if frames[-1].startswith(_WAITING):
            continue
        total += hits
        own[frames[-1]] += hits
        for frame in set(frames):
            whole[frame] += hits
    return [(frame, 100 * hits / total, 100 * whole[frame] / total) for frame, hits in own.most_common(count)]
