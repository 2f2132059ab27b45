"""Indexes of log by page, built only when someone reads or coalesces.

The log of a segment is cut into layers: (floor, end 1], (end 1, end 2], ... and the tail, which has not been coalesced.
Page versions exist at the floor and at each end. Content at an LSN inside a layer is the version at the layer's start
with the layer's records up to the LSN on top, so one index of one layer is all a read needs; those of older layers are
kept while they fit.

The tail has as many indexes, one behind the other, as its log makes parts of TAIL_PART_BYTES. They grow as the log
does, and a new layer takes the first of them away: what is indexed stays so. If a layer's end began them all anew, a
tail of which layers are made while it is indexed could never be read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from aurora_ray.errors import MalformedError, OutOfRangeError
from aurora_ray.log.batch import inflate, payload, verify
from aurora_ray.log.layout import RECORD_HEADER_BYTES, SIZE_BODY, RecordType
from aurora_ray.log.pages import Change, scan
from aurora_ray.storage.disk.damage import STORE, Damage, DamagedError
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.segment.cuts import FileCut

if TYPE_CHECKING:
    from aurora_ray.storage.disk.store import SegmentStore
    from aurora_ray.storage.segment.meta import SegmentMeta

TAIL_PART_BYTES: Final = 8 << 20  # of records: a layer has a few, so that little of what is indexed is indexed again
_TRUNCATE: Final = int(RecordType.TRUNCATE)
_DROP: Final = int(RecordType.DROP)


def page_number_key(file_id: int, page: int) -> int:
    """One integer for a page of a file: cheaper to hash than a pair."""
    return file_id << 32 | page


def page_of(number: int) -> int:
    """The page in what `page_number_key` made; the file id is `number >> 32`."""
    return number & 0xFFFFFFFF


class LayerIndex:
    """The records of (start_lsn, end_lsn], by page; everything in LSN order."""

    def __init__(self, start_lsn: int) -> None:
        self.start_lsn = self.end_lsn = start_lsn
        self.nbytes = 0  # of records, inflated: what this index holds in memory
        self.time_us = 0  # of the last batch
        self.pages: dict[int, list[Change]] = {}
        self.cuts: dict[int, list[FileCut]] = {}
        self.table: list[Change] = []  # records of the file table
        self.building = asyncio.Lock()

    def add(self, batch: bytes) -> bool:
        """Takes in a batch; False, and nothing done, if it is not the next of the chain. Raises MalformedError."""
        header = verify(batch)
        if header.prev_lsn != self.end_lsn:
            return False
        self._scan(inflate(batch) if header.compressed else batch, header.group)
        self.end_lsn = header.flush_end
        self.time_us = header.time_us
        self.nbytes += header.payload_bytes
        return True

    def _scan(self, batch: bytes, group: int) -> None:
        begin = len(batch) - len(payload(batch))
        for kind, lsn, file_id, at, length in scan(batch, begin, self.pages):
            if group == 0:
                self.table.append((lsn, batch, at))
            if kind == _TRUNCATE and length >= RECORD_HEADER_BYTES + SIZE_BODY.size:
                new_size = SIZE_BODY.unpack_from(batch, at + RECORD_HEADER_BYTES)[0]
                self.cuts.setdefault(file_id, []).append(FileCut(lsn, new_size, dropped=False))
            elif kind == _DROP:
                self.cuts.setdefault(file_id, []).append(FileCut(lsn, 0, dropped=True))


class Indexed(Protocol):
    """What is needed of a segment: its log, and how far it reaches."""

    volume: bytes
    group: int
    store: SegmentStore
    meta: SegmentMeta
    scl: int


class _Tail:
    """The indexes of the log behind the last layer: each begins where the one before ends."""

    def __init__(self) -> None:
        self.parts: list[LayerIndex] = []
        self.building = asyncio.Lock()  # of the last part, or the first

    def covers(self, start_lsn: int, to_lsn: int) -> bool:
        """Whether (start_lsn, to_lsn] is indexed, and nothing from before it."""
        parts = self.parts
        if not parts or parts[0].start_lsn != start_lsn or parts[-1].end_lsn < to_lsn:
            return False
        return len(parts) == 1 or parts[0].end_lsn == parts[1].start_lsn

    def begin_at(self, start_lsn: int) -> None:
        """Forgets what lies before; of a part that a layer's end cuts, the rest has to be indexed again."""
        parts = self.parts
        while parts and parts[0].start_lsn < start_lsn:
            cut = parts.pop(0)
            if cut.end_lsn > start_lsn:
                parts.insert(0, LayerIndex(start_lsn))
        if not parts or parts[0].start_lsn > start_lsn:
            parts[:] = [LayerIndex(start_lsn)]


class LayerCache:
    """Finds, builds and keeps the indexes of one segment."""

    def __init__(self, segment: Indexed, bytes_max: int) -> None:
        self._segment, self._bytes_max = segment, bytes_max
        self._tail = _Tail()
        self._history: OrderedDict[int, LayerIndex] = OrderedDict()  # by end_lsn, the least recently used first
        self.indexed_bytes = 0  # of records, for reads, ever

    def forget_tail(self) -> None:
        """The tail's log has changed: a truncation."""
        self._tail = _Tail()

    def layer_made(self) -> None:
        """A new layer has taken the beginning of the tail; whoever indexes it at the moment sees to that afterwards."""
        if not self._tail.building.locked():
            self._tail.begin_at(self._segment.meta.coalesced_lsn)

    def forget_all(self) -> None:
        """The store has changed."""
        self.forget_tail()
        self._history.clear()

    async def at(self, lsn: int) -> tuple[int, tuple[LayerIndex, ...]]:
        """LSN of the page versions to start from, and the indexes of what comes on top, one behind the other.

        Raises OutOfRangeError, DamagedError.
        """
        while True:
            meta = self._segment.meta
            if lsn < meta.floor_lsn:
                raise OutOfRangeError(f"LSN {lsn} lies below {meta.floor_lsn}, the oldest that is kept")
            if lsn >= meta.coalesced_lsn:
                parts = await self._tail_to(meta.coalesced_lsn, min(lsn, self._segment.scl))
                if parts is not None and self._segment.meta.coalesced_lsn == meta.coalesced_lsn:
                    return meta.coalesced_lsn, parts
                continue
            ends = [meta.floor_lsn, *(layer.end_lsn for layer in meta.layers)]
            number = bisect_right(ends, lsn) - 1
            if ends[number] == lsn:
                return lsn, ()
            index, whole = await self._historic(ends[number], ends[number + 1])
            if whole:
                return index.start_lsn, (index,)

    async def build(self, start_lsn: int, end_lsn: int, bytes_max: int, pacer: Pacer | None = None) -> LayerIndex:
        """A new index of about `bytes_max` from `start_lsn` on, up to `end_lsn` at most."""
        index = LayerIndex(start_lsn)
        async with index.building:
            await self._extend(index, end_lsn, end_lsn, bytes_max, pacer or Pacer())
        return index

    async def _tail_to(self, start_lsn: int, to_lsn: int) -> tuple[LayerIndex, ...] | None:
        """The indexes of (start_lsn, to_lsn]; None if it is to be seen anew where to start from."""
        tail = self._tail
        if not tail.covers(start_lsn, to_lsn):
            async with tail.building:
                if tail is not self._tail or self._segment.meta.coalesced_lsn != start_lsn:
                    return None
                tail.begin_at(start_lsn)
                if not await self._grow(tail, to_lsn):
                    return None
        return tuple(tail.parts)

    async def _grow(self, tail: _Tail, to_lsn: int) -> bool:
        """Indexes what is missing of the tail: in its first part, if a layer took some of it, and behind its last.
        Whoever is cut off leaves what he has done."""
        if len(tail.parts) > 1:
            end_lsn = tail.parts[1].start_lsn
            if not await self._whole(tail.parts[0], end_lsn, end_lsn):
                return False
        while tail is self._tail:
            last = tail.parts[-1]
            if last.end_lsn >= to_lsn:
                return True
            if last.nbytes >= TAIL_PART_BYTES:
                tail.parts.append(last := LayerIndex(last.end_lsn))
            if not await self._whole(last, to_lsn, self._segment.scl, TAIL_PART_BYTES):
                return False
        return False

    async def _historic(self, start_lsn: int, end_lsn: int) -> tuple[LayerIndex, bool]:
        index = self._history.get(end_lsn)
        if index is None:
            index = self._history[end_lsn] = LayerIndex(start_lsn)
        self._history.move_to_end(end_lsn)
        async with index.building:
            whole = await self._whole(index, end_lsn, self._segment.scl)
        if not whole:
            self._history.pop(end_lsn, None)
        while len(self._history) > 1 and sum(i.nbytes for i in self._history.values()) > self._bytes_max:
            self._history.popitem(last=False)
        return index, whole

    async def _whole(self, index: LayerIndex, to_lsn: int, up_to_lsn: int, bytes_max: int | None = None) -> bool:
        """As `_extend`; raises DamagedError if the log has a gap. False if what is missing was collected, or annulled,
        meanwhile, be it that another reader, who was to build the index, was cancelled: then look where to start from
        again."""
        segment = self._segment
        epoch, before = segment.meta.epochs.installed_epoch, index.nbytes
        try:
            if await self._extend(index, to_lsn, up_to_lsn, bytes_max, Pacer()):
                return True
        finally:
            self.indexed_bytes += index.nbytes - before
        if index.start_lsn >= segment.meta.floor_lsn and epoch == segment.meta.epochs.installed_epoch:
            why = f"the chain of its log ends at {index.end_lsn}, it was complete up to {to_lsn}"
            raise DamagedError((segment.volume, segment.group), STORE, why)
        return False

    async def _extend(
        self, index: LayerIndex, to_lsn: int, up_to_lsn: int, bytes_max: int | None, pacer: Pacer
    ) -> bool:
        """Takes in log up to `to_lsn`, or `bytes_max`; False if there is less. The caller holds the index's lock.

        The batch that holds `to_lsn` may end beyond it, at `up_to_lsn` at most; it is taken in whole and filtered by
        LSN when read.
        """
        segment = self._segment
        if index.end_lsn >= to_lsn:
            return True
        for lsn, batch in segment.store.log_entries(index.end_lsn, up_to_lsn):
            try:
                index.add(batch)
            except MalformedError as error:
                raise DamagedError((segment.volume, segment.group), Damage("log", lsn), str(error)) from error
            if index.end_lsn >= to_lsn or (bytes_max is not None and index.nbytes >= bytes_max):
                return True
            if pacer.due:
                await pacer.rest()
        return False
