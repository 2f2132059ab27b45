"""Where a segment's log stands at an LSN or at a time: the end of its last batch at or below.

Batches say when they were written, so the log is its own index of times: a search by halves over what is stored, some
forty looks however long it is. The times rise with the log also where writers' clocks went back: each writer goes on
from the last time that its recovery found (`volume/write/redo.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import MalformedError
from aurora_ray.log.batch import BatchHeader, decode_header
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import LSN_KEY, LSN_MAX, lsn_key

if TYPE_CHECKING:
    from aurora_ray.storage.segment.segment import Segment


class Place(NamedTuple):
    """The end of a batch, and when it was written (microseconds since 1970; 0: not known)."""

    lsn: int
    time_us: int


def at_lsn(segment: Segment, lsn: int) -> Place:
    """The last batch that ends at or below `lsn`, whether gaps lie before it or not; the floor if that one is gone.

    Raises DamagedError.
    """
    cursor = segment.store.cursor("log")
    cursor.it.seek_for_prev(lsn_key(lsn))
    if not cursor.it.valid():
        cursor.check()
        return floor(segment)
    end = LSN_KEY.unpack(cursor.it.key())[0]
    return Place(end, _header(segment, end, cursor.it.value()).time_us) if end > floor(segment).lsn else floor(segment)


def at_time(segment: Segment, time_us: int, durable_lsn: int = 0) -> Place:
    """The last durable batch that was written by then; the floor if all that is stored was written later.
    `durable_lsn`: what the caller knows to be durable.

    Raises DamagedError.
    """
    cursor = segment.store.cursor("log")

    def first_behind(lsn: int) -> BatchHeader | None:
        cursor.it.seek(lsn_key(lsn + 1))
        if not cursor.it.valid():
            cursor.check()
            return None
        return _header(segment, LSN_KEY.unpack(cursor.it.key())[0], cursor.it.value())

    found = floor(segment)
    low, high = (
        found.lsn,
        min(segment.scl, max(segment.vdl, durable_lsn)),
    )  # the batch ends in (low, high], or it is `found`
    while low < high:
        middle = (low + high) // 2
        batch = first_behind(middle)
        if batch is not None and batch.flush_end <= high and batch.time_us <= time_us:
            found = Place(batch.flush_end, batch.time_us)
            low = batch.flush_end
        else:
            high = middle
    return found


def floor(segment: Segment) -> Place:
    """Where history begins here."""
    meta = segment.meta
    return Place(meta.floor_lsn, meta.floor_time_us)


def oldest_time_us(segment: Segment) -> int:
    """From when on it is known what was there; 0 if nothing says so. Raises DamagedError."""
    if segment.meta.floor_time_us:
        return segment.meta.floor_time_us
    for lsn, batch in segment.store.log_entries(segment.meta.floor_lsn, LSN_MAX):
        return _header(segment, lsn, batch).time_us
    return 0


def last_time_us(segment: Segment) -> int:
    """When the last batch that is here was written, whether gaps lie before it or not. Raises DamagedError."""
    for lsn, batch in segment.store.log_entries(max(0, segment.highest_lsn - 1), LSN_MAX):
        return _header(segment, lsn, batch).time_us
    return segment.meta.floor_time_us


def _header(segment: Segment, lsn: int, batch: bytes) -> BatchHeader:
    try:
        return decode_header(batch)
    except MalformedError as error:
        raise DamagedError((segment.volume, segment.group), Damage("log", lsn), str(error)) from error
