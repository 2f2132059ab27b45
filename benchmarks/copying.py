"""Bulk load: COPY of about so many bytes into a new table, from a client that has them ready."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from benchmarks.systems.base import execute

TABLE: Final = "copied"
_BLOCK_ROWS: Final = 10_000


def copy_in(dsn: str, nbytes: int) -> tuple[int, float]:
    """(bytes sent, seconds until committed). The table is made anew."""
    execute(dsn, f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id bigint, value int, filler text)")
    filler = "x" * 80
    sent = 0
    with psycopg.connect(dsn) as session:
        started_s = time.perf_counter()
        with session.cursor() as cursor, cursor.copy(f"COPY {TABLE} FROM STDIN") as copy:
            first = 0
            while sent < nbytes:
                rows = range(first, first + _BLOCK_ROWS)
                block = "".join([f"{row}\t{row * 7919 % 1_000_003}\t{filler}\n" for row in rows]).encode()
                copy.write(block)
                sent += len(block)
                first += _BLOCK_ROWS
        session.commit()
        return sent, time.perf_counter() - started_s


def drop(dsn: str) -> None:
    """Removes the table."""
    execute(dsn, f"DROP TABLE IF EXISTS {TABLE}")
