"""The suites: which workloads, on how much data, how long, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks.data import DataSpec
from benchmarks.workloads import ALL, CATALOGUE, Workload

GIB: Final = 1 << 30
MIB: Final = 1 << 20
# What a turn takes besides its load: connecting, a checkpoint, settling. Only for estimates.
_TURN_EXTRA_S: Final = 2.5
_COPY_BYTES_PER_S: Final = 30 * MIB
_OPENING_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A workload with its numbers of clients and seconds."""

    workload: Workload
    clients: tuple[int, ...]
    warm_s: float
    run_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A whole run. `settle_s_max` bounds each wait for quiet, `first_settle_s_max` the one after loading the data."""

    name: str
    systems: tuple[str, ...]
    data: DataSpec
    turns: tuple[Turns, ...]
    rounds: int
    opening_rounds: int
    copy_bytes: int
    copy_rounds: int
    settle_s_max: float
    first_settle_s_max: float
    memory_bytes: int = 0  # of each engine; 0: the product's default
    options: dict[str, Any] = field(default_factory=dict)

    def estimate_s(self, names: Sequence[str]) -> float:
        """About how long it takes on a small machine, without preparing the data."""
        seconds = 0.0
        for each in self.turns:
            systems = len([name for name in names if name in each.workload.systems])
            turn_s = each.warm_s + each.run_s + _TURN_EXTRA_S
            seconds += self.rounds * systems * len(each.clients) * turn_s
        seconds += self.copy_rounds * len(names) * self.copy_bytes / _COPY_BYTES_PER_S
        return seconds + self.opening_rounds * _OPENING_S * (("aurora" in names) + ("stock" in names))

    def described(self) -> dict[str, Any]:
        """Plain values, for the result."""
        return {**asdict(self), "scale": self.data.scale}


def _turns(name: str, clients: tuple[int, ...], warm_s: float, run_s: float) -> Turns:
    return Turns(workload=CATALOGUE[name], clients=clients, warm_s=warm_s, run_s=run_s)


QUICK: Final = Suite(
    name="quick",
    systems=("aurora", "standbys", "stock"),
    data=DataSpec(scale=50),
    turns=(_turns("tpcb-warm", (32,), 1, 4), _turns("select", (32,), 1, 3), _turns("tpcb", (32,), 1, 4)),
    rounds=3,
    opening_rounds=1,
    copy_bytes=0,
    copy_rounds=0,
    settle_s_max=2,
    first_settle_s_max=30,
)
STANDARD: Final = Suite(
    name="standard",
    systems=ALL,
    data=DataSpec(scale=150, sysbench_tables=8, sysbench_rows=50_000, tpcc_warehouses=4),
    turns=(
        _turns("tpcb-warm", (32,), 2, 6),
        _turns("tpcb-warm", (1,), 1, 5),
        _turns("sysbench-write", (32,), 2, 6),
        _turns("sysbench-rw", (32,), 2, 5),
        _turns("sysbench-point", (32,), 1, 4),
        _turns("tpcc", (32,), 2, 6),
        _turns("select", (32,), 1, 4),
        _turns("tpcb-warm-direct", (32,), 2, 6),
        _turns("select-direct", (32,), 1, 4),
        _turns("tpcb", (32,), 2, 6),
        _turns("tpcb", (1,), 1, 5),
        _turns("tpcb-rate", (32,), 1, 5),
    ),
    rounds=3,
    opening_rounds=2,
    copy_bytes=256 * MIB,
    copy_rounds=2,
    settle_s_max=2,
    first_settle_s_max=60,
)
FULL: Final = Suite(
    name="full",
    systems=ALL,
    data=DataSpec(scale=150, sysbench_tables=8, sysbench_rows=250_000, tpcc_warehouses=10),
    turns=(
        _turns("tpcb-warm", (1, 8, 32, 64), 10, 60),
        _turns("sysbench-write", (1, 8, 32, 64), 10, 60),
        _turns("sysbench-rw", (1, 8, 32, 64), 10, 60),
        _turns("sysbench-point", (1, 8, 32, 64), 5, 30),
        _turns("tpcc", (8, 32), 10, 60),
        _turns("select", (1, 8, 32, 64), 5, 30),
        _turns("tpcb-warm-direct", (32,), 10, 60),
        _turns("select-direct", (32,), 5, 30),
        _turns("tpcb", (1, 8, 32, 64), 10, 60),
        _turns("tpcb-rate", (32,), 10, 60),
    ),
    rounds=5,
    opening_rounds=5,
    copy_bytes=GIB,
    copy_rounds=5,
    settle_s_max=30,
    first_settle_s_max=180,
)
SUITES: Final = {suite.name: suite for suite in (QUICK, STANDARD, FULL)}
