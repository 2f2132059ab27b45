"""What a clone that is written to costs its parent: commit latency beside it, and beside an unrelated cluster.

Three clusters of one fleet: `demo`, a clone of it, and one that was filled by itself with the same data. A few clients
run TPC-B on `demo` at a fixed rate while many run it without one on either neighbour, in the order A B B A. Latencies
count from when a transaction was due. `python -m benchmarks neighbours`.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import psycopg
import typer

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from benchmarks.data import fill_pgbench
from benchmarks.fleet import UserFleet
from benchmarks.histograms import encode, percentiles
from benchmarks.loads import Load
from benchmarks.pgbench import run_pgbench
from benchmarks.raw import OUT
from benchmarks.said import Said
from benchmarks.statistics import compare, spread

NEIGHBOURS: Final = ("its clone", "an unrelated cluster")
PERCENTILES: Final = (50, 95)
_SETTLE_S: Final = 17.0  # for merging, and processes in waiting, after data was written
_LEAD_S: Final = 2.0  # the neighbour's load is there before, and after
_CLONE_TIMEOUT_S: Final = 180.0
# Each transaction of TPC-B changes a balance of each kind by the same amount: what all add up to.
_SUMS: Final = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
    " (SELECT sum(delta) FROM pgbench_history)"
)


class Trio:
    """The parent and its two neighbours, by their connection strings."""

    def __init__(self, fleet: UserFleet, bin_dir: str, scale: int) -> None:
        self._bin_dir, self._scale = bin_dir, scale
        self.parent: str = fleet.up()["endpoints"]["cluster"]["dsn"]
        unrelated: str = fleet.up("--name", "other")["endpoints"]["cluster"]["dsn"]
        for dsn in (self.parent, unrelated):
            fill_pgbench(dsn, bin_dir, scale)
        clone: str = fleet.json("clone", "demo", "twin", timeout_s=_CLONE_TIMEOUT_S)["endpoints"]["cluster"]["dsn"]
        self.neighbours = dict(zip(NEIGHBOURS, (clone, unrelated), strict=True))

    def turn(self, neighbour: str, load: Load, busy: Load) -> dict[str, float]:
        """The parent's latencies in microseconds beside this neighbour's load. Raises LoadError of either."""
        failed: list[Exception] = []

        def run_busy() -> None:
            try:
                run_pgbench(self.neighbours[neighbour], busy, self._bin_dir)
            except Exception as error:  # raised below, by the thread that waits
                failed.append(error)

        beside = threading.Thread(target=run_busy, name="neighbour")
        beside.start()
        try:
            time.sleep(_LEAD_S)
            result = run_pgbench(self.parent, load, self._bin_dir)
        finally:
            beside.join()
        if failed:
            raise failed[0]
        return percentiles([encode(result.counts)], PERCENTILES)

    def check(self) -> None:
        """Raises RuntimeError if the parent has anything but what was written to it."""
        with psycopg.connect(self.parent, connect_timeout=30) as session:
            found = session.execute(_SUMS).fetchone()
        if found is None or len(set(found)) != 1:
            raise RuntimeError(f"the parent's balances do not add up: {found}")

    def load(self, *, clients: int, seconds: float, seed: int, rate_tps: float | None = None) -> Load:
        """TPC-B."""
        scripts = ("tpcb-like",)
        return Load(scripts=scripts, clients=clients, seconds=seconds, scale=self._scale, seed=seed, rate_tps=rate_tps)


@contextlib.contextmanager
def _trio(scale: int, work_dir: Path | None) -> Iterator[Trio]:
    with tempfile.TemporaryDirectory(prefix="aurora-neighbours-", dir=work_dir) as directory:
        Path(directory).chmod(0o711)
        fleet = UserFleet(Path(directory) / "data")
        try:
            yield Trio(fleet, str(adapter(DEFAULT_ENGINE).find(None, None).bin_dir), scale)
        finally:
            fleet.destroy()


def measure(
    say: Said, *, scale: int, clients: int, rate_tps: float, busy: int, seconds: float, rounds: int, work: Path | None
) -> None:
    """Says each turn, then the ratios."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    with _trio(scale, work) as trio:
        time.sleep(_SETTLE_S)
        for number in range(rounds):
            for neighbour in NEIGHBOURS if number % 2 == 0 else NEIGHBOURS[::-1]:
                load = trio.load(clients=clients, seconds=seconds, seed=number, rate_tps=rate_tps)
                many = trio.load(clients=busy, seconds=seconds + 2 * _LEAD_S, seed=number)
                latencies = trio.turn(neighbour, load, many)
                for name, value in latencies.items():
                    found.setdefault(name, {}).setdefault(neighbour, {})[number] = value / 1000
                said = ", ".join(f"{name} {latencies[name] / 1000:.1f} ms" for name in _names())
                say(f"round {number + 1}, beside {neighbour}: {said}")
        trio.check()
    for name in _names():
        clone, unrelated = (found[name][neighbour] for neighbour in NEIGHBOURS)
        medians = " and ".join(f"{spread(each.values()).median:.1f}" for each in (clone, unrelated))
        say(f"{name}: {medians} ms beside {' and '.join(NEIGHBOURS)}; ratio {compare(clone, unrelated)}")


def _names() -> list[str]:
    return [f"p{each}" for each in PERCENTILES]


def run(
    *,
    scale: Annotated[int, typer.Option(help="pgbench's scale factor, of each cluster")] = 10,
    clients: Annotated[int, typer.Option(help="of the parent")] = 4,
    rate: Annotated[float, typer.Option(help="transactions a second on the parent")] = 50.0,
    busy: Annotated[int, typer.Option(help="clients of the neighbour")] = 32,
    seconds: Annotated[float, typer.Option(help="of each turn")] = 10.0,
    rounds: Annotated[int, typer.Option(help="each with both neighbours")] = 6,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file")] = None,
) -> None:
    """A parent's commits beside its clone, and beside a stranger. Example: python -m benchmarks neighbours."""
    say = Said("neighbours")
    try:
        measure(
            say, scale=scale, clients=clients, rate_tps=rate, busy=busy, seconds=seconds, rounds=rounds, work=work_dir
        )
    finally:
        say.save(out or OUT / f"neighbours-{time.strftime('%Y%m%d-%H%M%S')}.json")
