"""One RocksDB directory: options, column families, and the three ways of writing to it.

* Foreground: log and metadata go through the write-ahead log; `sync()` makes them durable. RocksDB's put holds the GIL,
  `flush_wal` releases it, so a message costs one short write and one sync.
* Background: page versions skip the write-ahead log, so that the foreground's syncs do not carry them; `flush_pages`
  makes them durable before the metadata that relies on them is written. A crash in between leaves versions that are
  correct at their LSN and harmless.
* RocksDB takes a manifest that was cut for one that was written so far: it would open without the latest files, while
  the metadata, which may be in the write-ahead log, relies on them. So each flush of pages ends with a mark, in a
  family and thus in a file of its own: if the mark is there, so is what was flushed before.
* The log's values and page images live in blob files: compaction moves keys and small deltas only, log that is
  collected is never copied, and images do not fill the blocks that a search for a page's versions reads.
* To collect garbage, merging moves what is alive in the older half of the image files, whether there is garbage in them
  or not. So it does that only while there is enough (`mind_garbage`): images of pages that nobody changes stay put.
* Page versions are merged in tiers, runs of like size: in levels, every few flushes would rewrite all keys.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompactionStyle,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from aurora_ray.errors import DiskFullError, UnknownVolumeError
from aurora_ray.storage.damage import STORE, DamagedError, is_corruption
from aurora_ray.storage.keys import FAMILIES, LSN_KEY, MARK_KEY, MARK_VALUE, content_of, guarded, lsn_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rocksdict import RdictIter

    from aurora_ray.storage.damage import SegmentKey

_log = logging.getLogger(__name__)

_GONE: Final = "the segment was replaced or dropped in the middle: ask again"
_BLOB_BYTES_MIN: Final = 512
_WAL_BYTES_MAX: Final = 64 << 20
_GARBAGE_SHARE: Final = 0.3  # of the image files, from which on merges collect it
_COLLECTED_SHARE: Final = 0.5  # of the image files, the oldest: what is alive there moves
_RUNS_BEFORE_MERGING: Final = 10  # with few, each small flush would be merged with the newest run, whatever its size


class SegmentStore:
    """An open segment directory. Not thread-safe beyond what its docstrings say."""

    def __init__(
        self, path: Path, *, write_buffer_bytes: int, cache: Cache | None = None, owner: SegmentKey = (b"", 0)
    ) -> None:
        self.path = path
        self.owner = owner  # for errors
        path.mkdir(parents=True, exist_ok=True)
        families = {name: _family_options(name, write_buffer_bytes, cache) for name in FAMILIES[1:]}
        self._db: Any = Rdict(str(path), _db_options(cache), column_families=families)
        self._log = self._db.get_column_family("log")
        self._pages = self._db.get_column_family("pages")
        self._tables = self._db.get_column_family("tables")
        self._marks = self._db.get_column_family("marks")
        self._handles = {name: self._db.get_column_family_handle(name) for name in FAMILIES}
        self._families = {
            "default": self._db,
            "log": self._log,
            "pages": self._pages,
            "tables": self._tables,
            "marks": self._marks,
        }
        self._closed = False
        self._collecting = False  # garbage of image files
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._no_wal = WriteOptions()
        self._no_wal.disable_wal = True
        self.put_log = self._log.put  # bound once: the hot path
        self.sync = self._db.flush_wal  # sync(True)

    def close(self) -> None:
        """Closes every family and cursor; later use raises. The directory can be opened again at once."""
        if self._closed:
            return
        self._closed = True
        for cursor in tuple(self._cursors):
            cursor.it = _Closed()
        self._handles.clear()
        for family in (self._log, self._pages, self._tables, self._marks, self._db):
            try:
                family.close()
            except Exception as error:  # it flushes first, which fails on a full disk; what matters is synced already
                _log.debug("closing %s: %s", self.path, error)
        # One that did not close ends with the last reference to it. Errors raised around it keep some, in cycles of
        # tracebacks and frames. Until it has ended it holds the lock, and may remove files by name.
        closed = _Closed()
        self._log = self._pages = self._tables = self._marks = self._db = closed
        self._families = dict.fromkeys(self._families, closed)
        self.put_log = self.sync = closed
        if held_open(self.path):
            gc.collect()

    @property
    def has_files(self) -> bool:
        """Whether the directory is still there. RocksDB itself would go on with the files that it has open."""
        return (self.path / "CURRENT").exists()  # always there, it is replaced by renaming

    # ---- default family

    def get(self, key: bytes) -> bytes | None:
        """A value of the default family."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self.damaged(error) from error
        return value

    def scan(self, family: str, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Entries of a family with start <= key < stop, as of now."""
        cursor = self.cursor(family)
        cursor.it.seek(start)
        while cursor.it.valid():
            key = cursor.it.key()
            if stop is not None and key >= stop:
                return
            yield key, cursor.it.value()
            cursor.it.next()
        cursor.check()

    def cursor(self, family: str) -> Cursor:
        """An iterator over a family as of now, which `close` can take away. Raises UnknownVolumeError if it has."""
        cursor = Cursor(self._families[family].iter(), self)
        self._cursors.add(cursor)
        return cursor

    def damaged(self, error: Exception) -> Exception:
        """What to raise for an error of RocksDB: DamagedError if its files are damaged, else the error itself."""
        return DamagedError(self.owner, STORE, str(error)) if is_corruption(error) else error

    # ---- writing

    def batch(self) -> StoreBatch:
        """An atomic set of changes."""
        return StoreBatch(self._db, self._handles, self._no_wal, self.owner)

    def append_log(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Stores batches by their keys, durably. Raises WriteFailedError. (The hot path does this by itself.)"""
        try:
            for key, batch in entries:
                self.put_log(key, batch)
            self.sync(True)
        except Exception as error:
            raise WriteFailedError(self.owner, error) from error

    async def flush_pages(self, lsn: int | None = None) -> None:
        """Makes page versions written so far durable; with `lsn`, notes that they are all that there are up to it.

        Raises WriteFailedError, UnknownVolumeError.
        """
        await self._flush(self._pages)
        if lsn is not None:
            changes = self.batch()
            changes.put("marks", MARK_KEY, guarded(MARK_KEY, MARK_VALUE.pack(lsn)))
            changes.write_without_log()
            await self._flush(self._marks)

    def mind_garbage(self) -> None:
        """Lets merges of page versions collect garbage from the image files, or not. To be called now and then."""
        held = self._pages.property_int_value("rocksdb.live-blob-file-size") or 0
        garbage = self._pages.property_int_value("rocksdb.live-blob-file-garbage-size") or 0
        due = garbage > _GARBAGE_SHARE * held
        if due != self._collecting:
            self._collecting = due
            self._pages.set_options({"enable_blob_garbage_collection": str(due).lower()})

    @property
    def flushed_lsn(self) -> int:
        """What the last `flush_pages` noted; 0 if none did. Raises DamagedError, MalformedError."""
        try:
            value = self._marks.get(MARK_KEY)
        except Exception as error:
            raise self.damaged(error) from error
        return int(MARK_VALUE.unpack(content_of(MARK_KEY, value))[0]) if value is not None else 0

    async def flush_all(self) -> None:
        """Makes everything durable that was written without the write-ahead log. Raises as `flush_pages`."""
        for family in tuple(self._families.values()):
            await self._flush(family)

    async def _flush(self, family: Any) -> None:
        try:
            await asyncio.to_thread(family.flush, True)
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self.owner, error) from error

    def checkpoint(self, path: Path) -> None:
        """A consistent copy by hard links. Raises DamagedError if a file is gone."""
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise self.damaged(error) from error

    # ---- reading

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


class Cursor:
    """Holds a RocksDB iterator, `it`. Use it afresh after every pause: an iterator left over would keep the directory
    locked, so closing the store replaces it by one that raises UnknownVolumeError.

    An iterator that meets a damaged block calls itself invalid, just as at the end: `check` tells the two apart, and
    whoever takes "invalid" for "nothing there" asks it first.
    """

    __slots__ = ("__weakref__", "_store", "it")

    def __init__(self, it: RdictIter, store: SegmentStore) -> None:
        self.it: RdictIter | _Closed = it
        self._store = store

    def check(self) -> None:
        """Raises DamagedError if the iterator is invalid because of damage."""
        try:
            self.it.status()
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise self._store.damaged(error) from error


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise UnknownVolumeError(_GONE)

    def __call__(self, *_: object) -> Any:
        raise UnknownVolumeError(_GONE)


class WriteFailedError(DiskFullError):
    """RocksDB could not write: the disk is full, or it met a damaged file (then its text says so, see `is_corruption`).
    Until the segment is opened anew it takes nothing more, and only what is on disk then is true (see
    `Node.reopen_after_error`).
    """

    def __init__(self, segment: SegmentKey, error: Exception) -> None:
        super().__init__(f"group {segment[1]} could not be written: {error}")
        self.segment = segment


class StoreBatch:
    """Changes that land together or not at all. Writing raises WriteFailedError."""

    def __init__(self, db: Rdict, handles: dict[str, object], no_wal: WriteOptions, owner: SegmentKey) -> None:
        self._db, self._handles, self._no_wal, self._owner = db, handles, no_wal, owner
        self._batch = WriteBatch(raw_mode=True)

    def put(self, family: str, key: bytes, value: bytes) -> None:
        """Sets a key."""
        self._batch.put(key, value, self._handles[family])

    def put_all(self, family: str, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Sets many keys."""
        put, handle = self._batch.put, self._handles[family]
        for key, value in pairs:
            put(key, value, handle)

    def delete(self, family: str, key: bytes) -> None:
        """Removes a key."""
        self._batch.delete(key, self._handles[family])

    def delete_range(self, family: str, start: bytes, stop: bytes) -> None:
        """Removes start <= key < stop."""
        self._batch.delete_range(start, stop, self._handles[family])

    @property
    def nbytes(self) -> int:
        """Bytes gathered."""
        return int(self._batch.size_in_bytes())

    def write(self) -> None:
        """Applies the changes, not yet synced; the object is spent."""
        try:
            self._db.write(self._batch)
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error

    def write_without_log(self) -> None:
        """Applies changes to page versions, durable only after `flush_pages`; the object is spent."""
        try:
            self._db.write(self._batch, self._no_wal)
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error

    def write_synced(self) -> None:
        """Applies the changes durably."""
        self.write()
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error


def held_open(path: Path) -> bool:
    """Whether a RocksDB of this process has the directory at `path` open still, under this name or one it got since."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            directory, _, name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")
        except FileNotFoundError:
            continue  # the listing's own
        if name.startswith("LOCK") and (directory == str(path) or directory.startswith(f"{path}.")):
            return True
    return False


def _db_options(cache: Cache | None) -> Options:
    options = _family_options("default", 1 << 20, cache)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_max_total_wal_size(_WAL_BYTES_MAX)
    # Not recycle_log_file_num, though it makes syncs a third cheaper: it forbids writing without the log.
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_bytes_per_sync(1 << 20)
    return options


def _family_options(name: str, write_buffer_bytes: int, cache: Cache | None) -> Options:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(3)
    options.set_compression_type(DBCompressionType.lz4() if name == "pages" else DBCompressionType.none())
    if name in ("log", "pages"):
        options.set_enable_blob_files(True)
        options.set_min_blob_size(_BLOB_BYTES_MIN)
    if name == "pages":
        options.set_blob_compression_type(DBCompressionType.lz4())
        options.set_blob_gc_age_cutoff(_COLLECTED_SHARE)
        options.set_compaction_style(DBCompactionStyle.universal())
        options.set_level_zero_file_num_compaction_trigger(_RUNS_BEFORE_MERGING)
    table = BlockBasedOptions()
    if cache is not None:
        table.set_block_cache(cache)
    options.set_block_based_table_factory(table)
    return options


__all__ = ["Cache", "SegmentStore", "StoreBatch", "WriteFailedError", "held_open"]
