"""The suites: what is measured on which systems, how long, how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.systems.base import Sizes

GIB: Final = 1 << 30
MIB: Final = 1 << 20
ALL: Final = ("aurora", "standbys", "stock", "nosync")
READS: Final = ("aurora", "stock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of transaction. `systems` are those it tells something about."""

    name: str
    title: str
    script: str
    clients: tuple[int, ...]
    systems: tuple[str, ...]
    warm_s: float
    run_s: float
    log_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A whole run. `settle_s_max` bounds each wait for quiet, `first_settle_s_max` the one after loading the data."""

    name: str
    scale: int
    sizes: Sizes
    workloads: tuple[Workload, ...]
    rounds: int
    opening_rounds: int
    copy_bytes: int
    settle_s_max: float
    first_settle_s_max: float


def _workloads(
    clients: tuple[int, ...], tpcb_s: tuple[float, float], select_s: tuple[float, float]
) -> tuple[Workload, ...]:
    return (
        Workload(
            name="tpcb",
            title="pgbench TPC-B",
            script="tpcb-like",
            clients=clients,
            systems=ALL,
            warm_s=tpcb_s[0],
            run_s=tpcb_s[1],
        ),
        Workload(
            name="select",
            title="pgbench select-only, warm cache",
            script="select-only",
            clients=clients,
            systems=READS,
            warm_s=select_s[0],
            run_s=select_s[1],
            log_share=0.1,
        ),
    )


QUICK: Final = Suite(
    name="quick",
    scale=60,
    sizes=Sizes(shared_buffers_bytes=1536 * MIB, standby_buffers_bytes=256 * MIB, cache_bytes=4 * GIB),
    workloads=_workloads((32,), (2, 6), (1, 4)),
    rounds=3,
    opening_rounds=2,
    copy_bytes=0,
    settle_s_max=3,
    first_settle_s_max=15,
)
FULL: Final = Suite(
    name="full",
    scale=60,
    sizes=Sizes(shared_buffers_bytes=1536 * MIB, standby_buffers_bytes=256 * MIB, cache_bytes=8 * GIB),
    workloads=_workloads((1, 8, 32, 64), (10, 60), (5, 30)),
    rounds=5,
    opening_rounds=5,
    copy_bytes=GIB,
    settle_s_max=30,
    first_settle_s_max=180,
)
SUITES: Final = {suite.name: suite for suite in (QUICK, FULL)}
