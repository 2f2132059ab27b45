"""Runs a load with the program that it is for."""

from __future__ import annotations

from benchmarks.loads import SYSBENCH, Load, LoadResult
from benchmarks.pgbench import run_pgbench
from benchmarks.sysbench import run_sysbench


def run_load(dsn: str, load: Load, bin_dir: str) -> LoadResult:
    """Runs `load` against `dsn`; pgbench comes from `bin_dir`. Raises LoadError with what the program said."""
    if load.program == SYSBENCH:
        return run_sysbench(dsn, load)
    return run_pgbench(dsn, load, bin_dir)
