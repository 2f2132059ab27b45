"""Load: clients that run transactions against a DSN for some seconds and measure each one's latency.

`load.run_load` is a plain function of these plain values: it can be called here, in a process, or as a Ray task on
another machine, any number at once; `merge` makes one result of many. The clients are pgbench's and sysbench's, in C:
on a small machine clients in Python would need more CPU than the database they measure.

With a rate (`rate_tps`, pgbench only), latencies count from the moment at which a transaction was due, not from when a
busy client got round to it (no coordinated omission). Without one, each client starts its next transaction when the
last is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.histograms import Counts, added

PGBENCH: Final = "pgbench"
SYSBENCH: Final = "sysbench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to run.

    `scripts` are pgbench's own ("tpcb-like", "select-only") or paths of files with their weights ("/…/pay@43"); for
    sysbench the name of one test ("oltp_write_only"). `scale` is pgbench's; `tables` of `rows` each are sysbench's.
    """

    scripts: tuple[str, ...]
    clients: int
    seconds: float
    scale: int
    seed: int
    program: str = PGBENCH
    tables: int = 0
    rows: int = 0
    threads: int = 2
    protocol: str = "prepared"
    rate_tps: float | None = None
    log_share: float = 1.0  # of the transactions whose latency pgbench records


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of it. `counts` are latencies in microseconds, rounded to three digits."""

    transactions: int
    failed: int
    seconds: float
    tps: float
    client_cpu_s: float
    counts: Counts = field(repr=False)


def merge(results: Sequence[LoadResult]) -> LoadResult:
    """One result of several that ran at the same time."""
    return LoadResult(
        sum(result.transactions for result in results),
        sum(result.failed for result in results),
        max(result.seconds for result in results),
        sum(result.tps for result in results),
        sum(result.client_cpu_s for result in results),
        added(result.counts for result in results),
    )
