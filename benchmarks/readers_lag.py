"""How long after a commit a reader shows it, as a client has it: one row, written and looked for again and again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg

from benchmarks.failover_report import percentile
from benchmarks.loads import Load
from benchmarks.pgbench import run_pgbench

if TYPE_CHECKING:
    from benchmarks.loads import LoadResult

PAUSE_S: Final = 0.01  # between two commits
LOOK_EVERY_S: Final = 0.0003
LATE_S: Final = 10.0  # it is not waited for longer; counts as so long
WARM_S: Final = 1.0  # of load before the lag is looked at
_TABLE: Final = "reader_lag"
# One row changed in a transaction of its own, so that a rate of transactions is one of writes.
_WRITE: Final = (
    "\\set aid random(1, 100000 * :scale)\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
)


class Writes(NamedTuple):
    """The load of a turn: `clients` change one row a transaction for `seconds`, `rate` a second (0: as many as go)."""

    clients: int
    rate: int
    seconds: float
    scale: int
    seed: int
    bin_dir: str


def under_load(dsn: str, readers: Sequence[str], writes: Writes) -> tuple[LoadResult, list[float]]:
    """What came of the load, and lags in ms, looked at when it has run for WARM_S; without a reader, nobody looks."""
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        script = Path(directory, "write.sql")
        script.write_text(_WRITE)
        load = Load(
            scripts=(str(script),),
            clients=writes.clients,
            seconds=WARM_S + writes.seconds,
            scale=writes.scale,
            seed=writes.seed,
            rate_tps=writes.rate or None,
            log_share=0.01,
        )
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_pgbench, dsn, load, writes.bin_dir)
            time.sleep(WARM_S)
            lags_ms = measure(dsn, readers, writes.seconds - 0.5) if readers else []
            return running.result(), lags_ms


def figures(lags_ms: Sequence[float]) -> tuple[str, str, str]:
    """Of a table's row: p50, p99, max."""
    return f"{percentile(lags_ms, 0.5):.1f}", f"{percentile(lags_ms, 0.99):.1f}", f"{max(lags_ms):.1f}"


def prepare(dsn: str) -> None:
    """The row."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (n bigint)".encode())
        session.execute(f"TRUNCATE {_TABLE}".encode())
        session.execute(f"INSERT INTO {_TABLE} VALUES (0)".encode())  # noqa: S608


def measure(dsn: str, readers: Sequence[str], seconds: float) -> list[float]:
    """Milliseconds from the moment at which a commit was acknowledged to the end of the first statement that shows it,
    of many commits, each looked for on the next reader. One look takes as long as a small query, for everybody."""
    lags_ms: list[float] = []
    change, look = f"UPDATE {_TABLE} SET n = n + 1 RETURNING n".encode(), f"SELECT n FROM {_TABLE}".encode()  # noqa: S608
    with ExitStack() as stack:
        writing, *reading = (
            stack.enter_context(psycopg.connect(each, autocommit=True, connect_timeout=30)) for each in (dsn, *readers)
        )
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            (written,) = writing.execute(change, prepare=True).fetchone() or (0,)
            committed_s = time.monotonic()
            session = reading[len(lags_ms) % len(reading)]
            while True:
                (seen,) = session.execute(look, prepare=True).fetchone() or (-1,)
                waited_s = time.monotonic() - committed_s
                if seen >= written or waited_s > LATE_S:
                    break
                time.sleep(LOOK_EVERY_S)
            lags_ms.append(round(waited_s * 1e3, 3))
            time.sleep(PAUSE_S)
    return lags_ms
