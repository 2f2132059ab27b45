"""What a backup costs, and what a restore takes.

TPC-B through the endpoint of a fleet as `aurora up` makes it, in turns with and without a backup to a local directory,
one after the other on the same cluster, so that both see the same machine; CPU of the backup's process and bytes in the
bucket for each transaction. Then a restore of all into a new cluster of the same fleet: to the first query, and until
it takes writes. `python -m benchmarks backup`.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from benchmarks.data import fill_pgbench
from benchmarks.fleet import UserFleet
from benchmarks.loads import Load
from benchmarks.pgbench import run_pgbench
from benchmarks.raw import OUT
from benchmarks.said import Said

if TYPE_CHECKING:
    from benchmarks.loads import LoadResult

_WAIT_S = 600.0


class _Demo:
    """The fleet's cluster, with a backup or without."""

    def __init__(self, directory: Path, bin_dir: str, scale: int) -> None:
        self.bucket = directory / "bucket"
        self._bin_dir, self._scale = bin_dir, scale
        self._fleet = UserFleet(directory / "data")
        self._dsn: str = self._fleet.up()["endpoints"]["cluster"]["dsn"]
        fill_pgbench(self._dsn, bin_dir, scale)

    def back_up(self, *, on: bool) -> None:
        """Switches it; returns when all is in the bucket."""
        self._fleet.json("backup", "demo", *(("--to", str(self.bucket)) if on else ("--off",)))
        if on:
            self.wait_backed_up()

    def wait_backed_up(self) -> dict[str, Any]:
        """Until a restore would lose nothing; the backup's status."""

        def done(status: dict[str, Any]) -> bool:
            backup = status["backup"]
            return bool(backup and backup["restorable_from_lsn"] and backup["lsn"] >= status["vdl"])

        return dict(self._wait("demo", done)["backup"])

    def _wait(self, name: str, done: Any) -> dict[str, Any]:
        deadline = time.monotonic() + _WAIT_S
        while not done(status := self._fleet.json("status", name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not come to rest: {status}")
            time.sleep(0.2)
        found: dict[str, Any] = status
        return found

    def bucket_bytes(self) -> int:
        """Of all objects."""
        return sum(path.stat().st_size for path in self.bucket.rglob("*") if path.is_file())

    def cpu_s(self) -> float:
        """That the backup's process has taken."""
        instances = self._fleet.json("status", "demo")["instances"]
        return sum(float(each["stats"].get("backup_cpu_s", 0.0)) for each in instances)

    def turn(self, clients: int, seconds: float, seed: int) -> LoadResult:
        """TPC-B."""
        load = Load(scripts=("tpcb-like",), clients=clients, seconds=seconds, scale=self._scale, seed=seed)
        return run_pgbench(self._dsn, load, self._bin_dir)

    def restore(self) -> tuple[float, float, int]:
        """Seconds to the first query's answer and until it takes writes; bytes of the database."""
        began_s = time.monotonic()
        done = self._fleet.json("restore", str(self.bucket), "back", "--timeout", str(_WAIT_S), timeout_s=_WAIT_S)
        with psycopg.connect(done["endpoints"]["cluster"]["dsn"], autocommit=True) as session:
            session.execute("select abalance from pgbench_accounts where aid = 1").fetchone()
            first_s = time.monotonic() - began_s
        self._wait("back", lambda status: status["state"] == "available")
        whole_s = time.monotonic() - began_s
        with psycopg.connect(done["endpoints"]["cluster"]["dsn"], autocommit=True) as session:
            found = session.execute("select pg_database_size(current_database())").fetchone()
        return first_s, whole_s, int(found[0]) if found else 0

    def destroy(self) -> None:
        """It is gone."""
        self._fleet.destroy()


def measure(say: Said, *, scale: int, clients: int, rounds: int, run_s: float, work_dir: Path | None) -> None:
    """Says each turn, and what comes of them."""
    directory = Path(tempfile.mkdtemp(prefix="aurora-backup-", dir=work_dir))
    directory.chmod(0o711)
    try:
        demo = _Demo(directory, str(adapter(DEFAULT_ENGINE).find(None, None).bin_dir), scale)
        try:
            demo.turn(clients, run_s, 0)
            _turns(say, demo, clients, rounds, run_s)
            demo.back_up(on=True)
            first_s, whole_s, nbytes = demo.restore()
            say(
                f"restore of {nbytes >> 20} MiB: first query after {first_s:.2f} s, writes after {whole_s:.2f} s"
                f" ({nbytes / 1e6 / whole_s:.0f} MB/s)"
            )
        finally:
            demo.destroy()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _turns(say: Said, demo: _Demo, clients: int, rounds: int, run_s: float) -> None:
    ratios = []
    for number in range(rounds):
        tps = {}
        for on in (False, True) if number % 2 else (True, False):  # neither is always first
            demo.back_up(on=on)
            before, cpu_s = demo.bucket_bytes(), demo.cpu_s()
            result = demo.turn(clients, run_s, number)
            tps[on] = result.tps
            more = ""
            if on:
                demo.wait_backed_up()
                per_commit = (demo.bucket_bytes() - before) / max(1, result.transactions)
                cpu_us = (demo.cpu_s() - cpu_s) * 1e6 / max(1, result.transactions)
                more = f", {per_commit:.0f} bytes in the bucket and {cpu_us:.0f} us of CPU a transaction"
            say(f"round {number}, {'with' if on else 'without'} a backup: {result.tps:.0f} tps{more}")
        ratios.append(tps[True] / tps[False])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    say(f"with / without: median {statistics.median(ratios):.2f} ({spread})")


def run(
    *,
    scale: Annotated[int, typer.Option(help="pgbench's: 15 MiB of data each")] = 20,
    clients: Annotated[int, typer.Option(help="that write at the same time")] = 32,
    rounds: Annotated[int, typer.Option(help="of a turn with and a turn without")] = 5,
    seconds: Annotated[float, typer.Option(help="of each turn")] = 20.0,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
    out: Annotated[Path | None, typer.Option(help="the JSON file")] = None,
) -> None:
    """Write with and without a backup, then restore. Example: python -m benchmarks backup --rounds 3."""
    say = Said("backup")
    try:
        measure(say, scale=scale, clients=clients, rounds=rounds, run_s=seconds, work_dir=work_dir)
    finally:
        say.save(out or OUT / f"backup-{time.strftime('%Y%m%d-%H%M%S')}.json")
