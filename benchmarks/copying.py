"""Bulk load: COPY of about so many bytes into a new table, from a client that has them ready."""

from __future__ import annotations

import itertools
import time
from typing import Final

import psycopg

from benchmarks.systems.base import execute

TABLE: Final = "copied"
_BLOCKS: Final = 16
_BLOCK_ROWS: Final = 10_000


def copy_in(dsn: str, nbytes: int) -> tuple[int, float]:
    """(bytes sent, seconds until committed). The table is made anew."""
    execute(dsn, f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id bigint, value int, filler text)")
    blocks = [_block(number * _BLOCK_ROWS) for number in range(_BLOCKS)]
    sent = 0
    with psycopg.connect(dsn) as session:
        started_s = time.perf_counter()
        with session.cursor() as cursor, cursor.copy(f"COPY {TABLE} FROM STDIN") as copy:
            for block in itertools.cycle(blocks):
                if sent >= nbytes:
                    break
                copy.write(block)
                sent += len(block)
        session.commit()
        return sent, time.perf_counter() - started_s


def _block(first: int) -> bytes:
    filler = "x" * 80
    rows = range(first, first + _BLOCK_ROWS)
    return "".join([f"{row}\t{row * 7919 % 1_000_003}\t{filler}\n" for row in rows]).encode()


def drop(dsn: str) -> None:
    """Removes the table."""
    execute(dsn, f"DROP TABLE IF EXISTS {TABLE}")
