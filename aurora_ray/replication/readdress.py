"""The primary's redo as redo of a copy in another region: the same records at the same LSNs, in other envelopes.

A batch's envelope names the volume, the epoch of whoever appends it there, the group's batch before it there, and the
VDL *there*: a node believes what a batch says is durable, and what is durable in one region is not in another. The time
stays: it is when the primary wrote the flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import google_crc32c

from aurora_ray.errors import DivergedError, FencedError
from aurora_ray.log.batch import decode_header
from aurora_ray.log.flush import Flush
from aurora_ray.log.layout import BATCH_CRC_FROM, BATCH_HEADER
from aurora_ray.replication.succession import generation_of

if TYPE_CHECKING:
    from aurora_ray.log.flush import LogEnd

_MICROSECONDS: int = 1_000_000


class Envelope(NamedTuple):
    """Whose redo it becomes: `volume` is 16 bytes, `vdl` what is durable there."""

    volume: bytes
    epoch: int
    vdl: int


def readdress(flush: Flush, end: LogEnd, envelope: Envelope) -> Flush:
    """A flush that the primary's nodes told, as the next one behind `end`, which is not moved.

    Raises FencedError if it came to them in a later generation than that of the new envelope's epoch: then they are no
    primary's any more and may have put aside what was copied of them, so that what they hold now is none of its
    continuation. Raises DivergedError if it does not begin at the end: then this copy is no prefix of what it follows.
    """
    came_in, now = generation_of(_epoch(flush)), generation_of(envelope.epoch)
    if came_in > now:
        raise FencedError(f"fenced: what is followed is of generation {came_in} by now, and no primary in {now}")
    if flush.start != end.lsn:
        raise DivergedError(f"the copy ends at LSN {end.lsn}, but the next flush begins at {flush.start}")
    batches = {group: _readdress(batch, end.tail(group), envelope) for group, batch in flush.batches.items()}
    return Flush(flush.start, flush.end, batches)


def _readdress(batch: bytes, prev_lsn: int, envelope: Envelope) -> bytes:
    magic, _, version, flags, group, _, _, _, start, end, time_us, _, count, nbytes, ngroups, zero = (
        BATCH_HEADER.unpack_from(batch)
    )
    fields = (group, envelope.volume, envelope.epoch, prev_lsn, start, end, time_us, envelope.vdl)
    copy = bytearray(batch)
    BATCH_HEADER.pack_into(copy, 0, magic, 0, version, flags, *fields, count, nbytes, ngroups, zero)
    copy[4:8] = google_crc32c.value(bytes(copy[BATCH_CRC_FROM:])).to_bytes(4, "little")
    return bytes(copy)


def _epoch(flush: Flush) -> int:
    return decode_header(next(iter(flush.batches.values()))).epoch


def written_s(flush: Flush) -> float:
    """When the primary wrote it, in seconds since 1970 on its own clock."""
    return decode_header(next(iter(flush.batches.values()))).time_us / _MICROSECONDS
