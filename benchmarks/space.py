"""What random writes leave on a storage node's disk, while they come in and when they have ended; and what they cost.

One node, in this process, with its disk's own fsync; no engine, no network. Redo is like that of an OLTP load: deltas
of some 200 bytes on pages taken at random. `python -m benchmarks space`.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import tempfile
import time
import uuid
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aurora_ray.log.batch import encode_batch
from aurora_ray.log.wire import join_append
from aurora_ray.rpc.admission import OURS, Secret
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.node.epochs import seal, truncate
from aurora_ray.storage.server.server import StorageServer
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.storage.segment.segment import Segment

_PAGE_BYTES: Final = 8192
_DELTA_BYTES: Final = 200
_FLUSH_RECORDS: Final = 256
_HEAD: Final = struct.Struct("<IBBHQQII")  # a PAGE record: length, type, flags, ranges, LSN, file, group, page
_RANGE: Final = struct.Struct("<HH")
_RECORD_BYTES: Final = (_HEAD.size + _RANGE.size + _DELTA_BYTES + 7) & ~7
_DRAIN_S: Final = 300.0


class _Redo:
    """An endless log."""

    def __init__(self, volume: bytes, pages: int) -> None:
        self.lsn = 0
        self.cpu_s = 0.0  # spent here
        self._volume, self._pages, self._prev_lsn = volume, pages, 0
        self._random = random.Random(1)
        self._noise = self._random.randbytes(1 << 20)

    def flush(self) -> bytes:
        """The next message."""
        began_s = time.thread_time()
        start, records, choose = self.lsn, [], self._random.randrange
        for _ in range(_FLUSH_RECORDS):
            self.lsn += _RECORD_BYTES
            at = choose(len(self._noise) - _DELTA_BYTES)
            record = _HEAD.pack(_RECORD_BYTES, 1, 0, 1, self.lsn, 1, 0, choose(self._pages))
            record += _RANGE.pack(choose(_PAGE_BYTES - _DELTA_BYTES), _DELTA_BYTES)
            record += self._noise[at : at + _DELTA_BYTES]
            records.append(record.ljust(_RECORD_BYTES, b"\0"))
        batch = encode_batch(
            group=0, volume=self._volume, epoch=1, prev_lsn=self._prev_lsn, flush_start=start, flush_end=self.lsn,
            time_us=time.time_ns() // 1000, vdl=start, record_count=_FLUSH_RECORDS, groups=[0],
            records=b"".join(records),
        )  # fmt: skip
        self._prev_lsn = self.lsn
        self.cpu_s += time.thread_time() - began_s
        return join_append([batch])


def _files(directory: Path) -> int:
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_blocks * 512 if entry.is_file() else 0
        except FileNotFoundError:
            continue
    return total


class _Run:
    """Of one node."""

    def __init__(self, server: StorageServer, pages: int) -> None:
        self._server, self._pages = server, pages
        self._volume = uuid.uuid4().bytes
        self._began_s = time.monotonic()
        self._redo = _Redo(self._volume, pages)
        self._waits_s: list[float] = []

    def open(self) -> Segment:
        """A volume of one group."""
        node = self._server.node
        node.create_segments(self._volume, _PAGE_BYTES, [0], [node.config.node_id])
        seal(node.volumes[self._volume], pb.SealRequest(volume=self._volume, epoch=1, owner=b"b" * 16))
        request = pb.TruncateRequest(volume=self._volume, epoch=1, owner=b"b" * 16)
        request.truncations.add(epoch=1, lsn=0)
        truncate(node.volumes[self._volume], request)
        return node.segments[self._volume, 0]

    async def write(self, segment: Segment, nbytes: int, rows: int) -> None:
        """So much log, as fast as it is taken."""
        appender: Any = self._server._appender  # the hot path itself, without a stream
        shown = 0
        while self._redo.lsn < nbytes:
            message = self._redo.flush()
            began_s = time.perf_counter()
            appender.store(message)
            self._waits_s.append(time.perf_counter() - began_s)
            await asyncio.sleep(0)
            if self._redo.lsn >= (shown + 1) * nbytes // rows:
                shown += 1
                self.show(segment, "writing")
        segment.learn_vdl(self._redo.lsn)

    def show(self, segment: Segment, what: str) -> None:
        """A row."""
        size = self._pages * _PAGE_BYTES
        of_pages, of_log = _files(segment.store.path / "pages"), _files(segment.store.path)
        typer.echo(
            f"{time.monotonic() - self._began_s:7.1f} s  {what:8} {self._redo.lsn / 1e6:8.0f} MB of log,"
            f" pages {size / 1e6:5.0f} MB, stored {of_pages / 1e6:6.0f} MB = {of_pages / size:5.2f} times,"
            f" log and its files {of_log / 1e6:5.0f} MB, together {(of_pages + of_log) / size:5.2f} times"
        )

    def costs(self, cpu_s: float, wall_s: float) -> None:
        """Of appending and merging."""
        cuts = quantiles(self._waits_s, n=100)
        written_mb, cpu_ms = self._redo.lsn / 1e6, (cpu_s - self._redo.cpu_s) * 1e3
        typer.echo(
            f"{written_mb / wall_s:.1f} MB/s appended and merged, {cpu_ms / written_mb:.1f} ms"
            f" of CPU a MB; an append of {_FLUSH_RECORDS * _RECORD_BYTES >> 10} KiB: p50 {cuts[49] * 1e3:.2f} ms,"
            f" p99 {cuts[98] * 1e3:.2f} ms"
        )


async def measure(*, pages: int, written_mb: int, layer_mb: int, cold_s: float, work_dir: Path | None) -> None:
    """Prints a table."""
    directory = Path(tempfile.mkdtemp(prefix="aurora-space-", dir=work_dir))
    config = StorageConfig(
        node_id="n1", az="a", data_dir=directory, disk_reserve_bytes=0, lease_s_max=0.0, idle_s=2.0, retention_s=3.0,
        retention_bytes=1 << 20, layer_bytes=layer_mb << 20, idle_layer_bytes=1, scrub_interval_s=0.0,
    )  # fmt: skip
    OURS.set(Secret(os.urandom(32)))
    server = StorageServer(config)
    await server.start()
    try:
        run = _Run(server, pages)
        segment = run.open()
        cpu_s, began_s = time.process_time(), time.monotonic()
        await run.write(segment, written_mb * 10**6, 10)
        deadline_s = time.monotonic() + _DRAIN_S
        while segment.tail_bytes >= layer_mb << 20 and time.monotonic() < deadline_s:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        run.costs(time.process_time() - cpu_s, time.monotonic() - began_s)
        for _ in range(4):
            run.show(segment, "cold")
            await asyncio.sleep(cold_s / 4)
        run.show(segment, "cold")
    finally:
        await server.stop(0.0)
        shutil.rmtree(directory, ignore_errors=True)


def run(
    *,
    pages: Annotated[int, typer.Option(help="of 8 KiB, that are written to")] = 6000,
    written: Annotated[int, typer.Option(help="log, in MB")] = 500,
    layer: Annotated[int, typer.Option(help="a layer, in MiB")] = 8,
    cold: Annotated[float, typer.Option(help="seconds to wait when all is written")] = 30.0,
    work_dir: Annotated[Path | None, typer.Option(help="a directory on the disk to use")] = None,
) -> None:
    """Show what random writes leave on a storage node's disk. Example: python -m benchmarks space --pages 6000."""
    asyncio.run(measure(pages=pages, written_mb=written, layer_mb=layer, cold_s=cold, work_dir=work_dir))
