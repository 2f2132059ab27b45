"""What a mount costs by the number of files: the table of files out of its packed form, the tree, the places.

A volume's mount without its network and without an engine: the packed table is in memory, as a storage node sends it.
Most of what is left is the file system's, which makes one file after the other. `python -m benchmarks mounting`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import uuid4

import typer

from aurora_ray.errors import UsageError
from aurora_ray.log import record
from aurora_ray.log.compression import compress
from aurora_ray.log.filetable import FileTable
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.volume.read.pages import PageRange, PageRun

_PAGE_BYTES: Final = 8192
_DIRECTORIES: Final = (b"base", b"base/1", b"base/4", b"base/5", b"base/16384", b"global", b"pg_wal")
_TEMPLATES: Final = 300  # files of a database without tables


def table_of(files: int) -> FileTable:
    """A cluster with so many files, most of them of one database: tables, indexes and what is empty."""
    table = FileTable()
    for directory in _DIRECTORIES:
        table.apply(record.mkdir(directory))
    for number in range(1, files + 1):
        place = min(number // _TEMPLATES, 3)
        path = b"%s/%d" % (_DIRECTORIES[1 + place], 16384 + number)
        table.apply(record.create(number, path))
        if number % 3:
            table.apply(record.extent(number, 0, 0))
            table.apply(record.size(number, _PAGE_BYTES * (number % 3)))
    return table


class _Source:
    """The packed table, and nothing else."""

    def __init__(self, table: FileTable) -> None:
        placement = GroupPlacement(0, tuple(f"n{number}" for number in range(6)))
        self.spec = VolumeSpec(uuid4(), _PAGE_BYTES, 1 << 30, (placement,))
        self.read_lsn = 1 << 30
        self._packed = compress(table.pack())
        self.table_cpu_s = 0.0

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = 1.0
    ) -> list[PageRun]:
        """Nobody reads."""
        raise UsageError(f"{len(ranges)} ranges as of {lsn} are not to be had within {timeout_s} s: there are no pages")

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = 1.0) -> FileTable:
        """As a client of storage nodes unpacks it."""
        _ = lsn, timeout_s
        began_s = time.process_time()
        table = FileTable.unpack_compressed(self._packed)
        self.table_cpu_s = time.process_time() - began_s
        return table


async def measure(*, files: int, rounds: int, work_dir: Path | None) -> None:
    """Prints a row a mount, and the medians."""
    source, rows = _Source(table_of(files)), array("d")
    with tempfile.TemporaryDirectory(prefix="aurora-mounting-", dir=work_dir) as directory:
        for number in range(rounds):
            began_s, cpu_s, before = time.perf_counter(), time.process_time(), os.times()
            mounted = await MountedVolume.open(
                source, Path(directory, f"{number}", "mount"), writer=None, cache_bytes=1 << 30
            )
            wall_s, cpu_s, after = time.perf_counter() - began_s, time.process_time() - cpu_s, os.times()
            await mounted.close()
            row = (wall_s, cpu_s, after.system - before.system, source.table_cpu_s)
            rows.extend(row)
            typer.echo(_described(f"mount {number + 1}", row))
    medians = [statistics.median(rows[column::4]) for column in range(4)]
    typer.echo(_described(f"{files:,} files, median", medians))


def _described(what: str, row: Sequence[float]) -> str:
    wall_s, cpu_s, kernel_s, table_s = row
    return f"{what}: {wall_s:.3f} s, CPU {cpu_s:.3f} s, of which table {table_s:.3f} s, kernel {kernel_s:.3f} s"


def run(
    *,
    files: Annotated[int, typer.Option(help="in the volume")] = 21_000,
    rounds: Annotated[int, typer.Option(help="how often it is mounted")] = 5,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
) -> None:
    """Show what mounting many files costs. Example: python -m benchmarks mounting --files 21000."""
    asyncio.run(measure(files=files, rounds=rounds, work_dir=work_dir))
