"""What a process that serves for long asks of the interpreter and of the allocator."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

# A storage node makes and drops hundreds of thousands of small objects for each layer of log, hardly any of them in
# cycles: looking for cycles as often as by default takes some percent of its time, in pauses of tens of milliseconds.
_THRESHOLDS: Final = (50_000, 20, 100)

# Of glibc's mallopt. A message of pages passes through some buffers of its size. By default memory for them goes back
# to the kernel with each one and comes anew, page fault by page fault: a quarter of the CPU of a cold scan.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_ALLOCATOR: Final = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20), (_M_TOP_PAD, 4 << 20))


def expect_long_service() -> None:
    """Has the cyclic garbage collector look rarely, and never at what is loaded by now; has the allocator keep up to
    64 MiB that are free at the end of its heap. Once a process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _ALLOCATOR:
            mallopt(option, value)
