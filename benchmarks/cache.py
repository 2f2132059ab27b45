"""Reads of a database that outgrows an instance's local page cache: at 0.8, 1.2, 2 and 4 times the cache.

A fleet as `aurora up` makes it, started anew for each size, with little memory (so that PostgreSQL's buffers hold
little) and a cache of data / ratio; pgbench's select-only at random, uniformly: the worst case for any policy.
What is to be seen: the rate follows the share of reads that miss, and falls off no cliff where data and cache meet.
`python -m benchmarks cache`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, LiteralString

import psycopg
import typer

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from benchmarks.data import fill_pgbench
from benchmarks.fleet import UserFleet
from benchmarks.histograms import encode, percentiles
from benchmarks.loads import Load
from benchmarks.pgbench import run_pgbench

if TYPE_CHECKING:
    from benchmarks.loads import LoadResult

RATIOS: Final = (0.8, 1.2, 2.0, 4.0)
_MEMORY: Final = "256MiB"


class _Demo:
    """The fleet's cluster."""

    def __init__(self, data_dir: Path, bin_dir: str, scale: int) -> None:
        self._data_dir, self._bin_dir, self._scale = data_dir, bin_dir, scale
        self._fleet = UserFleet(data_dir)
        self._dsn = self._up()
        fill_pgbench(self._dsn, bin_dir, scale)
        self.data_bytes = int(self._ask("select pg_database_size(current_database())"))

    def _up(self) -> str:
        dsn: str = self._fleet.up("--memory", _MEMORY)["endpoints"]["cluster"]["dsn"]
        return dsn

    def _ask(self, statement: LiteralString) -> Any:
        with psycopg.connect(self._dsn, autocommit=True) as session:
            found = session.execute(statement).fetchone()
        return found[0] if found else None

    def restart(self, cache_bytes: int) -> None:
        """With another cache, through which all data has gone once."""
        self._fleet.down()
        self._fleet = UserFleet(self._data_dir, {"AURORA_CACHE_BYTES": str(cache_bytes)})
        self._dsn = self._up()
        self._ask("select count(*) from pgbench_accounts")

    def turn(self, clients: int, seconds: float) -> tuple[LoadResult, float, float]:
        """Reads at random: what came of it, pages fetched in it, and bytes of cache in use after it."""
        before = self._stats()["pages_fetched"]
        load = Load(scripts=("select-only",), clients=clients, seconds=seconds, scale=self._scale, seed=1)
        result = run_pgbench(self._dsn, load, self._bin_dir)
        after = self._stats()
        return result, after["pages_fetched"] - before, after["cached_bytes"]

    def _stats(self) -> dict[str, float]:
        stats: dict[str, float] = self._fleet.status()["instances"][0]["stats"]
        return stats

    def destroy(self) -> None:
        """It is gone."""
        self._fleet.destroy()


def measure(*, scale: int, clients: int, warm_s: float, run_s: float, work_dir: Path | None) -> None:
    """Prints a table."""
    directory = Path(tempfile.mkdtemp(prefix="aurora-cache-", dir=work_dir))
    directory.chmod(0o711)
    try:
        demo = _Demo(directory / "data", str(adapter(DEFAULT_ENGINE).find(None, None).bin_dir), scale)
        try:
            for ratio in RATIOS:
                cache_bytes = int(demo.data_bytes / ratio)
                demo.restart(cache_bytes)
                demo.turn(clients, warm_s)
                _show(ratio, cache_bytes, *demo.turn(clients, run_s))
        finally:
            demo.destroy()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _show(ratio: float, cache_bytes: int, result: LoadResult, fetched: float, cached: float) -> None:
    latency_us = percentiles([encode(result.counts)])
    typer.echo(
        f"{ratio:3.1f} times a cache of {cache_bytes >> 20:4} MiB: {result.tps:7.0f} reads/s,"
        f" p50 {latency_us['p50'] / 1e3:.2f} ms, p99 {latency_us['p99'] / 1e3:.2f} ms,"
        f" {fetched / max(1, result.transactions):.3f} pages fetched a read, {int(cached) >> 20} MiB cached"
    )


def run(
    *,
    scale: Annotated[int, typer.Option(help="pgbench's: 15 MiB of data each")] = 20,
    clients: Annotated[int, typer.Option(help="that read at the same time")] = 8,
    warm: Annotated[float, typer.Option(help="seconds before each measurement")] = 20.0,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 20.0,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
) -> None:
    """Read what is 0.8, 1.2, 2 and 4 times the local cache. Example: python -m benchmarks cache --scale 20."""
    measure(scale=scale, clients=clients, warm_s=warm, run_s=seconds, work_dir=work_dir)
