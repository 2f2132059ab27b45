"""The backup of one volume, as it goes on: follows the durable log of the storage nodes and puts it into the bucket.

The writer knows nothing of it. What waits here is bounded (a chunk, and what `Follower` holds); the log that the nodes
keep for it is bounded, too: while it is less than `held_bytes_max` behind, a lease holds what it has not put yet; if
it falls back further, the nodes may let go of it. Where log is gone, a stretch is missing for good: then the backup
goes on from the present, with an image of that.

Order of things, whatever breaks: a chunk or an image is in the bucket, then a manifest that names it, then more of the
log is let go. Whoever begins puts a manifest of its own first (`store.claim`), so of two that run, one ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from aurora_ray.backup import chunks, manifest
from aurora_ray.backup.collect import collect
from aurora_ray.backup.ended import end, remove_over
from aurora_ray.backup.images import Imaging, read_index, read_log
from aurora_ray.backup.manifest import CataloguePage, Chunk, Manifest, Subject, span_name
from aurora_ray.backup.store import Store, claim, new_owner
from aurora_ray.errors import AuroraError, OutOfRangeError
from aurora_ray.log.flush import Flush
from aurora_ray.replication.seeding import reader_at
from aurora_ray.replication.sides import RegionalVolume
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.read.reader import AsOf, VolumeReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aurora_ray.backup.chunks import LogIndex
    from aurora_ray.backup.images import Index
    from aurora_ray.volume.read.lease import ReadLease
    from aurora_ray.volume.spec import NodeAddress, VolumeSpec

T = TypeVar("T")

OPEN_TIMEOUT_S: Final = 60.0
RETRY_S: Final = (0.2, 10.0)
LEASE_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """When what is put. All of it can be small in tests."""

    chunk_bytes: int = 4 << 20
    chunk_s: float = 2.0  # so long log waits for more of it
    image_log_bytes: tuple[int, int] = (256 << 20, 1 << 30)  # an image is due after half its size of log, within these
    held_bytes_max: int = 8 << 30  # of log that the nodes keep for us
    collect_every_s: float = 60.0
    remove_every_s: float = 3600.0  # other backups of the fleet whose time is over
    chunks_max: int = manifest.CHUNKS_MAX


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """As of now. `lsn`: all up to there is in the bucket and named; `source_lsn`: known to be durable; `time_us`: when
    the last flush that is backed up was written; `restorable_lsn`: from where on a restore is possible (0: not yet)."""

    lsn: int = 0
    source_lsn: int = 0
    time_us: int = 0
    lag_s: float = 0.0
    restorable_lsn: int = 0
    image_lsn: int = 0
    imaging: str = ""
    log_bytes: int = 0
    put_bytes: int = 0
    chunk_count: int = 0
    image_count: int = 0
    collected_count: int = 0
    trouble: str = ""


@dataclass
class BackupStream:
    """One opening of the backup for writing. `run` returns only by an error; then make another one."""

    spec: VolumeSpec
    nodes: tuple[NodeAddress, ...]
    store: Store
    subject: Subject
    retention_s: int
    az: str | None = None
    former: tuple[tuple[str, float], ...] = ()  # volumes that the cluster had before rewinds, and until when
    rules: Rules = field(default_factory=Rules)
    owner: str = field(default_factory=new_owner)
    trouble: str = ""
    log_bytes: int = 0
    put_bytes: int = 0
    collected_count: int = 0
    _manifest: Manifest | None = None
    _follower: Follower | None = None
    _reader: VolumeReader | None = None
    _imaging: Imaging | None = None
    _lease: ReadLease | None = None
    _since_image_bytes: int = 0
    _waits_since_s: float | None = None  # since when something durable is not in the bucket
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # manifests are put one after the other
    _from_lsn: int = 0  # where this following began
    _last_lsn: int = 0  # of the last flush that was put; its epoch and time
    _last_stamp: tuple[int, int] = (0, 0)
    _removed_s: float = -math.inf

    async def run(self) -> None:
        """Raises FencedError when somebody else writes this backup, or what lasts: ConfigurationError for another key,
        DivergedError. Whatever passes (nodes, the object store) is waited for."""
        begun = Manifest(
            1,
            self.owner,
            str(self.spec.volume_id),
            self.subject,
            self.retention_s,
            groups=tuple(each.group for each in self.spec.groups),
            begun_s=time.time(),
            written_s=time.time(),
        )
        self._manifest = await self._insist(lambda: claim(self.store, begun))
        gap = False
        while True:
            try:
                await self._follow(gap=gap)
            except OutOfRangeError as error:
                _log.warning("the backup of %s lacks a stretch: %s", self.spec.volume_id, error)
                self.trouble, gap = f"a stretch of history is missing: {error}", True

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in where the nodes answer now."""
        self.nodes = tuple(nodes)
        if self._follower is not None:
            await self._follower.update_nodes(self.nodes)
        if self._reader is not None:
            await self._reader.update_nodes(self.nodes)

    def status(self) -> StreamStatus:
        """As of now."""
        now, follower, imaging = self._manifest, self._follower, self._imaging
        if now is None:
            return StreamStatus(trouble=self.trouble)
        ranges = now.ranges()
        source_lsn = max(now.end_lsn, follower.durable.lsn if follower is not None else 0)
        waits = self._waits_since_s if source_lsn > now.end_lsn else None
        return StreamStatus(
            lsn=now.end_lsn,
            source_lsn=source_lsn,
            time_us=now.end_us,
            lag_s=time.monotonic() - waits if waits is not None else 0.0,
            restorable_lsn=ranges[0][0] if ranges else 0,
            image_lsn=now.images[-1].lsn if now.images else 0,
            imaging=f"{imaging.extents_done} of {imaging.extents_total} extents" if imaging is not None else "",
            log_bytes=self.log_bytes,
            put_bytes=self.put_bytes,
            chunk_count=len(now.chunks) + sum(page.count for page in now.pages),
            image_count=len(now.images),
            collected_count=self.collected_count,
            trouble=self.trouble,
        )

    # ---- following

    async def _follow(self, *, gap: bool) -> None:
        async with AsyncExitStack() as cleanup:
            cleanup.callback(self._forget)
            after_lsn = 0 if gap else self._now.end_lsn
            side = RegionalVolume(self.spec, self.nodes, az=self.az)
            reader = self._reader = await self._insist(lambda: reader_at(side, self.spec, after_lsn))
            cleanup.push_async_callback(reader.close)
            self._from_lsn = after_lsn = after_lsn or reader.read_lsn
            self._lease = await reader.hold(self._holder(), lsn=after_lsn, lease_s=LEASE_S)
            cleanup.push_async_callback(self._end_lease)
            follower = self._follower = Follower.open(reader.spec, self.nodes, after_lsn=after_lsn, az=self.az)
            cleanup.push_async_callback(follower.close)
            whole = self._now.images and not gap
            self._since_image_bytes = after_lsn - self._now.images[-1].lsn if whole else self.rules.image_log_bytes[1]
            tasks = [
                asyncio.create_task(self._put_log(reader, follower, gap=gap), name="back up log"),
                asyncio.create_task(self._keep_house(reader), name="images and garbage of a backup"),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()

    @property
    def _now(self) -> Manifest:
        assert self._manifest is not None, "it is claimed"  # noqa: S101
        return self._manifest

    def _holder(self) -> str:
        return f"backup {self.owner} {uuid4().hex}"

    def _forget(self) -> None:
        self._follower = self._reader = self._imaging = None

    async def _put_log(self, reader: VolumeReader, follower: Follower, *, gap: bool) -> None:
        """Chunks, one after the other, until the log ends."""
        flushes, nbytes, due_s = list[Flush](), 0, 0.0
        coming: asyncio.Task[Flush] | None = None
        try:
            while True:
                coming = coming or asyncio.create_task(_next(follower), name="next flush to back up")
                left_s = max(0.0, due_s - time.monotonic()) if flushes else None
                done, _ = await asyncio.wait((coming,), timeout=left_s)
                if done:
                    if coming.exception() is not None and flushes:  # what came before it ended is not lost
                        await self._insist_put(reader, flushes, nbytes, gap=gap)
                    flush, coming = coming.result(), None
                    if not flushes:
                        due_s = time.monotonic() + self.rules.chunk_s
                        self._waits_since_s = self._waits_since_s or time.monotonic()
                    flushes.append(flush)
                    nbytes += flush.nbytes
                if flushes and (nbytes >= self.rules.chunk_bytes or time.monotonic() >= due_s):
                    await self._insist_put(reader, flushes, nbytes, gap=gap)
                    end, flushes, nbytes, gap = flushes[-1].end, [], 0, False
                    await self._move_lease(follower, end)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _insist_put(self, reader: VolumeReader, flushes: list[Flush], nbytes: int, *, gap: bool) -> None:
        # An image may be made of what the manifest says, so the reader comes first.
        reader.advance(max(flushes[-1].end, reader.read_lsn), {g: f.end for f in flushes for g in f.groups})
        start, end = flushes[0].start, flushes[-1].end
        stamps = [chunks.stamp(flush) for flush in flushes]
        content = await asyncio.to_thread(chunks.pack, flushes)
        name = span_name("log", start, end, self.owner)
        stored = await self._insist(lambda: self.store.put(name, content))
        times = [time_us for _, time_us in stamps]
        chunk = Chunk(start, end, stamps[-1][0], min(times), max(times), stored, name)
        async with self._lock:
            wanted = self._now.with_chunk(chunk, gap=gap)
            if len(wanted.chunks) > self.rules.chunks_max:
                wanted = await self._paged(wanted)
            groups = {group for flush in flushes for group in flush.groups}
            await self._put_manifest(wanted, groups=tuple(sorted({*wanted.groups, *groups})))
        self._waits_since_s = None
        self._last_lsn, self._last_stamp = end, stamps[-1]
        self.log_bytes += nbytes
        self.put_bytes += stored
        self._since_image_bytes += end - start

    async def _paged(self, full: Manifest) -> Manifest:
        """The older half of the chunks as a page of the catalogue, which ends at a gap if there is one."""
        count, some = len(full.chunks) // 2, list[Chunk]()
        for chunk in full.chunks[:count]:
            if some and chunk.start != some[-1].end:
                break
            some.append(chunk)
        first, last = some[0], some[-1]
        name = span_name("pages", first.start, last.end, self.owner)
        await self._insist(lambda: self.store.put(name, manifest.pack_chunks(some)))
        times = min(c.first_us for c in some), max(c.last_us for c in some)
        page = CataloguePage(first.start, last.end, *times, len(some), sum(c.nbytes for c in some), name)
        return replace(full, pages=(*full.pages, page), chunks=full.chunks[len(some) :])

    async def _put_manifest(self, wanted: Manifest, **changes: Any) -> None:
        """Also says what the cluster is by now. Called with the lock."""
        following = wanted.next(
            self.owner, written_s=time.time(), subject=self.subject, retention_s=self.retention_s, **changes
        )
        await self._insist(lambda: self.store.put_manifest(following))
        self._manifest = following

    # ---- leases

    async def _move_lease(self, follower: Follower, lsn: int) -> None:
        behind = follower.durable.lsn - lsn
        if self._lease is not None:
            self._lease.move(lsn)
        elif behind < self.rules.held_bytes_max // 2 and self._reader is not None:
            self._lease = await self._reader.hold(self._holder(), lsn=lsn, lease_s=LEASE_S)
            self.trouble = ""

    async def _end_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.release()

    # ---- images and garbage

    async def _keep_house(self, reader: VolumeReader) -> None:
        collect_s, failures = time.monotonic() + self.rules.collect_every_s, 0
        while True:
            await asyncio.sleep(min(1.0, self.rules.collect_every_s))
            if self._follower is not None:
                await self._watch_lease(self._follower)
            try:
                await self._tell_subject()
                if self._image_is_due():
                    await self._make_image(reader)
                if time.monotonic() >= collect_s:
                    collect_s = time.monotonic() + self.rules.collect_every_s
                    await self._expire()
                    await self._remove_over()
                failures = 0
            except AuroraError as error:
                # History that is gone where an image was to be made is there for one of a later LSN.
                if not error.retryable and not isinstance(error, OutOfRangeError):
                    raise
                failures += 1
                self.trouble = str(error)
                await asyncio.sleep(min(RETRY_S[1], RETRY_S[0] * 2**failures))

    async def _tell_subject(self) -> None:
        """The cluster has other parameters, another size, another mark."""
        async with self._lock:
            if self._now.subject != self.subject or self._now.retention_s != self.retention_s:
                await self._put_manifest(self._now)

    async def _watch_lease(self, follower: Follower) -> None:
        """Whoever is too far behind holds nothing."""
        behind = follower.durable.lsn - max(self._now.end_lsn, self._from_lsn)
        if self._lease is not None and behind > self.rules.held_bytes_max:
            await self._end_lease()
            self.trouble = f"it is {behind >> 20} MiB behind: the nodes are not asked any more to keep that"

    def _image_is_due(self) -> bool:
        least, most = self.rules.image_log_bytes
        size = self._now.images[-1].nbytes // 2 if self._now.images else 0
        return self._since_image_bytes >= min(most, max(least, size))

    async def _make_image(self, reader: VolumeReader) -> None:
        """Of what is backed up now, or of where the log begins if nothing is."""
        now = self._now
        lsn = max(self._from_lsn, now.end_lsn)
        if not lsn:
            return
        await reader.refresh()  # the volume may have grown
        lease = await reader.hold(self._holder(), lsn=lsn, lease_s=LEASE_S)
        try:
            before, log = await self._before(now, lsn)
            stamp = await self._stamp(lsn)
            imaging = self._imaging = Imaging(self.store, self.owner, _At(reader, lsn), lsn, before)
            image = await imaging.make(log, stamp)
            self.put_bytes += imaging.put_bytes
        finally:
            self._imaging = None
            await lease.release()
        async with self._lock:
            await self._put_manifest(self._now.with_image(image))
        self._since_image_bytes = max(0, self._now.end_lsn - lsn)
        self.trouble = ""

    async def _before(self, now: Manifest, lsn: int) -> tuple[Index | None, LogIndex | None]:
        """The last image, and the log that leads from there to `lsn`, if it does: both are read back."""
        last = now.images[-1] if now.images else None
        if last is None or not any(first <= last.lsn and lsn <= end for first, end in now.ranges()):
            return None, None
        return await read_index(self.store, last), await read_log(self.store, now, last.lsn, lsn)

    async def _stamp(self, lsn: int) -> tuple[int, int]:
        """Epoch and time of the flush that ends there; where that is gone already, it was the last one until now."""
        if lsn == self._last_lsn:
            return self._last_stamp
        try:
            async with (
                asyncio.timeout(OPEN_TIMEOUT_S),
                Follower.open(self.spec, self.nodes, after_lsn=lsn - 1, az=self.az) as follower,
            ):
                return chunks.stamp(await anext(follower))
        except OutOfRangeError:
            return self._now.epoch, int(time.time() * 1e6)

    async def _expire(self) -> None:
        """Names no longer what is past retention, and collects what nobody names."""
        async with self._lock:
            kept = self._now.expired(int((time.time() - self.retention_s) * 1e6))
            if kept != self._now:
                await self._put_manifest(kept)
            self.collected_count += len(await collect(self.store, self._now))

    async def _remove_over(self) -> None:
        """Says of the cluster's former volumes that nobody writes them any more, and removes what is over."""
        if time.monotonic() - self._removed_s < self.rules.remove_every_s:
            return
        self._removed_s = time.monotonic()
        for volume, until_s in self.former:
            try:
                await end(self.store.beside(volume), until_s, manifest.RETENTION_MAX_S)
            except AuroraError as error:
                _log.info("the backup of %s is not noted to have ended: %s", volume, error)
        removed = await remove_over(await self.store.neighbours())
        self.collected_count += len(removed)
        for place in removed:
            _log.info("the backup in %s has ended, and its time is over: it was removed", place)

    async def _insist(self, what: Callable[[], Awaitable[T]]) -> T:
        """Tries again for as long as that can help."""
        pause_s = RETRY_S[0]
        while True:
            try:
                return await what()
            except AuroraError as error:
                if not error.retryable:
                    raise
                self.trouble = str(error)
                _log.info("the backup of %s waits: %s", self.spec.volume_id, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S[1])


class _At(AsOf):
    """A reader as of an earlier LSN than it has come to."""

    def __init__(self, reader: VolumeReader, lsn: int) -> None:
        super().__init__(reader)
        self.read_lsn = lsn


async def _next(follower: Follower) -> Flush:
    return await anext(follower)
