"""When a reader's mount has outgrown what it may cost, and is to be made anew.

What a reader's engine changes stays in its mount, and what it has not read is read as of the LSN of the mount. So two
things grow with the log that goes by: the pages of the overlay, on the reader's disk, of which the cache can give none
back; and the history that the reader's lease holds on the storage nodes. Both are at most in proportion to the log
since the mount was made, and both are nothing after a new opening, which takes a second: that is their bound.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S: Final = 5.0
OVERLAY_FACTOR: Final = 2  # of the cache's budget, which everything but the overlay keeps to
HELD_BYTES_MAX: Final = 32 << 30  # of log since the mount was made


def outgrown(*, cached_bytes: int, cache_bytes: int, held_bytes: int) -> str | None:
    """Why the mount is to be made anew; None if it need not be. `held_bytes`: of log since it was made."""
    if cached_bytes > OVERLAY_FACTOR * cache_bytes:
        return f"its overlay has grown to {cached_bytes >> 20} MiB, for which it is opened anew"
    if held_bytes > HELD_BYTES_MAX:
        return f"it has held history for {held_bytes >> 30} GiB of log, for which it is opened anew"
    return None


async def wait_outgrown(look: Callable[[], tuple[int, int, int]], every_s: float = LOOK_S) -> str:
    """Looks now and then (cached, budget, held bytes) until it has outgrown: why."""
    while True:
        cached_bytes, cache_bytes, held_bytes = look()
        why = outgrown(cached_bytes=cached_bytes, cache_bytes=cache_bytes, held_bytes=held_bytes)
        if why is not None:
            return why
        await asyncio.sleep(every_s)
