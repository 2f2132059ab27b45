"""A segment's directory: two RocksDB databases, each as its load asks for, and the three ways of writing to them.

* Foreground: log and metadata, in the directory itself, go through the write-ahead log; `sync()` makes them durable.
  RocksDB's put holds the GIL, `flush_wal` releases it, so a message costs one short write and one sync. The files of
  the write-ahead log are used again and again: a sync is then one request to the disk, since no file grows.
* Background: page versions, in `pages/`, skip the write-ahead log, so that the foreground's syncs do not carry them
  (and where files are recycled, RocksDB writes nothing without the log: hence two databases). `flush_pages` makes them
  durable before the metadata that relies on them is written. A crash in between leaves versions that are correct at
  their LSN and harmless.
* RocksDB takes a manifest that was cut for one that was written so far: it would open without the latest files, while
  others rely on them. So each flush of pages ends with a mark in either database, in a family and thus in a file of its
  own, first in that of the log: if the mark is there, so is what was flushed before. Sound are marks of which the log's
  is not the older one, and metadata that relies on no more than they say.
* The log's values and page images live in blob files: compaction moves keys and small deltas only, log that is
  collected is never copied, and images do not fill the blocks that a search for a page's versions reads.
* To collect garbage, merging moves what is alive in the older half of the image files, whether there is garbage in them
  or not. So it does that only while there is enough (`mind_garbage`): images of pages that nobody changes stay put.
* Page versions are merged in tiers, runs of like size: in levels, every few flushes would rewrite all keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompactionStyle,
    DBCompressionType,
    DBRecoveryMode,
    Env,
    Options,
    WriteBufferManager,
)

from aurora_ray.errors import MalformedError, UnknownVolumeError
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.keys import (
    FOLDED_KEY,
    LOG_FAMILIES,
    LSN_KEY,
    MARK_KEY,
    MARK_VALUE,
    PAGE_FAMILIES,
    content_of,
    guarded,
    lsn_key,
)
from aurora_ray.storage.disk.rocks import Batch, Closed, Cursor, Database, WriteFailedError
from aurora_ray.storage.disk.upgrade import separate_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from aurora_ray.storage.disk.damage import SegmentKey

PAGES: Final = "pages"  # the directory of page versions within a segment's, and their family
_BLOB_BYTES_MIN: Final = 512
_OWN_LOG_BYTES: Final = 128 << 10  # of RocksDB's LOG: a third of it are its settings, which it writes at each start
_MANIFEST_BYTES: Final = 1 << 20  # then it is written anew, without what is no more
_ARENA_BLOCK_BYTES: Final = 32 << 10  # write buffers grow so: most families have little in them
_WAL_BYTES_MAX: Final = 64 << 20
# To be written over again. A file ends with each flush of a family, of which the log's comes every
# `write_buffer_bytes`, and is free when the flush is done.
_WAL_FILES_KEPT: Final = 3
_GARBAGE_SHARE: Final = 0.3  # of the image files, from which on merges collect it
_GARBAGE_SHARE_COLD: Final = 0.1  # ... where nobody writes any more
_COLLECTED_SHARE: Final = 0.5  # of the image files, the oldest: what is alive there moves
_COLLECT_ALL: Final = {"enable_blob_garbage_collection": "true", "blob_garbage_collection_age_cutoff": "1.0"}
_COLLECT_NONE: Final = {
    "enable_blob_garbage_collection": "false",
    "blob_garbage_collection_age_cutoff": str(_COLLECTED_SHARE),
}
_PAGE_BYTES_PER_S: Final = 64 << 20  # written by flushes, which go first, and merges: the log's syncs need the disk
_GROWN_SHARE: Final = 0.3  # since the last compaction: another one is due ...
_GROWN_BYTES: Final = 4 << 20  # ... and not for less than this
_BEHIND_SHARE: Final = 2.0  # since the last compaction: the next layer waits for the one that runs ...
_BEHIND_BYTES: Final = 64 << 20  # ... and not for less than this
_RUNS_BEFORE_MERGING: Final = 10  # with few, each small flush would be merged with the newest run, whatever its size


class NodeMemory(NamedTuple):
    """What all stores of a node share."""

    cache: Cache  # blocks and blobs that were read
    buffers: WriteBufferManager


def lower_background_priority() -> None:
    """Has RocksDB's merges, in this process, take the CPU when nobody else wants it."""
    Env().lower_thread_pool_cpu_priority()


class SegmentStore:
    """An open segment directory. Not thread-safe beyond what its docstrings say."""

    def __init__(
        self, path: Path, *, write_buffer_bytes: int, memory: NodeMemory | None = None, owner: SegmentKey = (b"", 0)
    ) -> None:
        self.path, self.write_buffer_bytes = path, write_buffer_bytes
        self._memory, self._owner = memory, owner
        families = {name: _family_options(name, write_buffer_bytes, memory) for name in (*LOG_FAMILIES, *PAGE_FAMILIES)}
        separate_pages(path, path / PAGES, lambda: _db_options(memory), families, owner)
        effects.make_directory(path / PAGES)
        # Pages first: what is in the log has been there later, so a crash while both are made leaves nothing that lacks
        # the other.
        options = _db_options(memory)
        options.set_ratelimiter(_PAGE_BYTES_PER_S, 100_000, 10)
        self._pages = Database(path / PAGES, options, {name: families[name] for name in PAGE_FAMILIES}, owner)
        try:
            self._open_log()
        except BaseException:
            self._pages.close()
            raise
        self._collecting = False  # garbage of image files
        self._unflushed_bytes = 0  # of page versions
        self.cleared_bytes = 0  # of page versions that were deleted and may be in files still, as far as is known
        self.compacted_bytes = self.page_bytes  # that the last compaction left, or that were found
        self.put_log = self._log.families["log"].put  # bound once: the hot path
        self.sync = self._log.sync  # sync(True)

    def _open_log(self) -> None:
        options = _db_options(self._memory)
        options.set_recycle_log_file_num(_WAL_FILES_KEPT)
        families = {name: _family_options(name, self.write_buffer_bytes, self._memory) for name in LOG_FAMILIES}
        self._log = Database(self.path, options, families, self._owner)
        self._databases = {
            **dict.fromkeys(("default", *LOG_FAMILIES), self._log),
            **dict.fromkeys(PAGE_FAMILIES, self._pages),
        }
        self.put_log = self._log.families["log"].put  # bound once: the hot path
        self.sync = self._log.sync  # sync(True)

    @property
    def owner(self) -> SegmentKey:
        """For errors."""
        return self._owner

    @owner.setter
    def owner(self, owner: SegmentKey) -> None:
        self._owner = self._log.owner = self._pages.owner = owner

    def close(self) -> None:
        """Closes both databases and all cursors; later use raises. The directory can be opened again at once."""
        self.put_log = self.sync = Closed()
        self._log.close()
        self._pages.close()

    @property
    def has_files(self) -> bool:
        """Whether the directory is still there. RocksDB itself would go on with the files that it has open."""
        # Always there: it is replaced by renaming.
        return all((database.path / "CURRENT").exists() for database in (self._log, self._pages))

    # ---- reading

    def get(self, key: bytes) -> bytes | None:
        """A value of the default family. Raises DamagedError."""
        return self._log.get("default", key)

    def scan(self, family: str, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Entries of a family with start <= key < stop, as of now."""
        return self._databases[family].scan(family, start, stop)

    def cursor(self, family: str) -> Cursor:
        """An iterator over a family as of now, which `close` can take away. Raises UnknownVolumeError if it has."""
        return self._databases[family].cursor(family)

    def log_batches(self, after_lsn: int, up_to_lsn: int) -> Iterator[bytes]:
        """Stored batches with flush_end in (after_lsn, up_to_lsn], ascending, as of now."""
        for _, batch in self.log_entries(after_lsn, up_to_lsn):
            yield batch

    def log_entries(self, after_lsn: int, up_to_lsn: int) -> Iterator[tuple[int, bytes]]:
        """As `log_batches`, with the flush_end that each is stored under, whatever its bytes say."""
        stop = lsn_key(up_to_lsn)
        cursor = self.cursor("log")
        cursor.it.seek(lsn_key(after_lsn + 1))
        while cursor.it.valid():
            key = cursor.it.key()
            if key > stop:
                return
            yield LSN_KEY.unpack(key)[0], cursor.it.value()
            cursor.it.next()
        cursor.check()

    def table_before(self, lsn: int) -> tuple[bytes, bytes] | None:
        """Key and value of the newest file table at or before `lsn`."""
        cursor = self.cursor("tables")
        cursor.it.seek_for_prev(lsn_key(lsn))
        if not cursor.it.valid():
            cursor.check()
            return None
        return cursor.it.key(), cursor.it.value()

    # ---- writing

    def batch(self) -> Batch:
        """An atomic set of changes to log and metadata, to be written through the write-ahead log."""
        return self._log.batch()

    def page_batch(self) -> Batch:
        """An atomic set of changes to page versions, to be written without."""
        return self._pages.batch()

    def append_log(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Stores batches by their keys, durably. Raises WriteFailedError. (The hot path does this by itself.)"""
        try:
            for key, batch in entries:
                self.put_log(key, batch)
            self.sync(True)
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self.owner, error) from error

    async def sync_log(self) -> None:
        """Makes what was written to log and metadata durable, without the event loop. Raises as `flush_pages`."""
        try:
            await asyncio.to_thread(self.sync, True)
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self.owner, error) from error

    async def write_pages(self, changes: Batch) -> None:
        """Applies changes to page versions, not yet durable. Raises as `flush_pages`.

        Of its own accord, RocksDB would make us wait in the event loop when too many buffers are to be flushed.
        """
        self._unflushed_bytes += changes.nbytes
        changes.write_without_log()
        if self._unflushed_bytes >= self.write_buffer_bytes:
            await self.flush_pages()

    async def flush_pages(self, lsn: int | None = None) -> None:
        """Makes page versions written so far durable; with `lsn`, notes that they are all that there are up to it.

        Raises WriteFailedError, UnknownVolumeError.
        """
        self._unflushed_bytes = 0
        await self._pages.flush("pages")
        if lsn is None:
            return
        assert lsn >= self.flushed_lsn()  # noqa: S101 - older than what is noted: files would seem to be missing
        mark = guarded(MARK_KEY, MARK_VALUE.pack(lsn))
        changes = self.batch()
        changes.put("marks", MARK_KEY, mark)
        changes.write()
        # With the little that other families have: it would keep files of the write-ahead log from being used again.
        await self._log.flush("default", "tables", "marks")
        changes = self.page_batch()
        changes.put("page-marks", MARK_KEY, mark)
        changes.write_without_log()
        await self._pages.flush("page-marks")

    def flushed_lsn(self) -> int:
        """What the last `flush_pages` noted; 0 if none did. Raises DamagedError, MalformedError."""
        of_log, of_pages = (
            int(MARK_VALUE.unpack(content_of(MARK_KEY, value))[0]) if value is not None else 0
            for value in (self._log.get("marks", MARK_KEY), self._pages.get("page-marks", MARK_KEY))
        )
        if of_log < of_pages:
            raise MalformedError(f"the log has forgotten that pages are there up to {of_pages}, not {of_log}")
        return of_pages

    async def mark_back(self, lsn: int) -> None:
        """Notes that page versions are there up to `lsn` only, in a copy that was cut. Raises as `flush_pages`."""
        mark = guarded(MARK_KEY, MARK_VALUE.pack(lsn))
        changes = self.page_batch()
        changes.put("page-marks", MARK_KEY, mark)
        changes.write_without_log()
        await self._pages.flush("page-marks")
        changes = self.batch()
        changes.put("marks", MARK_KEY, mark)
        changes.write_synced()

    def folded_lsn(self) -> int:
        """The end of the last layer when all page versions had been folded the last time; 0 if never. Raises
        DamagedError.
        """
        value = self.get(FOLDED_KEY)
        try:
            return 0 if value is None else int(MARK_VALUE.unpack(content_of(FOLDED_KEY, value))[0])
        except MalformedError:
            return 0  # as good as none

    async def flush_all(self) -> None:
        """Writes all that is in memory to files. Raises as `flush_pages`."""
        await self._pages.flush()
        await self._log.flush()

    def mind_garbage(self) -> None:
        """Lets merges of page versions collect garbage from the image files, or not. To be called now and then."""
        pages = self._pages.families[PAGES]
        held = pages.property_int_value("rocksdb.live-blob-file-size") or 0
        garbage = pages.property_int_value("rocksdb.live-blob-file-garbage-size") or 0
        due = garbage > _GARBAGE_SHARE * held
        if due != self._collecting:
            self._collecting = due
            pages.set_options({"enable_blob_garbage_collection": str(due).lower()})

    @property
    def buffered_bytes(self) -> int:
        """In RocksDB's write buffers."""
        return self._log.buffered_bytes + self._pages.buffered_bytes

    @property
    def log_bytes(self) -> int:
        """On disk, of log and of RocksDB's write-ahead log."""
        total = 0
        with contextlib.suppress(FileNotFoundError):  # somebody removed the directory: who looks for that will tell
            for entry in os.scandir(self.path):
                if entry.name.endswith((".log", ".blob", ".sst")):
                    with contextlib.suppress(FileNotFoundError):  # RocksDB deletes files while we look
                        total += entry.stat().st_blocks * 512
        return total

    async def compact_log(self) -> None:
        """Has collected log leave the disk, as far as it lies in files of its own. Raises as `flush_pages`."""
        await self._log.flush()
        await self._log.compact("log")

    def reopen_log(self) -> None:
        """Lets go of the files that the write-ahead log keeps to be written over again; does nothing while anybody
        reads log. Takes tens of milliseconds. Raises WriteFailedError.
        """
        if self._log.is_read:
            return
        self.put_log = self.sync = Closed()
        self._log.close()
        try:
            self._open_log()
        except Exception as error:
            raise WriteFailedError(self.owner, error) from error

    @property
    def page_bytes(self) -> int:
        """In the files of page versions, garbage included."""
        pages = self._pages.families[PAGES]
        return sum(pages.property_int_value(f"rocksdb.live-{kind}-size") or 0 for kind in ("sst-files", "blob-file"))

    @property
    def compaction_due(self) -> bool:
        """Whether so much was written or cleared since the last compaction that another one pays."""
        held = self.page_bytes
        grown = held - self.compacted_bytes
        return max(grown, self.cleared_bytes) > _GROWN_SHARE * self.compacted_bytes + _GROWN_BYTES

    @property
    def compaction_behind(self) -> bool:
        """Whether so much was written since the last compaction that no more should be before the next one."""
        return self.page_bytes - self.compacted_bytes > _BEHIND_SHARE * self.compacted_bytes + _BEHIND_BYTES

    async def compact_pages(self, *, thorough: bool = False) -> None:
        """Merges all page versions, so that what is deleted leaves the disk; `thorough`: also where it is little.

        Runs beside everything else. Moves what is alive in image files only if enough in them is not.
        Raises as `flush_pages`.
        """
        await self.flush_pages()
        self.cleared_bytes = 0
        await self._pages.compact(PAGES)
        pages = self._pages.families[PAGES]
        held = pages.property_int_value("rocksdb.live-blob-file-size") or 0
        garbage = pages.property_int_value("rocksdb.live-blob-file-garbage-size") or 0
        if garbage > (_GARBAGE_SHARE_COLD if thorough else _GARBAGE_SHARE) * held:
            pages.set_options(_COLLECT_ALL)
            try:
                await self._pages.compact(PAGES)
            finally:
                self._collecting = False
                self._pages.families[PAGES].set_options(_COLLECT_NONE)
        self.compacted_bytes = self.page_bytes

    def checkpoint(self, path: Path) -> None:
        """A copy by hard links, each database of one moment. Raises DamagedError if a file is gone, ReadFailedError."""
        self._log.checkpoint(path)
        self._pages.checkpoint(path / PAGES)


def _db_options(memory: NodeMemory | None) -> Options:
    options = _family_options("default", 1 << 20, memory)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_max_total_wal_size(_WAL_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(1)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_bytes_per_sync(1 << 20)
    options.set_max_log_file_size(_OWN_LOG_BYTES)
    options.set_max_manifest_file_size(_MANIFEST_BYTES)
    if memory is not None:
        options.set_write_buffer_manager(memory.buffers)
    return options


def _family_options(name: str, write_buffer_bytes: int, memory: NodeMemory | None) -> Options:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_arena_block_size(_ARENA_BLOCK_BYTES)
    options.set_max_write_buffer_number(3)
    # Writes shall not wait for merges, in the event loop: `compact_pages` sees to it that runs do not pile up.
    options.set_level_zero_slowdown_writes_trigger(1 << 20)
    options.set_level_zero_stop_writes_trigger(1 << 20)
    options.set_compression_type(DBCompressionType.lz4() if name == PAGES else DBCompressionType.none())
    if name in ("log", PAGES):
        options.set_enable_blob_files(True)
        options.set_min_blob_size(_BLOB_BYTES_MIN)
    if name == PAGES:
        options.set_blob_compression_type(DBCompressionType.lz4())
        options.set_blob_gc_age_cutoff(_COLLECTED_SHARE)
        options.set_compaction_style(DBCompactionStyle.universal())
        options.set_level_zero_file_num_compaction_trigger(_RUNS_BEFORE_MERGING)
    table = BlockBasedOptions()
    if memory is not None:
        table.set_block_cache(memory.cache)
    options.set_block_based_table_factory(table)
    return options
