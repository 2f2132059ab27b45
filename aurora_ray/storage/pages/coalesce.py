"""Coalescing: turns a layer of log into page versions at the layer's end.

All changes of a page within the layer are merged into one version: a delta on the version before, or an image when
there was none, when a record carried one, or when the chain of deltas has grown long. Pages that were cut off within
the layer are not written at all; a cut (truncation, drop) is remembered to hide versions from before it.

Most pages need no look at what is stored: theirs is one more delta on a chain whose length is known. They go through
src/versions.c, many in a call, which leaves the others to the code here.

The layer never reaches beyond the VDL, so nothing that a recovery may annul gets into page versions. A crash in between
leaves versions at an LSN that is not a layer's end: correct for that LSN, merged over by the next attempt, never read.
"""

from __future__ import annotations

import asyncio
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError
from aurora_ray.log.compression import compress
from aurora_ray.log.pages import apply_delta, fits, merge_changes
from aurora_ray.storage._versions import versions_of
from aurora_ray.storage.disk.keys import (
    CUT_VALUE,
    DELTA,
    DELTA_HEAD,
    IMAGE_HEAD,
    cut_key,
    guarded,
    lsn_key,
    page_key,
)
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.reading import apply_to_table, stored_table
from aurora_ray.storage.pages.versions import Versions
from aurora_ray.storage.segment.chains import ASSUMED, CHAIN_DELTAS_MAX, RANGE_PAGES, Chain
from aurora_ray.storage.segment.layers import page_number_key, page_of
from aurora_ray.storage.segment.leftovers import Images, Range
from aurora_ray.storage.segment.meta import Layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.pages import Change
    from aurora_ray.storage.segment.cuts import FileCut
    from aurora_ray.storage.segment.layers import LayerIndex
    from aurora_ray.storage.segment.segment import Segment

_UNLIMITED: Final = 1 << 62
_WRITE_BYTES: Final = 256 << 10
_STEP_PAGES: Final = 128  # in one call: a fraction of a millisecond, and at most 1 MiB of images
_CUTS_A_STEP: Final = 256


class GaveWayError(Exception):
    """A layer was left undone: somebody whom a user waits for wants the segment. The next one will be made."""


async def coalesce(segment: Segment, bytes_max: int, anomalies: list[str]) -> bool:
    """Coalesces one layer of about `bytes_max`; whether there was one. The caller holds `segment.background`.

    Raises GaveWayError, which leaves what a crash would leave at that point.
    """
    assert segment.layers is not None  # noqa: S101 - set when the segment is opened
    if segment.meta.unswept:
        return False  # a version that never happened would show through beyond this layer's end
    start_lsn, end_lsn = segment.meta.coalesced_lsn, min(segment.scl, segment.vdl)
    flushed_lsn = segment.store.flushed_lsn()
    if flushed_lsn > start_lsn:
        # A crash cut the last attempt short after its pages were flushed. This one ends where that one did, whatever
        # `bytes_max` says: the mark of what is flushed may not step back, or it would seem that files are missing.
        if end_lsn < flushed_lsn:
            return False  # what is known to be durable has not reached there again yet
        end_lsn, bytes_max = flushed_lsn, _UNLIMITED
    pacer = Pacer(rest_s=segment.merging_rest_s)
    index = await segment.layers.build(start_lsn, end_lsn, bytes_max, pacer)
    if index.end_lsn == start_lsn:
        return False
    segment.versions_lsn = max(segment.versions_lsn, index.end_lsn)
    try:
        writer = _LayerWriter(segment, index)
        cuts = await writer.write()
        await segment.store.flush_pages(index.end_lsn)
        await _forget_spent_cuts(segment)
        table = await _table_at_end(segment, index, anomalies) if segment.group == 0 else None
        if table is not None:
            await _write_table(segment, table)
        _commit(segment, index, table, cuts)
    except BaseException:
        segment.chains.clear()  # they are of a layer that is not there
        raise
    segment.gave_way = False
    segment.leftovers.note_layer(index.end_lsn, writer.images, writer.ranges)
    await _let_go(index)
    return True


async def _forget_spent_cuts(segment: Segment) -> None:
    """Deletes cuts that hide nothing any more, now that the deletion of what they hid is durable."""
    pacer = Pacer(rest_s=segment.merging_rest_s)
    while segment.spent_cuts:
        changes = segment.store.batch()
        for file_id, lsn in segment.spent_cuts[-_CUTS_A_STEP:]:
            changes.delete("default", cut_key(file_id, lsn))
        changes.write()
        del segment.spent_cuts[-_CUTS_A_STEP:]
        if pacer.due:
            await pacer.rest()


async def _let_go(index: LayerIndex) -> None:
    """Frees an index that nobody else has, in steps: at once, its million objects would take tens of milliseconds."""
    pacer = Pacer()
    pages = index.pages
    while pages:
        for _ in range(min(len(pages), _STEP_PAGES)):
            pages.popitem()
        if pacer.due:
            await pacer.rest()


async def _table_at_end(segment: Segment, index: LayerIndex, anomalies: list[str]) -> FileTable:
    table = segment.table
    if table is None or table.lsn != index.start_lsn:
        table = stored_table(segment, index.start_lsn)
    segment.table = None
    pacer = Pacer(rest_s=segment.merging_rest_s)
    for _, buf, at in index.table:
        apply_to_table(table, buf, at, anomalies)
        if pacer.due:
            await pacer.rest()
    table.lsn = index.end_lsn
    return table


async def _write_table(segment: Segment, table: FileTable) -> None:
    """Durably; until the layer is there, nobody looks for it."""
    pacer = Pacer(rest_s=segment.merging_rest_s)
    parts = []
    for part in table.packing():
        parts.append(part)
        if pacer.due:
            await pacer.rest()
    packed = await asyncio.to_thread(compress, b"".join(parts))
    key = lsn_key(table.lsn)
    changes = segment.store.batch()
    changes.put("tables", key, guarded(key, packed))
    changes.write()
    await segment.store.sync_log()


def _commit(segment: Segment, index: LayerIndex, table: FileTable | None, cuts: Sequence[tuple[int, FileCut]]) -> None:
    """From here on reads use the new versions; one synced write, so a crash falls on one side or the other."""
    assert segment.layers is not None  # noqa: S101 - set when the segment is opened
    layer = Layer(index.end_lsn, index.time_us, index.nbytes)
    segment.commit(layers=(*segment.meta.layers, layer))
    for file_id, cut in cuts:
        segment.cuts.setdefault(file_id, []).append(cut)
    segment.table = table
    segment.tail_bytes = max(0, segment.tail_bytes - index.nbytes)
    segment.layers.layer_made()


class _LayerWriter:
    """Writes the versions of one layer."""

    def __init__(self, segment: Segment, index: LayerIndex) -> None:
        self._segment, self._index = segment, index
        self._page_size = segment.meta.page_size
        self._cursor: Versions | None = None
        self._chains = segment.chains
        self._changes = segment.store.page_batch()
        self._pacer = Pacer(rest_s=segment.merging_rest_s)
        self.images: Images = []  # of pages that may have older versions
        self.ranges: list[Range] = []  # with new versions

    @property
    def _versions(self) -> Versions:
        """As of the last flush: an iterator from before would step over all that was written since, at every seek."""
        if self._cursor is None:
            self._cursor = Versions(self._segment)
        return self._cursor

    async def write(self) -> list[tuple[int, FileCut]]:
        """All of them, not yet durable; the cuts (file id, cut) to remember once the layer is in force."""
        index = self._index
        kept_cuts = await self._keep_cuts()
        async for file_id, numbers in _steps(chain(index.pages, self._boundary_pages()), self._pause):
            where = Range(file_id, page_of(numbers[0]) // RANGE_PAGES)
            if not self.ranges or self.ranges[-1] != where:
                self.ranges.append(where)
            cuts = index.cuts.get(file_id)
            if cuts is None:
                await self._pages(file_id, numbers)
            else:
                for number in numbers:
                    self._page_with_cuts(file_id, page_of(number), index.pages.get(number, ()), cuts)
                    await self._pause()
            if self._changes.nbytes >= _WRITE_BYTES:
                await self._flush()
            await self._pause()
        await self._flush()
        for file_id in index.cuts:
            self._chains.forget_file(file_id)
            await self._pause()
        return kept_cuts

    async def _pause(self) -> None:
        if not self._pacer.due:
            return
        await self._pacer.rest()
        if self._segment.awaited and not self._segment.gave_way:
            self._segment.gave_way = True
            raise GaveWayError

    async def _flush(self) -> None:
        changes, self._changes = self._changes, self._segment.store.page_batch()
        self._cursor = None
        await self._segment.store.write_pages(changes)

    async def _keep_cuts(self) -> list[tuple[int, FileCut]]:
        """Remembers, durably with the layer, cuts of files that have versions; others have nothing to hide."""
        kept: list[tuple[int, FileCut]] = []
        changes = self._segment.store.batch()
        for file_id, cuts in self._index.cuts.items():
            if self._versions.has_file(file_id):
                for cut in cuts:
                    kept.append((file_id, cut))
                    key = cut_key(file_id, cut.lsn)
                    changes.put("default", key, guarded(key, CUT_VALUE.pack(cut.new_size, cut.dropped)))
            if self._pacer.due:
                changes.write()
                changes = self._segment.store.batch()
                await self._pacer.rest()
        changes.write()
        return kept

    def _boundary_pages(self) -> set[int]:
        """Pages that a truncation cuts in the middle: they get a version even if nothing else changed them."""
        size = self._page_size
        return {
            page_number_key(file_id, cut.new_size // size)
            for file_id, cuts in self._index.cuts.items()
            for cut in cuts
            if cut.new_size % size
        }

    async def _pages(self, file_id: int, numbers: list[int]) -> None:
        """Pages of one range, without cuts in this layer. Where older cuts hide versions, nothing can be assumed."""
        index, known = self._index, self._chains.range_of(file_id, page_of(numbers[0]))
        assumed = ASSUMED if self._chains.may_assume and file_id not in self._segment.cuts else 0
        versions, images, left = versions_of(
            index.pages, numbers, file_id, index.end_lsn, self._page_size, known, assumed, CHAIN_DELTAS_MAX
        )
        self._changes.put_all("pages", versions)
        if images:
            self.images.append((file_id, array("I", map(page_of, images))))
        for number in left:
            self._page(file_id, page_of(number), index.pages[number], base_is_zeros=False)
            await self._pause()

    def _page_with_cuts(self, file_id: int, page: int, changes: Sequence[Change], cuts: Sequence[FileCut]) -> None:
        size, offset = self._page_size, page * self._page_size
        gone_lsn = max((cut.lsn for cut in cuts if cut.new_size <= offset), default=0)
        live = [change for change in changes if change[0] > gone_lsn]
        partial = [(c.lsn, c.new_size - offset) for c in cuts if c.lsn > gone_lsn and 0 < c.new_size - offset < size]
        if not live and (gone_lsn or not partial):
            return
        if not live and self._chain(file_id, page) is None:
            return
        zero_from = []
        lsns = [0, *(change[0] for change in live)]
        for number, lsn in enumerate(lsns):
            until = lsns[number + 1] if number + 1 < len(lsns) else None
            here = [keep for cut_lsn, keep in partial if cut_lsn > lsn and (until is None or cut_lsn < until)]
            zero_from.append(min(here, default=size))
        self._page(file_id, page, live, base_is_zeros=bool(gone_lsn), zero_from=zero_from)

    def _page(
        self,
        file_id: int,
        page: int,
        changes: Sequence[Change],
        *,
        base_is_zeros: bool,
        zero_from: Sequence[int] | None = None,
    ) -> None:
        """Merges and writes one page's version at the end of the layer."""
        start_lsn = self._index.start_lsn
        base = None if base_is_zeros else self._chain(file_id, page)
        try:
            merged = merge_changes(changes, self._page_size, base_is_zeros=base is None, zero_from=zero_from)
        except MalformedError:
            kept = [number for number, (_, buf, at) in enumerate(changes) if fits(buf, at, self._page_size)]
            if not kept:
                return
            changes = [changes[number] for number in kept]
            zero_from = None if zero_from is None else _thinned(zero_from, kept)
            merged = merge_changes(changes, self._page_size, base_is_zeros=base is None, zero_from=zero_from)
        if merged.is_image or base is None:
            self._put_image(file_id, page, merged.data, has_older=base is not None)
            return
        delta_bytes = base.delta_bytes + len(merged.data)
        if base.deltas + 1 >= CHAIN_DELTAS_MAX or delta_bytes >= self._page_size:
            content = self._versions.content(file_id, page, start_lsn)
            assert content is not None  # noqa: S101 - `base` exists
            apply_delta(merged.data, content)
            self._put_image(file_id, page, bytes(content).rstrip(b"\0"), has_older=True)
        else:
            self._put(file_id, page, Chain(base.deltas + 1, delta_bytes), merged.data)

    def _chain(self, file_id: int, page: int) -> Chain | None:
        """Of the version before this layer; None if there is none."""
        known = self._chains.get(file_id, page)
        return known if known is not None else self._versions.newest(file_id, page, self._index.start_lsn)

    def _put(self, file_id: int, page: int, chain: Chain, data: bytes) -> None:
        key = page_key(file_id, page, self._index.end_lsn)
        head = DELTA_HEAD.pack(DELTA, 0, *chain) if chain.deltas else IMAGE_HEAD
        self._changes.put("pages", key, guarded(key, head + data))
        self._chains.put(file_id, page, chain)

    def _put_image(self, file_id: int, page: int, image: bytes, *, has_older: bool) -> None:
        self._put(file_id, page, Chain(0, 0), image)
        if has_older:
            self.images.append((file_id, array("I", [page])))


async def _steps(numbers: Iterable[int], pause: Callable[[], Awaitable[None]]) -> AsyncIterator[tuple[int, list[int]]]:
    """Numbers of pages (see `page_number_key`), ascending, in parts: of one file, of one range and at most _STEP_PAGES
    each. They are put in order range by range: a sort of all would take tens of milliseconds.
    """
    ranges: dict[int, set[int]] = {}
    for at, number in enumerate(numbers):
        ranges.setdefault(number // RANGE_PAGES, set()).add(number)
        if not at % RANGE_PAGES:
            await pause()
    for begin in sorted(ranges):
        ordered = sorted(ranges.pop(begin))
        for at in range(0, len(ordered), _STEP_PAGES):
            yield ordered[0] >> 32, ordered[at : at + _STEP_PAGES]


def _thinned(zero_from: Sequence[int], kept: Sequence[int]) -> list[int]:
    """`zero_from` for only the `kept` changes: a cut after a change that is left out falls to the one before."""
    bounds = [0, *(number + 1 for number in kept), len(zero_from)]
    return [min(zero_from[bounds[i] : bounds[i + 1]]) for i in range(len(bounds) - 1)]
