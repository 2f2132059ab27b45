"""One RocksDB directory: families of keys and values, batches, iterators, and closing it so that it is closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from rocksdict import Checkpoint, Rdict, WriteBatch, WriteOptions

from aurora_ray.errors import AuroraError, DiskFullError, StorageError, UnknownVolumeError
from aurora_ray.storage.disk.damage import STORE, DamagedError, is_corruption

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from rocksdict import Options, RdictIter

    from aurora_ray.storage.disk.damage import SegmentKey

_log = logging.getLogger(__name__)

_GONE: Final = "the segment was replaced or dropped in the middle: ask again"
_DEFAULT: Final = "default"
_CANCEL_S: Final = 10.0  # a compaction looks whether it shall end between keys


class Database:
    """An open directory of RocksDB. Not thread-safe beyond what its docstrings say."""

    def __init__(self, path: Path, options: Options, families: Mapping[str, Options], owner: SegmentKey) -> None:
        """`families` besides the default one; `owner`: for errors."""
        self.path, self.owner = path, owner
        self._db: Any = Rdict(str(path), options, column_families=dict(families))
        self.families: dict[str, Any] = {name: self._db.get_column_family(name) for name in families}
        self.families[_DEFAULT] = self._db  # last: it is closed after the others
        self._handles = {name: self._db.get_column_family_handle(name) for name in self.families}
        self._closed = False
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._no_wal = WriteOptions()
        self._no_wal.disable_wal = True
        self.sync = self._db.flush_wal  # sync(True)
        self._compacted = threading.Event()  # set while no compaction of ours runs
        self._compacted.set()

    def close(self) -> None:
        """Closes every family and cursor; later use raises. The directory can be opened again at once."""
        if self._closed:
            return
        self._closed = True
        if not self._compacted.is_set():
            self._db.cancel_all_background(False)
            self._compacted.wait(_CANCEL_S)
        for cursor in tuple(self._cursors):
            cursor.it = Closed()
        self._handles.clear()
        for family in self.families.values():
            try:
                family.close()
            except Exception as error:  # it flushes first, which fails on a full disk; what matters is synced already
                _log.debug("closing %s: %s", self.path, error)
        # One that did not close ends with the last reference to it. Errors raised around it keep some, in cycles of
        # tracebacks and frames. Until it has ended it holds the lock, and may remove files by name.
        closed = Closed()
        self.families = dict.fromkeys(self.families, closed)
        self._db = self.sync = closed
        del family
        if held_open(self.path):
            gc.collect()

    # ---- reading

    def get(self, family: str, key: bytes) -> bytes | None:
        """A value. Raises DamagedError, ReadFailedError, UnknownVolumeError."""
        try:
            value: bytes | None = self.families[family].get(key)
        except Exception as error:
            raise self.failure(error) from error
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
        """An iterator over a family as of now, which `close` can take away. Raises UnknownVolumeError if it has,
        ReadFailedError.
        """
        try:
            cursor = Cursor(self.families[family].iter(), self)
        except Exception as error:
            raise self.failure(error) from error
        self._cursors.add(cursor)
        return cursor

    @property
    def is_read(self) -> bool:
        """Whether any iterator is there."""
        return bool(self._cursors)

    @property
    def buffered_bytes(self) -> int:
        """In write buffers of all families."""
        families = self.families.values()
        return sum(family.property_int_value("rocksdb.cur-size-all-mem-tables") or 0 for family in families)

    def failure(self, error: Exception) -> AuroraError:
        """What to raise for an error of RocksDB that met reading: DamagedError if its files are damaged."""
        if isinstance(error, AuroraError):
            return error
        return (
            DamagedError(self.owner, STORE, str(error)) if is_corruption(error) else ReadFailedError(self.owner, error)
        )

    # ---- writing

    def batch(self) -> Batch:
        """An atomic set of changes."""
        return Batch(self._db, self._handles, self._no_wal, self.owner)

    async def flush(self, *families: str) -> None:
        """Writes what these families, or all, have in memory to files. Raises WriteFailedError, UnknownVolumeError."""
        for family in families or tuple(self.families):
            try:
                await asyncio.to_thread(self.families[family].flush, True)
            except UnknownVolumeError:
                raise
            except Exception as error:
                raise WriteFailedError(self.owner, error) from error

    async def compact(self, family: str) -> None:
        """Merges all that is in a family's files, in a thread. Raises WriteFailedError, UnknownVolumeError.

        `close` ends it early, which is no error.
        """
        if self._closed:
            raise UnknownVolumeError(_GONE)
        self._compacted.clear()
        error = await asyncio.to_thread(self._compact, family)
        if error is not None and not self._closed:
            raise WriteFailedError(self.owner, error) from error

    def _compact(self, family: str) -> Exception | None:
        try:
            return _compact(self._db, family)
        finally:
            self._compacted.set()

    def drop(self, family: str) -> None:
        """Removes a family with all that is in it."""
        self._handles.pop(family)
        self.families.pop(family).close()
        self._db.drop_column_family(family)

    def checkpoint(self, path: Path) -> None:
        """A consistent copy by hard links. Raises DamagedError if a file is gone, ReadFailedError."""
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise self.failure(error) from error


def _compact(db: Rdict, family: str) -> Exception | None:
    """Keeps nothing of the database when it returns, so that it can be closed."""
    try:
        db.get_column_family(family).compact_range(None, None)
    except Exception as error:  # RocksDB's errors have no common class
        return error.with_traceback(None)
    return None


class Cursor:
    """Holds a RocksDB iterator, `it`. Use it afresh after every pause: an iterator left over would keep the directory
    locked, so closing the database replaces it by one that raises UnknownVolumeError.

    An iterator that meets a damaged block calls itself invalid, just as at the end: `check` tells the two apart, and
    whoever takes "invalid" for "nothing there" asks it first.
    """

    __slots__ = ("__weakref__", "_database", "it")

    def __init__(self, it: RdictIter, database: Database) -> None:
        self.it: RdictIter | Closed = it
        self._database = database

    def check(self) -> None:
        """Raises DamagedError or ReadFailedError if the iterator is invalid because of one."""
        try:
            self.it.status()
        except Exception as error:
            raise self._database.failure(error) from error


class Closed:
    """In the place of what was closed."""

    def __getattr__(self, name: str) -> Any:
        raise UnknownVolumeError(_GONE)

    def __call__(self, *_: object) -> Any:
        """Raises UnknownVolumeError, as any use does."""
        raise UnknownVolumeError(_GONE)


class WriteFailedError(DiskFullError):
    """RocksDB could not write: the disk is full, or it met a damaged file (then its text says so, see `is_corruption`).
    Until the segment is opened anew it takes nothing more, and only what is on disk then is true (see
    `Node.reopen_after_error`).
    """

    def __init__(self, segment: SegmentKey, error: Exception) -> None:
        super().__init__(f"group {segment[1]} could not be written: {error}")
        self.segment = segment


class ReadFailedError(StorageError):
    """RocksDB could not read, for another reason than damage. The segment is opened anew; if that happens again and
    again, its disk is bad and a copy from the peers takes its place (see `Node.note_failure`).
    """

    retryable = True

    def __init__(self, segment: SegmentKey, error: Exception) -> None:
        super().__init__(f"group {segment[1]} could not be read: {error}")
        self.segment = segment


class Batch:
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
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error

    def write_without_log(self) -> None:
        """Applies the changes, durable only after `flush`; the object is spent. Not where log files are recycled."""
        try:
            self._db.write(self._batch, self._no_wal)
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error

    def write_synced(self) -> None:
        """Applies the changes durably."""
        self.write()
        try:
            self._db.flush_wal(True)
        except UnknownVolumeError:
            raise
        except Exception as error:
            raise WriteFailedError(self._owner, error) from error


def held_open(path: Path) -> bool:
    """Whether this process has a RocksDB in the directory at `path` open still, under this name or one it got since."""
    inside = (f"{path}/", f"{path}.")
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            directory, _, name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")
        except FileNotFoundError:
            continue  # the listing's own
        if name.startswith("LOCK") and (directory == str(path) or directory.startswith(inside)):
            return True
    return False
