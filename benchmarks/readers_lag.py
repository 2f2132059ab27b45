"""How long after a commit a reader shows it, as a client has it: one row, written and looked for again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import psycopg

PAUSE_S: Final = 0.01  # between two commits
LOOK_EVERY_S: Final = 0.0003
LATE_S: Final = 10.0  # it is not waited for longer; counts as so long
_TABLE: Final = "reader_lag"


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
