"""Streams of log out of a segment: what is durable, as it comes, and what is stored, for peers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import OutOfRangeError, UnknownVolumeError
from aurora_ray.log.batch import decode_header
from aurora_ray.log.wire import log_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aurora_ray.storage.segment.segment import Segment

CHUNK_BYTES: Final = 1 << 20
HEARTBEAT_S: Final = 1.0


async def subscribe(segment: Segment, after_lsn: int) -> AsyncIterator[bytes]:
    """LogChunks of the durable log behind `after_lsn`, in order, until cancelled; heartbeats when nothing happens.

    Raises OutOfRangeError when the log no longer reaches back, UnknownVolumeError when the segment is replaced or
    dropped.
    """
    event = asyncio.Event()
    segment.box.subscribe(event)
    at_lsn = after_lsn
    told_vdl = -1
    try:
        while True:
            event.clear()
            vdl = segment.vdl
            for batches in _chunks(durable_log(segment, at_lsn)):
                at_lsn = decode_header(batches[-1]).flush_end
                told_vdl = vdl
                yield log_chunk(batches, vdl)
            if segment.vdl != told_vdl:
                told_vdl = segment.vdl
                yield log_chunk((), told_vdl)
            elif not await _set_within(event, HEARTBEAT_S):
                yield log_chunk((), segment.vdl)
    finally:
        segment.box.unsubscribe(event)


def durable_log(segment: Segment, after_lsn: int) -> Iterator[bytes]:
    """The batches behind `after_lsn` that are durable now and complete here. Raises as `require_log`."""
    require_log(segment, after_lsn)
    return _chain(segment, after_lsn, min(segment.scl, segment.vdl))


async def fetch_log(segment: Segment, after_lsn: int, up_to_lsn: int) -> AsyncIterator[bytes]:
    """LogChunks of what is stored in (after_lsn, up_to_lsn], durable or not. Raises OutOfRangeError."""
    require_log(segment, after_lsn)
    for batches in _chunks(segment.store.log_batches(after_lsn, up_to_lsn)):
        yield log_chunk(batches, segment.vdl)
        require_log(segment, decode_header(batches[-1]).flush_end)


def require_log(segment: Segment, after_lsn: int) -> None:
    """Raises OutOfRangeError or UnknownVolumeError unless all log behind `after_lsn` can be had from here."""
    if segment.closed:
        raise UnknownVolumeError(f"group {segment.group} was replaced or dropped on this node: subscribe again")
    if after_lsn < segment.meta.floor_lsn:
        raise OutOfRangeError(f"the log behind {after_lsn} is gone; it begins at {segment.meta.floor_lsn}")


def _chain(segment: Segment, after_lsn: int, up_to_lsn: int) -> Iterator[bytes]:
    """Batches in the chain of backlinks; `after_lsn` may be any LSN."""
    at_lsn = None
    for batch in segment.store.log_batches(after_lsn, up_to_lsn):
        header = decode_header(batch)
        if header.prev_lsn == at_lsn or (at_lsn is None and header.prev_lsn <= after_lsn):
            at_lsn = header.flush_end
            yield batch


def _chunks(batches: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    nbytes = 0
    for batch in batches:
        chunk.append(batch)
        nbytes += len(batch)
        if nbytes >= CHUNK_BYTES:
            yield chunk
            chunk, nbytes = [], 0
    if chunk:
        yield chunk


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
