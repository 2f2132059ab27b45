"""Load: clients that run transactions against a DSN for some seconds and measure each one's latency.

`run_load` is a plain function of plain values: it can be called here, in a process, or as a Ray task on another
machine, any number at once; `merge` makes one result of many. The clients are pgbench's, in C: on a small machine
clients in Python would need more CPU than the database they measure.

With a rate (`rate_tps`), latencies count from the moment at which a transaction was due, not from when a busy client
got round to it (no coordinated omission). Without one, each client starts its next transaction when the last is done.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdrh.histogram import HdrHistogram

HIGHEST_US = 600_000_000
DIGITS = 3
_GRACE_S = 60.0


class LoadError(Exception):
    """The load could not be run, or did not run to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to run. `script` is one of pgbench's own ("tpcb-like", "select-only") or the path of a script file."""

    script: str
    clients: int
    seconds: float
    scale: int
    seed: int
    threads: int = 2
    protocol: str = "prepared"
    rate_tps: float | None = None
    log_share: float = 1.0  # of the transactions whose latency is recorded


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it. `histogram` is an HDR histogram of microseconds in its own compressed, printable form."""

    transactions: int
    failed: int
    seconds: float
    tps: float
    client_cpu_s: float
    histogram: str

    @property
    def latency_us(self) -> dict[str, float]:
        """The usual percentiles."""
        histogram = decode(self.histogram)
        found = {f"p{p:g}": histogram.get_value_at_percentile(p) for p in (50, 95, 99, 99.9)}
        return {**found, "max": histogram.get_max_value(), "mean": round(histogram.get_mean_value(), 1)}


def run_load(dsn: str, load: Load, bin_dir: str) -> LoadResult:
    """Runs pgbench from `bin_dir` against `dsn`. Raises LoadError with what it said."""
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        prefix = Path(directory, "latency")
        command = _command(dsn, load, bin_dir, prefix)
        started_s = time.monotonic()
        output, cpu_s = _run(command, load.seconds + _GRACE_S)
        elapsed_s = time.monotonic() - started_s
        histogram = _read_latencies(prefix.parent.glob("latency.*"))
    transactions = int(_find(r"number of transactions actually processed: (\d+)", output))
    failed = int(_find(r"number of failed transactions: (\d+)", output, default="0"))
    rate = r"tps = ([\d.]+) \(without initial connection time\)"  # not said if there was no time for any transaction
    tps = float(_find(rate, output, default=None if transactions else "0"))
    return LoadResult(transactions, failed, round(elapsed_s, 3), tps, round(cpu_s, 3), histogram)


def merge(results: Sequence[LoadResult]) -> LoadResult:
    """One result of several that ran at the same time."""
    histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
    for result in results:
        histogram.decode_and_add(result.histogram)
    return LoadResult(
        sum(result.transactions for result in results),
        sum(result.failed for result in results),
        max(result.seconds for result in results),
        sum(result.tps for result in results),
        sum(result.client_cpu_s for result in results),
        encode(histogram),
    )


def encode(histogram: HdrHistogram) -> str:
    """Printable and compressed."""
    return bytes(histogram.encode()).decode("ascii")


def decode(text: str) -> HdrHistogram:
    """The inverse of `encode`."""
    return HdrHistogram.decode(text)


def _command(dsn: str, load: Load, bin_dir: str, log_prefix: Path) -> list[str]:
    script = ["-f", load.script] if os.sep in load.script else ["-b", load.script]
    command = [f"{bin_dir}/pgbench", "--no-vacuum", *script, "-M", load.protocol, "-s", str(load.scale)]
    command += ["-c", str(load.clients), "-j", str(min(load.threads, load.clients)), "-T", str(round(load.seconds))]
    command += [f"--random-seed={load.seed}", "--log", f"--log-prefix={log_prefix}"]
    if load.log_share < 1:
        command.append(f"--sampling-rate={load.log_share:g}")
    if load.rate_tps is not None:
        command.append(f"--rate={load.rate_tps:g}")
    return [*command, dsn]


def _run(command: list[str], timeout_s: float) -> tuple[str, float]:
    """(standard output, CPU seconds)."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_exit(child.pid, timeout_s)
        except TimeoutError:
            child.kill()
            child.wait()
            raise LoadError(f"{command[0]} did not end within {timeout_s:g} s") from None
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode != 0:
        raise LoadError(f"{command[0]} ended with {child.returncode}: {text.strip()[-800:]}")
    return text, used.ru_utime + used.ru_stime


def _wait_exit(pid: int, timeout_s: float) -> None:
    """Waits without reaping, so that wait4 can tell afterwards what the process used."""
    import select

    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)
    if not ready:
        raise TimeoutError


def _read_latencies(paths: Iterable[Path]) -> str:
    """pgbench's log lines: client, transaction number, latency in microseconds, …"""
    counts: dict[int, int] = {}
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                latency_us = line.split(b" ", 3)[2]
                if latency_us.isdigit():  # else "failed" or "skipped"
                    value = int(latency_us)
                    counts[value] = counts.get(value, 0) + 1
    histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
    for value, count in counts.items():
        histogram.record_value(max(1, value), count)
    return encode(histogram)


def _find(pattern: str, text: str, default: str | None = None) -> str:
    match = re.search(pattern, text)
    if match is not None:
        return match[1]
    if default is None:
        raise LoadError(f"pgbench said nothing that matches {pattern!r}: {text.strip()[-800:]}")
    return default
