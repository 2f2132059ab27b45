"""How many images of pages a transaction of TPC-B pays for in the long run.

Each transaction changes a row of pgbench_accounts in a page of its own, at random. Of P pages, N transactions since a
checkpoint have changed P * (1 - exp(-N / P)): so many images were written for them, the first ones nearly one each, the
last ones few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from benchmarks.results import Result
from benchmarks.statistics import spread

ROWS_OF_A_PAGE: Final = 61  # of pgbench_accounts, in 8 KiB
ROWS_OF_A_SCALE: Final = 100_000
INTERVAL_S: Final = 300.0  # checkpoint_timeout, PostgreSQL's default and what the servers here have
FROM_CHECKPOINT: Final = "tpcb"
PAID: Final = "tpcb-warm"


@dataclass(frozen=True, slots=True)
class Images:
    """Of one system with so many clients: images per transaction as measured, and what the long run has."""

    system: str
    clients: int
    from_checkpoint: float
    paid: float
    long_run: float


def per_transaction(pages: float, transactions: float) -> float:
    """The mean over this many transactions since a checkpoint."""
    return pages * -math.expm1(-transactions / pages) / transactions if transactions > 0 else 1.0


def images(result: Result) -> list[Images]:
    """Of the systems that write any, where both workloads were measured."""
    pages = result.options["scale"] * ROWS_OF_A_SCALE / ROWS_OF_A_PAGE
    found = []
    for workload, clients in result.groups():
        if workload != FROM_CHECKPOINT:
            continue
        for system in result.systems(workload, clients):
            shares = [_images(result, each, clients, system) for each in (FROM_CHECKPOINT, PAID)]
            if all(share is not None for share in shares) and max(share or 0.0 for share in shares) > 0:
                tps = spread(sample.tps for sample in result.rounds(workload, clients, system).values()).median
                long_run = per_transaction(pages, tps * INTERVAL_S)
                found.append(Images(system, clients, shares[0] or 0.0, shares[1] or 0.0, long_run))
    return found


def _images(result: Result, workload: str, clients: int, system: str) -> float | None:
    samples = result.rounds(workload, clients, system).values()
    counted = [each for each in samples if "wal_full_images" in each.counters and each.transactions]
    values = [each.counters["wal_full_images"] / each.transactions for each in counted]
    return spread(values).median if values else None
