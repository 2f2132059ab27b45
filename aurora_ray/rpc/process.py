"""What a process that serves for long asks of the interpreter, of the allocator and of the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from typing import Final

# A storage node makes and drops hundreds of thousands of small objects for each layer of log, hardly any of them in
# cycles: looking for cycles as often as by default takes some percent of its time, in pauses of tens of milliseconds.
_THRESHOLDS: Final = (50_000, 20, 100)

# Of glibc's mallopt. A message of pages passes through some buffers of its size. By default memory for them goes back
# to the kernel with each one and comes anew, page fault by page fault: a quarter of the CPU of a cold scan.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_ALLOCATOR: Final = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20), (_M_TOP_PAD, 4 << 20))


_DESCRIPTORS_MAX: Final = 1 << 20  # where the hard limit is none at all


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one; the limit that holds now. Can be called again.

    The usual soft limit of 1,024 is for programs that call select(2). A segment has some twenty files open, and each
    session of an endpoint two sockets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def give_memory_back() -> None:
    """Returns to the kernel what is free within the allocator's heaps: what lies below something that is in use stays
    there otherwise, for good. Takes some milliseconds for 100 MB; threads that allocate may wait for it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def expect_long_service() -> None:
    """Has the cyclic garbage collector look rarely, and never at what is loaded by now; has the allocator keep up to
    64 MiB that are free at the end of its heap; raises the limit of open files. Once a process."""
    raise_descriptor_limit()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _ALLOCATOR:
            mallopt(option, value)
