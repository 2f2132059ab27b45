"""Indexes of log by page, built only when someone reads or coalesces.

The log of a segment is cut into layers: (floor, end 1], (end 1, end 2], ... and the tail, which has not been coalesced.
Page versions exist at the floor and at each end. Content at an LSN inside a layer is the version at the layer's start
with the layer's records up to the LSN on top, so one index of one layer is all a read needs. The tail's index grows as
the log does; those of older layers are kept while they fit.
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


class LayerCache:
    """Finds, builds and keeps the indexes of one segment."""

    def __init__(self, segment: Indexed, bytes_max: int) -> None:
        self._segment, self._bytes_max = segment, bytes_max
        self._tail: LayerIndex | None = None
        self._history: OrderedDict[int, LayerIndex] = OrderedDict()  # by end_lsn, the least recently used first

    def forget_tail(self) -> None:
        """The tail's log has changed (a truncation) or ended (a new layer)."""
        self._tail = None

    def forget_all(self) -> None:
        """The store has changed."""
        self._tail = None
        self._history.clear()

    async def at(self, lsn: int) -> tuple[int, LayerIndex | None]:
        """LSN of the page versions to start from, and the index of what comes on top.

        Raises OutOfRangeError, DamagedError.
        """
        while True:
            meta = self._segment.meta
            if lsn < meta.floor_lsn:
                raise OutOfRangeError(f"LSN {lsn} lies below {meta.floor_lsn}, the oldest that is kept")
            if lsn >= meta.coalesced_lsn:
                if self._tail is None or self._tail.start_lsn != meta.coalesced_lsn:
                    self._tail = LayerIndex(meta.coalesced_lsn)
                index, whole = self._tail, await self._extend(self._tail, min(lsn, self._segment.scl))
            else:
                ends = [meta.floor_lsn, *(layer.end_lsn for layer in meta.layers)]
                number = bisect_right(ends, lsn) - 1
                if ends[number] == lsn:
                    return lsn, None
                index, whole = await self._historic(ends[number], ends[number + 1])
            if whole:
                return index.start_lsn, index

    async def build(self, start_lsn: int, end_lsn: int, bytes_max: int) -> LayerIndex:
        """A new index of about `bytes_max` from `start_lsn` on, up to `end_lsn` at most."""
        index = LayerIndex(start_lsn)
        await self._extend(index, end_lsn, bytes_max)
        return index

    async def _historic(self, start_lsn: int, end_lsn: int) -> tuple[LayerIndex, bool]:
        index = self._history.get(end_lsn)
        if index is None:
            index = self._history[end_lsn] = LayerIndex(start_lsn)
        self._history.move_to_end(end_lsn)
        whole = await self._extend(index, end_lsn)
        if not whole:
            self._history.pop(end_lsn, None)
        while len(self._history) > 1 and sum(i.nbytes for i in self._history.values()) > self._bytes_max:
            self._history.popitem(last=False)
        return index, whole

    async def _extend(self, index: LayerIndex, to_lsn: int, bytes_max: int | None = None) -> bool:
        """Takes in log up to `to_lsn`, or `bytes_max`. False if what is missing was collected meanwhile, be it that
        another reader, who was to build the index, was cancelled: then look where to start from again.
        """
        if index.end_lsn >= to_lsn:
            return True
        pacer = Pacer()
        epoch = self._segment.meta.epochs.installed_epoch
        async with index.building:
            # The batch that holds `to_lsn` may end beyond it; it is taken in whole and filtered by LSN when read.
            up_to_lsn = self._segment.scl if bytes_max is None else to_lsn
            segment = self._segment
            for lsn, batch in segment.store.log_entries(index.end_lsn, up_to_lsn):
                if index.end_lsn >= to_lsn or (bytes_max is not None and index.nbytes >= bytes_max):
                    return True
                try:
                    index.add(batch)
                except MalformedError as error:
                    raise DamagedError((segment.volume, segment.group), Damage("log", lsn), str(error)) from error
                if pacer.due:
                    await pacer.rest()
            if index.start_lsn < segment.meta.floor_lsn and index.end_lsn < to_lsn:
                return False
            if index.end_lsn < to_lsn and bytes_max is None and epoch == segment.meta.epochs.installed_epoch:
                why = f"the chain of its log ends at {index.end_lsn}, it was complete up to {to_lsn}"
                raise DamagedError((segment.volume, segment.group), STORE, why)
        return True
