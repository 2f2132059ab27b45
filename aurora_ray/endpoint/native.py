"""The C relay's types and calls, as ctypes sees them. Layouts are those of `src/relay.h` and `src/relay.c`."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, Structure, c_char, c_int, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, ClassVar

from aurora_ray.errors import ConfigurationError

TARGETS_MAX = 64
HOST_BYTES = 46
HAND_OVER_BYTES = 108
REFUSAL_BYTES_MAX = 128


class RelayOptions(Structure):
    """The bounds of a relay, and what it knows of its clients' protocol."""

    _fields_: ClassVar = [
        ("held_max", c_uint32),
        ("sessions_max", c_uint32),
        ("hold_ms", c_uint64),
        ("cancel_code", c_uint32),
        ("keeps_address", c_uint32),
        ("refusal_bytes", c_uint32),
        ("refusal", c_uint8 * REFUSAL_BYTES_MAX),
    ]


class TargetOrder(Structure):
    """Where sessions may go; `host` is numeric."""

    _fields_: ClassVar = [
        ("host", c_char * HOST_BYTES),
        ("port", c_uint16),
        ("fallback", c_uint32),
        ("incarnation", c_uint64),
        ("hand_over", c_char * HAND_OVER_BYTES),
    ]


COUNTERS = (
    "open",
    "held",
    "accepted",
    "refused",
    "expired",
    "cut",
    "connect_failures",
    "bytes_up",
    "bytes_down",
    "messages",
    "handed",
    "cancels",
    "cpu_ns",
)
Counters = c_uint64 * len(COUNTERS)

assert ctypes.sizeof(RelayOptions) == 160  # noqa: S101 - a relation between constants, checked at import
assert ctypes.sizeof(TargetOrder) == 176  # noqa: S101

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ar_relay_start": (c_int, [c_int, POINTER(RelayOptions), POINTER(c_void_p)]),
    "ar_relay_set_targets": (c_int, [c_void_p, POINTER(TargetOrder), c_uint32, c_uint64, c_uint32, c_uint32]),
    "ar_relay_set_hold": (None, [c_void_p, c_uint64]),
    "ar_relay_ring_when_held": (None, [c_int]),
    "ar_relay_stats": (None, [c_void_p, POINTER(c_uint64)]),
    "ar_relay_close": (None, [c_void_p]),
}


@cache
def library() -> ctypes.CDLL:
    """The library, its calls typed; they release the GIL. Raises ConfigurationError if it was never built."""
    spec = importlib.util.find_spec("aurora_ray.endpoint._relay")
    if spec is None or spec.origin is None:
        raise ConfigurationError("the C library is not built: install a C compiler, then run `make install`")
    lib = ctypes.CDLL(spec.origin)
    for name, (result, arguments) in _SIGNATURES.items():
        call = getattr(lib, name)
        call.restype = result
        call.argtypes = arguments
    return lib
