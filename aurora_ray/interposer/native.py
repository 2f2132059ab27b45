"""The C library's types and calls, as ctypes sees them. Layouts are those of `src/aurora.h` and `src/driver*.c`."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, ClassVar

from aurora_ray.errors import ConfigurationError


class RegionOptions(Structure):
    """What a region is made with."""

    _fields_: ClassVar = [
        ("ring_bytes", c_uint64),
        ("base_lsn", c_uint64),
        ("next_file_id", c_uint64),
        ("bell_bytes", c_uint64),
        ("page_bytes", c_uint32),
        ("nslots", c_uint32),
        ("nnodes", c_uint32),
        ("patterns_bytes", c_uint32),
        ("patterns", c_char_p),
    ]


class Poll(Structure):
    """What there is to do; positions are in the ring."""

    _fields_: ClassVar = [
        ("head", c_uint64),
        ("tail", c_uint64),
        ("wanted", c_uint64),
        ("durable", c_uint64),
        ("present_pages", c_uint64),
        ("state", c_uint32),
        ("requests", c_uint32),
        ("attached", c_uint32),
        ("settle_wanted", c_uint32),
    ]


class TakenBatch(Structure):
    """One batch of a flush, in the buffer of its Take."""

    _fields_: ClassVar = [("group", c_uint32), ("records", c_uint32), ("offset", c_uint64), ("bytes", c_uint64)]


class Take(Structure):
    """In: the writer's identity and room. Out: the flush."""

    _fields_: ClassVar = [
        ("volume", c_uint8 * 16),
        ("epoch", c_uint64),
        ("vdl", c_uint64),
        ("time_us", c_uint64),
        ("bytes_max", c_uint64),
        ("group_tails", POINTER(c_uint64)),
        ("buffer", POINTER(c_uint8)),
        ("buffer_bytes", c_uint64),
        ("flush_start", c_uint64),
        ("flush_end", c_uint64),
        ("arrivals", c_uint64),
        ("nbatches", c_uint32),
        ("batches_max", c_uint32),
        ("batches", POINTER(TakenBatch)),
    ]


class Request(Structure):
    """An engine process asks for pages, extents or a protection group."""

    _fields_: ClassVar = [
        ("state", c_uint32),
        ("want", c_uint32),
        ("slot", c_uint32),
        ("first", c_uint32),
        ("count", c_uint32),
        ("pid", c_int32),
        ("fd", c_int32),
        ("error", c_int32),
    ]


class SlotView(Structure):
    """A file as the region knows it."""

    _fields_: ClassVar = [
        ("ino", c_uint64),
        ("file_id", c_uint64),
        ("size", c_uint64),
        ("drop_lsn", c_uint64),
        ("last_lsn", c_uint64),
        ("mounted_extents", c_uint32),
        ("dropped", c_uint32),
    ]


class Candidate(Structure):
    """A chunk that may be evicted; also the evictor's place."""

    _fields_: ClassVar = [("slot", c_uint32), ("chunk", c_uint32)]


class Becomes(Structure):
    """A file of the volume that a file of the mount becomes; see `ar_become`."""

    _fields_: ClassVar = [
        ("file_id", c_uint64),
        ("size", c_uint64),
        ("lsn", c_uint64),
        ("floor", c_uint64),
        ("extents", c_uint32),
        ("same", c_uint32),
        ("ours", c_int32),
    ]


COUNTERS = (
    "records",
    "record_bytes",
    "page_full",
    "page_delta",
    "page_same",
    "syncs",
    "sync_waits",
    "misses",
    "bells",
    "space_waits",
    "evicted_pages",
)
Counters = c_uint64 * len(COUNTERS)

WANT_PAGES, WANT_PREFETCH, WANT_EXTENTS, WANT_GROUP = 1, 2, 3, 4
STATE_RUNNING, STATE_FENCED, STATE_POISONED, STATE_CLOSED = 0, 1, 2, 3
PATTERN_BYTES_MAX = 4096

assert ctypes.sizeof(Request) == 32  # noqa: S101 - a relation between constants, checked at import
assert ctypes.sizeof(TakenBatch) == 24  # noqa: S101

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ar_region_create": (c_int, [POINTER(RegionOptions), POINTER(c_void_p)]),
    "ar_region_destroy": (c_int, [c_void_p, c_int]),
    "ar_mount_files": (None, [c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "ar_tell_extents": (c_int, [c_void_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "ar_add_group": (c_int, [c_void_p, c_uint32, c_uint32]),
    "ar_free_extents": (c_uint64, [c_void_p]),
    "ar_file_bytes": (c_uint64, [c_void_p]),
    "ar_peek": (None, [c_void_p, POINTER(Poll)]),
    "ar_poll": (None, [c_void_p, POINTER(Poll)]),
    "ar_take": (c_int, [c_void_p, POINTER(Take)]),
    "ar_publish": (None, [c_void_p, c_uint64]),
    "ar_bell_at": (c_uint64, [c_void_p, c_uint64]),
    "ar_set_state": (None, [c_void_p, c_uint32]),
    "ar_take_requests": (c_int, [c_void_p, POINTER(Request), POINTER(c_uint32), c_int]),
    "ar_reclaim": (None, [c_void_p]),
    "ar_answer": (None, [c_void_p, c_uint32, c_int]),
    "ar_view_slot": (None, [c_void_p, c_uint32, POINTER(SlotView)]),
    "ar_find_slot": (c_int64, [c_void_p, c_uint64]),
    "ar_extent_group": (c_uint32, [c_void_p, c_uint32, c_uint32]),
    "ar_absent_run": (c_uint32, [c_void_p, c_uint32, c_uint32, c_uint32, POINTER(c_uint32)]),
    "ar_fill": (c_int, [c_void_p, c_uint32, c_int, c_uint32, c_uint32, c_char_p, c_char_p, c_uint64]),
    "ar_dropped_since": (c_int, [c_void_p, POINTER(c_uint64), POINTER(c_uint32), c_int]),
    "ar_evictable": (c_int, [c_void_p, POINTER(Candidate), c_uint64, POINTER(Candidate), c_int, c_int]),
    "ar_evict": (c_int, [c_void_p, c_uint32, c_uint32, c_uint64, c_int, c_uint64]),
    "ar_set_private": (None, [c_void_p]),
    "ar_hold": (c_int, [c_void_p]),
    "ar_release": (None, [c_void_p]),
    "ar_path_is_volatile": (c_int, [c_void_p, c_char_p]),
    "ar_rebase": (None, [c_void_p, c_uint64, c_uint64]),
    "ar_become": (c_uint64, [c_void_p, c_uint32, POINTER(Becomes), c_void_p]),
    "ar_log_length": (None, [c_void_p, c_uint32, c_uint64]),
    "ar_log_name_change": (None, [c_void_p, c_int, c_uint64, c_uint32, c_char_p, c_char_p]),
    "ar_log_drop": (None, [c_void_p, c_uint64, c_void_p, c_uint32]),
    "ar_new_file_id": (c_uint64, [c_void_p]),
    "ar_mount_held": (c_uint32, [c_void_p, c_uint64, c_uint64, c_uint64, c_uint32]),
    "ar_discard": (None, [c_void_p, c_uint32]),
    "ar_guard": (c_int, [c_void_p, c_uint32, c_uint32, c_uint32, c_char_p]),
    "ar_log_owed": (c_int, [c_void_p, c_uint32, c_uint32, c_int]),
    "ar_next_owed": (c_int, [c_void_p, POINTER(c_uint32), POINTER(c_uint32)]),
    "ar_settled": (None, [c_void_p]),
    "ar_counters": (None, [c_void_p, c_void_p]),
    "ar_crc32c": (c_uint32, [c_uint32, c_char_p, ctypes.c_size_t]),
}


def library_path() -> str:
    """Where the built library lies; ConfigurationError if it was never built."""
    spec = importlib.util.find_spec("aurora_ray.interposer._native")
    if spec is None or spec.origin is None:
        raise ConfigurationError("the C library is not built: install a C compiler, then run `make install`")
    return spec.origin


@cache
def library() -> ctypes.CDLL:
    """The library, its calls typed. They release the GIL; all calls on one region come from one thread."""
    lib = ctypes.CDLL(library_path(), use_errno=True)
    for name, (result, arguments) in _SIGNATURES.items():
        call = getattr(lib, name)
        call.restype = result
        call.argtypes = arguments
    return lib
