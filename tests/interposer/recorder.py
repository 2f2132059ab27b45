"""The consumer's side without a volume: keeps all redo in memory, makes it durable at once, serves misses from it."""

from __future__ import annotations

import errno
import os
import random
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from aurora_ray.interposer import native
from aurora_ray.interposer.region import Region, Taker
from aurora_ray.log import batch as batches
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import apply_page, iter_records
from aurora_ray.volume.localfiles import LocalFiles
from tests.interposer.model import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.log.record import Record

VOLUME = UUID(int=7)
GROUP_EXTENTS = 6


class Replay:
    """The tree as the log's records make it, one at a time."""

    def __init__(self) -> None:
        self.table = FileTable()
        self.pages: dict[tuple[int, int], bytearray] = {}

    def apply(self, record: Record) -> None:
        self.table.apply(record)
        match record.type:
            case RecordType.PAGE:
                image = self.pages.setdefault((record.file_id, record.page), bytearray(PAGE_BYTES))
                apply_page(record, image)
            case RecordType.TRUNCATE:
                self._cut(record.file_id, int.from_bytes(record.body, "little"))
            case RecordType.DROP:
                self._cut(record.file_id, 0)

    def _cut(self, file_id: int, size: int) -> None:
        for key in [k for k in self.pages if k[0] == file_id]:
            keep = size - key[1] * PAGE_BYTES
            if keep <= 0:
                del self.pages[key]
            elif keep < PAGE_BYTES:
                self.pages[key][keep:] = bytes(PAGE_BYTES - keep)

    def snapshot(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for entry in self.table.entries():
            content: bytes | None = None
            if entry.kind is FileKind.FILE:
                count = -(-entry.size // PAGE_BYTES)
                zero = bytes(PAGE_BYTES)
                content = b"".join(self.pages.get((entry.file_id, page), zero) for page in range(count))[: entry.size]
            for path in entry.paths:
                found[path.decode()] = content
        found.pop("", None)
        return found


class Recorder:
    """Runs programs under the interposer on an empty mount."""

    def __init__(self, root: Path, *, seed: int = 0, evict: bool = False) -> None:
        self.mount = root / "mount"
        self.mount.mkdir()
        self.region = Region(
            page_bytes=PAGE_BYTES,
            base_lsn=0,
            next_file_id=1,
            ring_bytes=1 << 20,
            bell_bytes=64 << 10,
            files_max=4096,
            nodes_max=4096,
            volatile_patterns=[("below", "tmp"), ("component", "scratch"), ("exact", "pid"), ("name", "*.log")],
        )
        self.region.add_group(0, GROUP_EXTENTS)
        self.groups = 1
        self.taker = Taker(self.region, volume=VOLUME, epoch=1, group_tails={}, flush_bytes_max=200_000)
        self.local = LocalFiles(self.region, self.mount.resolve())
        self.records: list[Record] = []
        self.replay = Replay()
        self.random = random.Random(seed)
        self.evict = evict
        self.evicted_pages = 0
        self.hand = native.Candidate()

    def close(self) -> None:
        self.local.close()
        self.region.close()

    def spawn(self, arguments: list[str], **more: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.region.environment(self.mount.resolve(), Path(native.library_path()))}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        return subprocess.Popen(
            arguments,
            cwd=self.mount,
            env=environment,
            pass_fds=self.region.pass_fds,
            stderr=subprocess.PIPE,
            **more,  # type: ignore[call-overload]
        )

    def python(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self.spawn([sys.executable, "-m", module, *arguments])

    def serve(self, child: subprocess.Popen[bytes], *, kill_after_records: int | None = None) -> int:
        """Serves the child until it ends; kills it once it has logged that much. Returns its exit code."""
        while child.poll() is None:
            readable, _, _ = select.select([self.region.bell_fd], [], [], 0.01)
            if readable:
                os.eventfd_read(self.region.bell_fd)
            self.turn()
            if kill_after_records is not None and len(self.records) >= kill_after_records:
                child.kill()
        self.turn()
        _, errors = child.communicate()
        if child.returncode not in (0, -9):
            raise AssertionError(f"exit code {child.returncode}: {errors.decode()}")
        return child.returncode

    def turn(self) -> None:
        poll = self.region.poll()
        assert poll.state == native.STATE_RUNNING or self.records is not None
        for index, request in self.region.requests():
            self.region.answer(index, self._serve(request))
        self._take()
        if self.evict and self.random.random() < 0.5:
            self._evict()

    def _take(self) -> None:
        while (flush := self.taker.take(0)) is not None:
            found = [record for _, batch in flush.batches for record in iter_records(batches.payload(batch))]
            for _, batch in flush.batches:
                batches.verify(batch)
            found.sort(key=lambda record: record.lsn)
            assert found[-1].lsn == flush.end
            for record in found:
                self.replay.apply(record)
            self.records += found
            self.region.publish(flush.end)

    def _serve(self, request: native.Request) -> int:
        if request.want == native.WANT_GROUP:
            if not self.region.free_extents():
                self.region.add_group(self.groups, GROUP_EXTENTS)
                self.groups += 1
            return 0
        if request.want == native.WANT_EXTENTS:
            return 0
        self._take()
        fd = self.local.get(request.slot, pid=request.pid, fd=request.fd)
        if fd is None:
            return errno.EIO
        file_id = self.region.slot(request.slot).file_id
        pages = [self.replay.pages.get((file_id, request.first + i)) for i in range(request.count)]
        kinds = bytes(page is not None for page in pages)
        return self.region.fill(request.slot, fd, request.first, kinds, b"".join(page for page in pages if page))

    def _evict(self) -> None:
        durable = self.region.base_lsn + self.region.peek().durable
        for slot, chunk in self.region.evictable(self.hand, durable, 4, 64):
            fd = self.local.get(slot)
            if fd is not None:
                ino = self.region.slot(slot).ino
                self.evicted_pages += self.region.evict(slot, chunk, ino, fd, durable)

    def states(self, lsns: Iterable[int]) -> Iterable[tuple[int, dict[str, bytes | None]]]:
        """The tree at each of these LSNs (ascending), from the log alone."""
        replay, records = Replay(), iter(self.records)
        record = next(records, None)
        for lsn in lsns:
            while record is not None and record.lsn <= lsn:
                replay.apply(record)
                record = next(records, None)
            yield lsn, replay.snapshot()
