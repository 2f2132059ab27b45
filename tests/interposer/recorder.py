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
from aurora_ray.log import record
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.log.flush import LogEnd
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import apply_page, iter_records
from aurora_ray.mount.localfiles import LocalFiles
from tests.interposer.model import PAGE_BYTES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from aurora_ray.log.record import Record

VOLUME = UUID(int=7)
GROUP_EXTENTS = 6


class Replay:
    """The tree as the log's records make it, one at a time."""

    def __init__(self) -> None:
        self.table = FileTable()
        self.pages: dict[tuple[int, int], bytearray] = {}

    def apply(self, change: Record) -> None:
        self.table.apply(change)
        match change.type:
            case RecordType.PAGE:
                image = self.pages.setdefault((change.file_id, change.page), bytearray(PAGE_BYTES))
                apply_page(change, image)
            case RecordType.TRUNCATE:
                self._cut(change.file_id, int.from_bytes(change.body, "little"))
            case RecordType.DROP:
                self._cut(change.file_id, 0)

    def _cut(self, file_id: int, size: int) -> None:
        for key in [k for k in self.pages if k[0] == file_id]:
            keep = size - key[1] * PAGE_BYTES
            if keep <= 0:
                del self.pages[key]
            elif keep < PAGE_BYTES:
                self.pages[key][keep:] = bytes(PAGE_BYTES - keep)

    def snapshot(self, below: str = "") -> dict[str, bytes | None]:
        """The tree below a directory ("name/"), by paths from there."""
        prefix = below.encode()
        found: dict[str, bytes | None] = {}
        for entry in self.table.entries():
            if not any(path.startswith(prefix) for path in entry.paths):
                continue
            content: bytes | None = None
            if entry.kind is FileKind.FILE:
                count = -(-entry.size // PAGE_BYTES)
                zero = bytes(PAGE_BYTES)
                content = b"".join(self.pages.get((entry.file_id, page), zero) for page in range(count))[: entry.size]
            for path in entry.paths:
                if path.startswith(prefix):
                    found[path[len(prefix) :].decode()] = content
        found.pop("", None)
        return found


class Recorder:
    """Runs programs under the interposer on an empty mount."""

    def __init__(
        self,
        root: Path,
        *,
        seed: int = 0,
        evict: bool = False,
        files_max: int = 4096,
        ring_bytes: int = 1 << 20,
        preload: str | None = None,
    ) -> None:
        self.preload = Path(preload or native.library_path())
        self.mount = root / "mount"
        self.mount.mkdir()
        self.region = Region(
            page_bytes=PAGE_BYTES,
            base_lsn=0,
            next_file_id=1,
            ring_bytes=ring_bytes,
            bell_bytes=64 << 10,
            files_max=files_max,
            nodes_max=4096,
            volatile_patterns=[("below", "tmp"), ("component", "scratch"), ("exact", "pid"), ("name", "*.log")],
        )
        self.region.add_group(0, GROUP_EXTENTS)
        self.groups = 1
        self.log = LogEnd()
        self.taker = Taker(self.region, volume=VOLUME, epoch=1, end=self.log, flush_bytes_max=200_000)
        self.local = LocalFiles(self.region, self.mount.resolve())
        self.extents: dict[int, array[int]] = {}  # of mounted files, by slot
        self.records: list[Record] = []
        self.replay = Replay()
        self.random = random.Random(seed)
        self.evict = evict
        self.evicted_pages = 0
        self.hand = native.Candidate()
        self.publishes = True
        self.output = b""

    def mounted(self, path: Path, file_id: int, extents: array[int]) -> None:
        """Makes a file that is there one of the volume's, with its extents in these groups."""
        found = path.stat()
        (slot,) = self.region.mount_files([(found.st_ino, file_id, found.st_size, len(extents))])
        self.extents[slot] = extents
        self.replay.apply(record.create(file_id, os.fsencode(path.relative_to(self.mount))))
        self.replay.apply(record.size(file_id, found.st_size))
        for number, group in enumerate(extents):
            self.replay.apply(record.extent(file_id, number, group))

    def slot(self, path: str) -> int:
        """The slot of a file of the mount."""
        slot = self.region.find_slot((self.mount / path).stat().st_ino)
        assert slot is not None
        return slot

    def close(self) -> None:
        self.local.close()
        self.region.close()

    def spawn(self, arguments: list[str], **more: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.region.environment(self.mount.resolve(), self.preload)}
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
        self.output, errors = child.communicate()
        if child.returncode not in (0, -9):
            raise AssertionError(f"exit code {child.returncode}: {errors.decode()}")
        return child.returncode

    def turn(self) -> None:
        poll = self.region.poll()
        assert poll.state == native.STATE_RUNNING or self.records is not None
        for index, request in self.region.requests():
            self.region.answer(index, self.serve_request(request))
        self._take()
        if self.evict and self.random.random() < 0.5:
            self.evict_some()

    def _take(self) -> None:
        while (taken := self.taker.take(0)) is not None:
            flush = taken.flush
            self.log.advance(flush)
            found = [each for batch in flush.batches.values() for each in iter_records(batches.payload(batch))]
            for batch in flush.batches.values():
                batches.verify(batch)
            found.sort(key=lambda each: each.lsn)
            assert found[-1].lsn == flush.end
            for each in found:
                self.replay.apply(each)
            self.records += found
            if self.publishes:
                self.region.publish(flush.end)

    def serve_request(self, request: native.Request) -> int:
        if request.want == native.WANT_GROUP:
            if not self.region.free_extents():
                self.region.add_group(self.groups, GROUP_EXTENTS)
                self.groups += 1
            return 0
        if request.want == native.WANT_EXTENTS:
            self.region.tell_extents(request.slot, request.first, self.extents[request.slot])
            return 0
        self._take()
        fd = self._local_file(request.slot, request.pid, request.fd)
        if fd is None:
            return errno.EIO
        file_id = self.region.slot(request.slot).file_id
        pages = [self.replay.pages.get((file_id, request.first + i)) for i in range(request.count)]
        kinds = bytes(page is not None for page in pages)
        return self.region.fill(request.slot, fd, request.first, kinds, b"".join(page for page in pages if page))

    def _local_file(self, slot: int, pid: int = 0, fd: int = -1) -> int | None:
        found = self.local.get(slot, pid=pid, fd=fd)
        if found is None:
            self.local.search()
            found = self.local.get(slot)
        return found

    def evict_some(self) -> None:
        durable = self.region.base_lsn + self.region.peek().durable
        for slot, chunk in self.region.evictable(self.hand, durable, 4, 64):
            fd = self._local_file(slot)
            if fd is not None:
                ino = self.region.slot(slot).ino
                self.evicted_pages += self.region.evict(slot, chunk, ino, fd, durable)

    def states(self, lsns: Iterable[int]) -> Iterable[tuple[int, dict[str, bytes | None]]]:
        """The tree at each of these LSNs (ascending), from the log alone."""
        replay, records = Replay(), iter(self.records)
        upcoming = next(records, None)
        for lsn in lsns:
            while upcoming is not None and upcoming.lsn <= lsn:
                replay.apply(upcoming)
                upcoming = next(records, None)
            yield lsn, replay.snapshot()
