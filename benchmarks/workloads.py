"""The workloads: kinds of transactions, each with a plain name that means the same in every result.

Clients use the cluster endpoint, as users do; what goes past it says so in its name.

`tpcb` and `tpcb-warm` are the same transactions. PostgreSQL writes the image of a whole page into its WAL at the page's
first change after each checkpoint, since a crash could leave half a page on disk. `tpcb` begins right after a
checkpoint, as after every `checkpoint_timeout`: the images are paid as they come. In `tpcb-warm` they were paid before,
and no checkpoint comes: what PostgreSQL could do if it had nothing but changes to log. What a server does in the long
run lies between the two, and how near to which depends on how many of its pages change between checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from benchmarks.loads import PGBENCH, SYSBENCH

ALL: Final = ("aurora", "standbys", "stock", "nosync")
OURS: Final = ("aurora",)
READS: Final = ("aurora", "stock")
DURABLE: Final = ("aurora", "standbys", "stock")
_TPCC: Final = Path(__file__).with_name("tpcc")
# The mix that the TPC-C specification asks for at least (5.2.3), the rest for new orders.
TPCC_WEIGHTS: Final = {"new-order": 45, "payment": 43, "order-status": 4, "delivery": 4, "stock-level": 4}


class Checkpoint(StrEnum):
    """When the last one was, for systems that pay for it with images of pages."""

    LONG_AGO = "long ago"
    JUST_BEFORE = "just before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of transaction. `systems` are those it tells something about; `scripts` as in loads.Load."""

    name: str
    title: str
    scripts: tuple[str, ...]
    program: str = PGBENCH
    systems: tuple[str, ...] = ALL
    checkpoint: Checkpoint = Checkpoint.LONG_AGO
    reads_only: bool = False
    protocol: str = "prepared"
    rate_tps: float | None = None
    log_share: float = 1.0
    direct: bool = False  # to the engine itself, past the endpoint


CATALOGUE: Final = {
    each.name: each
    for each in (
        Workload(name="tpcb-warm", title="pgbench TPC-B, page images already paid", scripts=("tpcb-like",)),
        Workload(
            name="tpcb-warm-direct",
            title="pgbench TPC-B, page images already paid; to the engine itself, past the endpoint",
            scripts=("tpcb-like",),
            systems=OURS,
            direct=True,
        ),
        Workload(
            name="tpcb",
            title="pgbench TPC-B, from a checkpoint on",
            scripts=("tpcb-like",),
            checkpoint=Checkpoint.JUST_BEFORE,
        ),
        Workload(
            name="tpcb-rate",
            title="pgbench TPC-B, from a checkpoint on, 400 transactions a second for all",
            scripts=("tpcb-like",),
            systems=DURABLE,
            checkpoint=Checkpoint.JUST_BEFORE,
            rate_tps=400,
        ),
        Workload(
            name="select",
            title="pgbench select-only, warm cache",
            scripts=("select-only",),
            systems=READS,
            reads_only=True,
            log_share=0.1,
        ),
        Workload(
            name="select-direct",
            title="pgbench select-only, warm cache; to the engine itself, past the endpoint",
            scripts=("select-only",),
            systems=OURS,
            reads_only=True,
            log_share=0.1,
            direct=True,
        ),
        Workload(
            name="sysbench-rw",
            title="sysbench oltp_read_write",
            scripts=("oltp_read_write",),
            program=SYSBENCH,
            systems=DURABLE,
        ),
        Workload(
            name="sysbench-write", title="sysbench oltp_write_only", scripts=("oltp_write_only",), program=SYSBENCH
        ),
        Workload(
            name="sysbench-point",
            title="sysbench oltp_point_select, warm cache",
            scripts=("oltp_point_select",),
            program=SYSBENCH,
            systems=READS,
            reads_only=True,
        ),
        Workload(
            name="tpcc",
            title="TPC-C-like mix (our own, by functions in the database; not a TPC result)",
            scripts=tuple(f"{_TPCC / name}.sql@{weight}" for name, weight in TPCC_WEIGHTS.items()),
            protocol="simple",
            systems=DURABLE,
        ),
    )
}


def workload_title(name: str) -> str:
    """What people call it."""
    return CATALOGUE[name].title if name in CATALOGUE else name


def reads_only(name: str) -> bool:
    """Whether nothing is written, so that what is per flush or per redo says nothing."""
    return name in CATALOGUE and CATALOGUE[name].reads_only
