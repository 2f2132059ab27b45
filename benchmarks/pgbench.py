"""Load by pgbench: its own transactions, or those of script files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.histograms import rounded
from benchmarks.loads import Load, LoadResult
from benchmarks.programs import GRACE_S, find, run_program


def run_pgbench(dsn: str, load: Load, bin_dir: str) -> LoadResult:
    """Runs pgbench from `bin_dir` against `dsn`. Raises LoadError with what it said."""
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        prefix = Path(directory, "latency")
        started_s = time.monotonic()
        command = _command(dsn, load, bin_dir, prefix)
        output, cpu_s = run_program(command, timeout_s=load.seconds + GRACE_S)
        elapsed_s = time.monotonic() - started_s
        counts = _read_latencies(prefix.parent.glob("latency.*"))
    transactions = int(find(r"number of transactions actually processed: (\d+)", output))
    failed = int(find(r"number of failed transactions: (\d+)", output, default="0"))
    rate = r"tps = ([\d.]+) \(without initial connection time\)"  # not said if there was no time for any transaction
    tps = float(find(rate, output, default=None if transactions else "0"))
    return LoadResult(transactions, failed, round(elapsed_s, 3), tps, round(cpu_s, 3), counts)


def _command(dsn: str, load: Load, bin_dir: str, log_prefix: Path) -> list[str]:
    command = [f"{bin_dir}/pgbench", "--no-vacuum", *_scripts(load), "-M", load.protocol, "-s", str(load.scale)]
    command += ["-c", str(load.clients), "-j", str(min(load.threads, load.clients)), "-T", str(round(load.seconds))]
    command += [f"--random-seed={load.seed}", "--log", f"--log-prefix={log_prefix}"]
    if load.log_share < 1:
        command.append(f"--sampling-rate={load.log_share:g}")
    if load.rate_tps is not None:
        command.append(f"--rate={load.rate_tps:g}")
    return [*command, dsn]


def _scripts(load: Load) -> list[str]:
    """`-b name` for pgbench's own, `-f file@weight` for files."""
    return [word for each in load.scripts for word in ("-f" if os.sep in each else "-b", each)]


def _read_latencies(paths: Iterable[Path]) -> dict[int, int]:
    """pgbench's log lines: client, transaction number, latency in microseconds, …"""
    counts: dict[int, int] = {}
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                latency_us = line.split(b" ", 3)[2]
                if latency_us.isdigit():  # else "failed" or "skipped"
                    value = rounded(int(latency_us))
                    counts[value] = counts.get(value, 0) + 1
    return counts
