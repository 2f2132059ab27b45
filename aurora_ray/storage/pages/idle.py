"""What a segment gives back when its commits pause: files of collected log, the write-ahead log, memory.

A busy segment keeps files to write over again, buffers, and indexes; one that has been busy once would keep them for
good. Looked at now and then, each thing on its own, and only where it is worth it: a trickle of redo changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.storage.disk.keys import FOLDED_KEY, MARK_VALUE, guarded

if TYPE_CHECKING:
    from aurora_ray.storage.segment.segment import Segment

_LOG_SLACK_BYTES: Final = 8 << 20  # more than this, of log that nobody needs, goes
_MEMORY_BYTES: Final = 1 << 20  # as much may stay in RocksDB's buffers
_PAGE_SLACK_BYTES: Final = 1 << 20  # as `_LOG_SLACK_BYTES`, of page versions ...
_PAGE_SLACK_SHARE: Final = 0.05  # ... and of those that are there


async def settle(segment: Segment) -> None:
    """Raises WriteFailedError, UnknownVolumeError. The caller holds `segment.background`."""
    store = segment.store
    _forget_indexes(segment)
    if store.buffered_bytes > _MEMORY_BYTES:
        await store.flush_all()
    retained_bytes = segment.tail_bytes + sum(layer.log_bytes for layer in segment.meta.layers)
    if store.log_bytes > retained_bytes + _LOG_SLACK_BYTES:
        await store.compact_log()
        # Not in the middle of whatever happened meanwhile.
        if store.log_bytes > retained_bytes + _LOG_SLACK_BYTES and not segment.is_busy:
            store.reopen_log()


def _forget_indexes(segment: Segment) -> None:
    segment.table = None  # what is known of chains stays: it is little, and to assume it anew each time makes them long
    if segment.layers is not None:
        segment.layers.forget_all()


async def note_folded(segment: Segment) -> None:
    """Notes that all versions are folded, once that has left the disk clean, so that a start need not look again.

    Raises as `settle`. The caller holds `segment.background`.
    """
    store, lsn = segment.store, segment.meta.coalesced_lsn
    if not segment.leftovers.empty or store.folded_lsn() == lsn:
        return
    if thorough_compaction_due(segment):
        return  # that comes first
    await store.flush_pages()
    changes = store.batch()
    changes.put("default", FOLDED_KEY, guarded(FOLDED_KEY, MARK_VALUE.pack(lsn)))
    changes.write()


def thorough_compaction_due(segment: Segment) -> bool:
    """Whether nothing is left to clear away, and what was cleared is still on the disk."""
    store = segment.store
    if not segment.leftovers.empty:
        return False
    slack = max(store.cleared_bytes, store.page_bytes - store.compacted_bytes)
    return slack > _PAGE_SLACK_BYTES and slack > _PAGE_SLACK_SHARE * store.page_bytes
