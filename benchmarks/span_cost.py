"""`python -m benchmarks.span_cost`: microseconds of CPU that one span costs a process, written to its file and all.

In a process of its own, because telemetry is set up once a process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from aurora_ray import telemetry
from aurora_ray.telemetry.spanreader import read_spans

ROUNDS: Final = 20
SPANS: Final = 1000  # fewer than wait for the exporter at most, so none is dropped
TIMEOUT_S: Final = 60.0


def measure(directory: Path) -> float:
    """CPU of this process, its exporting thread included, for each of many spans with some attributes."""
    telemetry.configure("span-cost", span_dir=directory)
    begun_s = time.process_time()
    for _ in range(ROUNDS):
        for number in range(SPANS):
            now_ns = time.time_ns()
            attributes = {"aurora.lsn": number, "aurora.bytes": 4096, "aurora.vdl": number}
            telemetry.record_span("volume.flush", now_ns, now_ns + 1000, attributes)
        telemetry.flush(TIMEOUT_S)
    used_s = time.process_time() - begun_s
    telemetry.shutdown()
    written = sum(1 for _ in read_spans(directory))
    if written != ROUNDS * SPANS:
        raise RuntimeError(f"{written} of {ROUNDS * SPANS} spans were written")
    return 1e6 * used_s / written


def measured_in_child() -> float:
    """The same, from a child."""
    command = [sys.executable, "-m", "benchmarks.span_cost"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _name:
        print(round(measure(Path(_name)), 2))
