"""Sweeping: page versions that never happened in a fork go before its first layer.

A fork of an LSN before what its parent had coalesced begins with page versions above its last layer (see
`storage/node/fork.py`). No read meets them, since reads begin at a layer's end; but a layer of the fork that ended
above one would seem to build on it. So all keys are looked at once, in small steps, and what lies above the last layer
is deleted. A crash in between has it done again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.storage.disk.keys import PAGE_KEY
from aurora_ray.storage.pacing import Pacer

if TYPE_CHECKING:
    from aurora_ray.storage.segment.segment import Segment

_WRITE_BYTES: Final = 256 << 10


async def sweep(segment: Segment) -> int:
    """Deletes all versions above the last layer, durably; how many. The caller holds `segment.background`.

    Raises DamagedError, WriteFailedError.
    """
    assert segment.meta.unswept, "a layer's own versions would go"  # noqa: S101
    coalesced_lsn, swept = segment.meta.coalesced_lsn, 0
    pacer = Pacer(rest_s=segment.merging_rest_s)
    position: bytes | None = b""
    while position is not None:
        position, found = _above(segment, position, coalesced_lsn, pacer)
        changes = segment.store.page_batch()
        for key in found:
            changes.delete("pages", key)
        swept += len(found)
        await segment.store.write_pages(changes)
        await pacer.rest()
    await segment.store.flush_pages()
    segment.chains.clear()
    segment.commit(unswept=False)
    return swept


def _above(segment: Segment, start: bytes, lsn: int, pacer: Pacer) -> tuple[bytes | None, list[bytes]]:
    """Keys of versions above `lsn` from `start` on, and where to go on (None: nowhere), until a pause is due."""
    found: list[bytes] = []
    cursor = segment.store.cursor("pages")
    cursor.it.seek(start)
    while cursor.it.valid():
        key = cursor.it.key()
        if PAGE_KEY.unpack(key)[2] > lsn:
            found.append(key)
        if pacer.due or len(found) * PAGE_KEY.size >= _WRITE_BYTES:
            return key + b"\0", found
        cursor.it.next()
    cursor.check()
    return None, found
