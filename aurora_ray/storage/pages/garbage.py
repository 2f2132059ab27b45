"""Garbage collection: what no readable LSN needs goes.

The floor is the oldest readable LSN, always the end of a layer. It rises to the newest layer's end that lies below the
VDL and every read point with a live lease, and whose history is older than the retention or beyond its size. The
floor is made durable first; only then do log, file tables and versions below it go. Old versions of a page go when the
floor reaches its next image (`leftovers.py`); pages that get none are folded (`folding.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.storage.disk.keys import PAGE_KEY, lsn_key, page_key
from aurora_ray.storage.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aurora_ray.storage.segment.cuts import FileCut
    from aurora_ray.storage.segment.meta import Layer
    from aurora_ray.storage.segment.segment import Segment


def new_floor(
    layers: Sequence[Layer],
    *,
    floor_lsn: int,
    limit_lsn: int,
    tail_bytes: int,
    oldest_us: float,
    retention_bytes: int,
) -> int:
    """The floor that retention asks for; `limit_lsn` bounds it, history after `oldest_us` (unix) is kept if it fits."""
    newer_bytes = tail_bytes
    for layer in reversed(layers):
        if layer.end_lsn <= limit_lsn and (layer.time_us < oldest_us or newer_bytes > retention_bytes):
            return layer.end_lsn
        newer_bytes += layer.log_bytes
    return floor_lsn


def live_read_points(read_points: dict[str, tuple[int, float]], now_s: float) -> Iterable[int]:
    """LSNs still held; ends leases that ran out."""
    for holder in [holder for holder, (_, until_s) in read_points.items() if until_s <= now_s]:
        del read_points[holder]
    return [lsn for lsn, _ in read_points.values()]


async def collect(segment: Segment, floor_lsn: int) -> None:
    """Raises the floor to `floor_lsn`, a layer's end, and deletes below it. The caller holds `segment.background`."""
    meta = segment.meta
    if floor_lsn > meta.floor_lsn:
        assert any(layer.end_lsn == floor_lsn for layer in meta.layers), "page versions exist there"  # noqa: S101
        assert floor_lsn <= min(segment.scl, segment.vdl), "nothing that may be annulled is collected"  # noqa: S101
        changes = segment.store.batch()
        changes.delete_range("log", lsn_key(0), lsn_key(floor_lsn + 1))
        changes.delete_range("tables", lsn_key(0), lsn_key(floor_lsn))
        layers = tuple(layer for layer in meta.layers if layer.end_lsn > floor_lsn)
        time_us = next(layer.time_us for layer in meta.layers if layer.end_lsn == floor_lsn)
        segment.commit(changes, floor_lsn=floor_lsn, floor_time_us=time_us, layers=layers)
    pacer = Pacer(rest_s=segment.merging_rest_s)
    floor_lsn = segment.meta.floor_lsn
    for file_id in [file_id for file_id, cuts in segment.cuts.items() if cuts[0].lsn <= floor_lsn]:
        await _spend_cuts(segment, file_id)
        if pacer.due:
            await pacer.rest()
    await _delete_superseded(segment)


async def _delete_superseded(segment: Segment) -> None:
    """Deletes the versions before images that the floor has reached: no readable LSN needs them."""
    pacer = Pacer(rest_s=segment.merging_rest_s)
    changes = segment.store.page_batch()
    for file_id, page, lsn in segment.leftovers.superseding(segment.meta.floor_lsn):
        changes.delete_range("pages", page_key(file_id, page, 0), page_key(file_id, page, lsn))
        if pacer.due:
            await segment.store.write_pages(changes)
            changes = segment.store.page_batch()
            await pacer.rest()
    await segment.store.write_pages(changes)


async def _spend_cuts(segment: Segment, file_id: int) -> None:
    """Deletes the versions that cuts at or below the floor hide; the cuts themselves go with the next layer."""
    cuts = segment.cuts[file_id]
    spent = [cut for cut in cuts if cut.lsn <= segment.meta.floor_lsn]
    for cut in spent:
        if cut.dropped:
            changes = segment.store.page_batch()
            changes.delete_range("pages", page_key(file_id, 0, 0), page_key(file_id + 1, 0, 0))
            changes.write_without_log()
        else:
            await _delete_hidden(segment, file_id, cut)
    segment.spent_cuts += [(file_id, cut.lsn) for cut in spent]
    left = [cut for cut in cuts if cut not in spent]
    if left:
        segment.cuts[file_id] = left
    else:
        del segment.cuts[file_id]


async def _delete_hidden(segment: Segment, file_id: int, cut: FileCut) -> None:
    page_size = segment.meta.page_size
    first_page = -(-cut.new_size // page_size)
    changes = segment.store.page_batch()
    pacer = Pacer(rest_s=segment.merging_rest_s)
    start, stop = page_key(file_id, first_page, 0), page_key(file_id + 1, 0, 0)
    for key, _ in segment.store.scan("pages", start, stop):
        if PAGE_KEY.unpack(key)[2] <= cut.lsn:
            changes.delete("pages", key)
        if pacer.due:
            await pacer.rest()
    changes.write_without_log()
