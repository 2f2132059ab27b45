"""The shared region, from the driver's side: what the engine's processes have logged, and what they ask for.

Not thread-safe by design: one thread (the driver's event loop) makes all calls on a region.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from aurora_ray.errors import ConfigurationError, MalformedError, RegionClosedError
from aurora_ray.interposer import native
from aurora_ray.log.flush import Flush, LogEnd
from aurora_ray.log.sizes import NO_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from uuid import UUID

_UNKNOWN = NO_GROUP - 1
_REQUESTS_AT_ONCE = 256
_DROPPED_AT_ONCE = 1024
_LSNS = 1 << 64
_ANY_LSN = _LSNS - 1
_BATCHES_MAX = 4096  # groups that one flush may touch; a flush that touches more is split


class Taken(NamedTuple):
    """A flush out of the ring. `arrivals`: commits that had ever begun to wait then; it has what these wait for."""

    flush: Flush
    arrivals: int


class Region:
    """Creates the region (a memfd), its doorbell (an eventfd) and its life line (a pipe).

    `next_file_id` and `base_lsn` say where the log goes on. `volatile_patterns` are (kind, pattern), relative to the
    mount: "exact" that path, "below" everything under that directory, "component" every path with such a component,
    "name" every path whose last component matches as in fnmatch(3).
    """

    def __init__(
        self,
        *,
        page_bytes: int,
        base_lsn: int,
        next_file_id: int,
        ring_bytes: int,
        bell_bytes: int,
        files_max: int,
        volatile_patterns: Iterable[tuple[str, str]] = (),
        nodes_max: int = 1 << 19,
    ) -> None:
        self._lib = native.library()
        self.base_lsn, self.ring_bytes = base_lsn, ring_bytes
        patterns = _encode_patterns(volatile_patterns)
        options = native.RegionOptions(
            ring_bytes, base_lsn, next_file_id, bell_bytes, page_bytes, files_max, nodes_max, len(patterns), patterns
        )
        pointer = ctypes.c_void_p()
        self._fd: int = self._lib.ar_region_create(ctypes.byref(options), ctypes.byref(pointer))
        if self._fd < 0:
            raise ConfigurationError(f"cannot create shared memory for the mount: {os.strerror(ctypes.get_errno())}")
        self._pointer: ctypes.c_void_p | None = pointer
        self.bell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        self._poll = native.Poll()
        self._counters = native.Counters()
        self._requests = (native.Request * _REQUESTS_AT_ONCE)()
        self._dropped = (ctypes.c_uint32 * _DROPPED_AT_ONCE)()
        self._indexes = (ctypes.c_uint32 * _REQUESTS_AT_ONCE)()

    def close(self) -> None:
        """Ends every engine process that still waits here, and frees the memory."""
        if self._fd < 0:
            return
        self.set_state(native.STATE_CLOSED)
        pointer, self._pointer = self._address, None
        os.close(self._life_write)
        os.close(self._life_read)
        os.close(self.bell_fd)
        self._lib.ar_region_destroy(pointer, self._fd)
        self._fd = self.bell_fd = -1

    @property
    def closed(self) -> bool:
        """Whether `close` was called: every other call raises RegionClosedError then."""
        return self._pointer is None

    @property
    def _address(self) -> ctypes.c_void_p:
        if self._pointer is None:
            raise RegionClosedError("the mount is closed: its shared memory is gone")
        return self._pointer

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors that the engine inherits."""
        return (self._fd, self.bell_fd, self._life_read)

    def environment(self, mount: Path, library: Path) -> dict[str, str]:
        """The variables that make an engine's process use this region for files under `mount`.

        `library` is the interposer's file, or a copy that the engine's account can read.
        """
        return {
            "LD_PRELOAD": str(library),
            "AURORA_MOUNT": str(mount),
            "AURORA_DEVICE": str(device_of_files(mount)),
            "AURORA_REGION_FD": str(self._fd),
            "AURORA_BELL_FD": str(self.bell_fd),
            "AURORA_LIFE_FD": str(self._life_read),
        }

    # ---- files

    def mount_files(self, files: Sequence[tuple[int, int, int, int]]) -> array[int]:
        """Registers files of the volume, each (inode, file id, size in bytes, extents); returns their slots."""
        slots = array("I", bytes(4 * len(files)))
        columns = [array(kind, values) for kind, values in zip("QQQI", zip(*files, strict=True), strict=False)]
        if columns:
            addresses = [column.buffer_info()[0] for column in (*columns, slots)]
            self._lib.ar_mount_files(self._address, len(files), *addresses)
        return slots

    def tell_extents(self, slot: int, first: int, groups: array[int]) -> int:
        """Tells the groups of extents [first, first + len(groups)). Returns 0 or an errno; EBUSY: try again soon."""
        address, count = groups.buffer_info()
        return int(self._lib.ar_tell_extents(self._address, slot, first, count, address))

    def add_group(self, group: int, free_extents: int) -> None:
        """Lets extents be placed in a protection group."""
        if self._lib.ar_add_group(self._address, group, free_extents) < 0:
            raise ConfigurationError(f"protection group {group} is beyond the volume's limit")

    def free_extents(self) -> int:
        """Extents that the volume's protection groups can still take."""
        return int(self._lib.ar_free_extents(self._address))

    def file_bytes(self) -> int:
        """The sizes of all files in sum; holes in them are counted."""
        return int(self._lib.ar_file_bytes(self._address))

    def slot(self, index: int) -> native.SlotView:
        """What the region knows of a file."""
        view = native.SlotView()
        self._lib.ar_view_slot(self._address, index, ctypes.byref(view))
        return view

    def find_slot(self, ino: int) -> int | None:
        """The slot of the local file with this inode number."""
        found = int(self._lib.ar_find_slot(self._address, ino))
        return None if found < 0 else found

    def extent_group(self, slot: int, extent: int) -> int | None:
        """The protection group of an extent; None if it has none. Raises MalformedError if nobody told it."""
        group = int(self._lib.ar_extent_group(self._address, slot, extent))
        if group == _UNKNOWN:
            raise MalformedError(f"nobody told where extent {extent} of slot {slot} lies")
        return None if group == NO_GROUP else group

    def absent_run(self, slot: int, first: int, end: int) -> tuple[int, int]:
        """The first run of absent pages in [first, end): (start, length); length 0 if there is none."""
        start = ctypes.c_uint32()
        length = int(self._lib.ar_absent_run(self._address, slot, first, end, ctypes.byref(start)))
        return start.value, length

    def fill(self, slot: int, fd: int, first: int, kinds: bytes, pages: bytes, *, lsn: int = _ANY_LSN) -> int:
        """Puts pages, fetched as of `lsn`, where they are still absent and were not evicted since.

        Returns 0 or an errno; EBUSY: an engine process is at a long local write, try again soon.
        """
        return int(self._lib.ar_fill(self._address, slot, fd, first, len(kinds), kinds, pages, lsn))

    # ---- work

    def poll(self) -> native.Poll:
        """What there is to do, and clears the bell; the same object is used again by the next call."""
        self._lib.ar_poll(self._address, ctypes.byref(self._poll))
        return self._poll

    def peek(self) -> native.Poll:
        """The same look without touching the bell; another object each time."""
        poll = native.Poll()
        self._lib.ar_peek(self._address, ctypes.byref(poll))
        return poll

    def requests(self) -> list[tuple[int, native.Request]]:
        """Takes what is asked for: (index to answer, request). Copies stay valid."""
        n = self._lib.ar_take_requests(self._address, self._requests, self._indexes, _REQUESTS_AT_ONCE)
        return [(self._indexes[i], native.Request.from_buffer_copy(self._requests[i])) for i in range(n)]

    def reclaim_requests(self) -> None:
        """Frees the requests of processes that died before they took their answer."""
        self._lib.ar_reclaim(self._address)

    def answer(self, index: int, error: int = 0) -> None:
        """Ends a request: 0, or the errno with which the engine's call shall fail."""
        self._lib.ar_answer(self._address, index, error)

    def publish(self, vdl: int) -> None:
        """All up to `vdl` is durable: wakes who waits for that."""
        self._lib.ar_publish(self._address, vdl)

    def bell_at(self, arrival: int) -> int:
        """The commit with this number, counted from 1, rings when it begins to wait. Returns how many have begun."""
        return int(self._lib.ar_bell_at(self._address, arrival))

    def set_state(self, state: int) -> None:
        """Anything but STATE_RUNNING ends the engine's processes at their next call."""
        self._lib.ar_set_state(self._address, state)

    def counters(self) -> dict[str, int]:
        """Totals since the mount was made."""
        self._lib.ar_counters(self._address, ctypes.byref(self._counters))
        return dict(zip(native.COUNTERS, self._counters, strict=True))

    def dropped_since(self, lsn: int) -> tuple[int, list[int]]:
        """Slots of files that lost their last name at or after `lsn` and of which pages are absent; where to go on."""
        next_lsn = ctypes.c_uint64(lsn)
        found = self._lib.ar_dropped_since(self._address, ctypes.byref(next_lsn), self._dropped, _DROPPED_AT_ONCE)
        return next_lsn.value, self._dropped[: max(0, found)]

    # ---- from a private mount to one that writes its volume: see src/exchange.c

    def set_private(self) -> None:
        """Nothing that is logged goes to the volume, and nobody waits for it."""
        self._lib.ar_set_private(self._address)

    def hold(self) -> int:
        """Takes the lock; 0, or EBUSY (try again soon), EIO. Until `release`, of all calls only those below are
        made."""
        return int(self._lib.ar_hold(self._address))

    def release(self) -> None:
        """Lets go of it."""
        self._lib.ar_release(self._address)

    def is_volatile(self, path: bytes) -> bool:
        """Whether what changes at this path, relative to the mount, is not logged."""
        return bool(self._lib.ar_path_is_volatile(self._address, path))

    @property
    def end_lsn(self) -> int:
        """Where the log is: what was logged by now ends there."""
        tail: int = self.peek().tail
        return (self.base_lsn + tail) % _LSNS

    def rebase(self, lsn: int, next_file_id: int) -> None:
        """The log goes on at `lsn`; what was logged is forgotten, and no protection group has room."""
        self._lib.ar_rebase(self._address, lsn, next_file_id)
        self.base_lsn = (lsn - self.peek().tail) % _LSNS

    def discard(self, slot: int) -> None:
        """Before `rebase`: what is written to the file from now on concerns nobody."""
        self._lib.ar_discard(self._address, slot)

    def become(self, slot: int, file: native.Becomes, extents: array[int]) -> int:
        """The file is that file of the volume from now on. Returns how many pages the volume lacks of it."""
        file.extents = len(extents)
        return int(self._lib.ar_become(self._address, slot, ctypes.byref(file), extents.buffer_info()[0]))

    def mount_held(self, ino: int, file_id: int, size: int, extents: int) -> int:
        """As `mount_files`, of one file."""
        return int(self._lib.ar_mount_held(self._address, ino, file_id, size, extents))

    def new_file_id(self) -> int:
        """An id that no file has had."""
        return int(self._lib.ar_new_file_id(self._address))

    def log_length(self, slot: int, size: int) -> None:
        """The volume's file, `size` bytes long there, gets the length that it has here."""
        self._lib.ar_log_length(self._address, slot, size)

    def log_name(
        self, kind: int, first: bytes, second: bytes | None = None, *, file_id: int = 0, mode: int = 0
    ) -> None:
        """A record of the file table (RecordType), as the interposer makes it."""
        self._lib.ar_log_name_change(self._address, kind, file_id, mode, first, second)

    def log_drop(self, file_id: int, groups: Iterable[int]) -> None:
        """A file of the volume is gone; `groups`: where it has extents, each once."""
        others = array("I", (group for group in groups if group not in (0, NO_GROUP)))
        self._lib.ar_log_drop(self._address, file_id, others.buffer_info()[0], len(others))

    def log_owed(self, slot: int, chunk: int, fd: int) -> int:
        """Logs what the volume lacks of a chunk. 0; EBUSY: the ring is full; ENOSPC: no group has room; EIO."""
        return int(self._lib.ar_log_owed(self._address, slot, chunk, fd))

    def guard(self, slot: int, first: int, end: int, image: bytes) -> int:
        """Logs `image`, a whole page, as the file's first page, whatever is here. Writes that change these bytes of
        it (64 at most) wait until the volume lacks nothing. 0 or an errno."""
        return int(self._lib.ar_guard(self._address, slot, first, end, image))

    def next_owed(self, slot: int, chunk: int) -> tuple[int, int] | None:
        """The next chunk, from this one on, of which the volume lacks pages. Needs no lock."""
        at, number = ctypes.c_uint32(slot), ctypes.c_uint32(chunk)
        found = self._lib.ar_next_owed(self._address, ctypes.byref(at), ctypes.byref(number))
        return (at.value, number.value) if found else None

    def settled(self) -> None:
        """The volume lacks nothing any more."""
        self._lib.ar_settled(self._address)

    # ---- eviction

    def evictable(self, hand: native.Candidate, vdl: int, count: int, steps: int) -> list[tuple[int, int]]:
        """Moves the clock's hand; returns up to `count` (slot, chunk) that have not been used since it last came by."""
        out = (native.Candidate * count)()
        n = self._lib.ar_evictable(self._address, ctypes.byref(hand), vdl, out, count, steps)
        return [(out[i].slot, out[i].chunk) for i in range(n)]

    def evict(self, slot: int, chunk: int, ino: int, fd: int, vdl: int) -> int:
        """Makes a chunk absent if it is still clean. Returns the pages freed."""
        return int(self._lib.ar_evict(self._address, slot, chunk, ino, fd, vdl))


class Taker:
    """Takes flushes out of a region's ring, encoded for one writer's epoch.

    `end` is the writer's: each flush is encoded to follow it, and is to be made part of it before the next is taken.
    """

    def __init__(self, region: Region, *, volume: UUID, epoch: int, end: LogEnd, flush_bytes_max: int) -> None:
        self._region = region
        self._end = end
        self._buffer = (ctypes.c_uint8 * (flush_bytes_max + (1 << 20)))()
        self._view = memoryview(self._buffer).cast("B")
        self._batches = (native.TakenBatch * _BATCHES_MAX)()
        self._take = native.Take(
            volume=(ctypes.c_uint8 * 16).from_buffer_copy(volume.bytes),
            epoch=epoch,
            bytes_max=flush_bytes_max,
            group_tails=end.tails_pointer,
            buffer=self._buffer,
            buffer_bytes=len(self._buffer),
            batches_max=_BATCHES_MAX,
            batches=self._batches,
        )
        self._reference = ctypes.byref(self._take)

    def take(self, vdl: int) -> Taken | None:
        """The next flush, None if the ring is empty. Its space in the ring is free from now on.

        Raises MalformedError if what the ring has next is no record, or one that fits into no flush.
        """
        take: Any = self._take
        take.vdl = vdl
        take.time_us = time.time_ns() // 1000
        result = self._region._lib.ar_take(self._region._address, self._reference)
        if result < 0:
            raise MalformedError("the log's ring holds what is no redo record: this mount cannot go on")
        if result:
            return None
        view = self._view
        batches = {b.group: bytes(view[b.offset : b.offset + b.bytes]) for b in self._batches[: take.nbatches]}
        flush = Flush(take.flush_start, take.flush_end, batches)
        self._end.check(flush)
        return Taken(flush, take.arrivals)


_PATTERN_MARKS = {"exact": "=", "below": "^", "component": "/", "name": "*"}


def _encode_patterns(patterns: Iterable[tuple[str, str]]) -> bytes:
    blob = b"".join(f"{_PATTERN_MARKS[kind]}{path}".encode() + b"\0" for kind, path in patterns) + b"\0"
    if len(blob) > native.PATTERN_BYTES_MAX:
        raise ConfigurationError(f"the engine's volatile paths take {len(blob)} bytes, more than fit")
    return blob


def device_of_files(directory: Path) -> int:
    """The device number of files made in `directory`: an overlay may give another one to directories."""
    with tempfile.TemporaryFile(dir=directory) as probe:
        return os.fstat(probe.fileno()).st_dev
