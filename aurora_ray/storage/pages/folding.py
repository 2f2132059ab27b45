"""Folding: the versions of a page that nobody changes any more become one image.

What is folded is what the floor has passed: the page as of its newest version at or below the floor, which stays at the
same LSN, so content at every readable LSN is what it was. Dead versions that are met on the way go as well. Runs one
range of pages at a time, in small steps and within a rate, in the segment's turn (`background.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import MalformedError
from aurora_ray.log.pages import apply_delta
from aurora_ray.storage.disk.damage import Damage, DamagedError
from aurora_ray.storage.disk.keys import (
    CRC_BYTES,
    DELTA,
    DELTA_HEAD,
    IMAGE_HEAD,
    PAGE_KEY,
    content_of,
    guarded,
    page_key,
)
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.segment.chains import RANGE_PAGES, Chain
from aurora_ray.storage.segment.leftovers import Range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.storage.segment.segment import Segment

_WRITE_BYTES: Final = 256 << 10
_CHAIN_SHARE: Final = 1 / 16  # of a page: deltas of fewer bytes may stay
_PAGE_LIMIT: Final = 1 << 32


class _Version(NamedTuple):
    lsn: int
    key: bytes
    value: bytes


async def fold_next(segment: Segment) -> int:
    """Folds the next range that is cold or, after a start, was not looked at yet; the bytes read, 0 if there is none.

    Raises DamagedError, WriteFailedError. The caller holds `segment.background`.
    """
    left = segment.leftovers
    where = left.cold(segment.meta.floor_lsn)
    if where is None and not left.all_known:
        where = _first_range(segment, left.next_range)
        if where is None:
            left.all_known = True
        else:
            left.next_range = _after(where)
    if where is None:
        return 0
    fold = _Fold(segment, where)
    await fold.run()
    left.forget(where)
    if fold.newest_lsn > segment.meta.floor_lsn:
        left.note_range(where, fold.newest_lsn)
    return max(1, fold.read_bytes)


def _first_range(segment: Segment, at: Range) -> Range | None:
    """The first one at or after `at` that has any version."""
    cursor = segment.store.cursor("pages")
    cursor.it.seek(page_key(at.file_id, at.number * RANGE_PAGES, 0))
    if not cursor.it.valid():
        cursor.check()
        return None
    file_id, page, _ = PAGE_KEY.unpack(cursor.it.key())
    return Range(file_id, page // RANGE_PAGES)


def _after(where: Range) -> Range:
    following = Range(where.file_id, where.number + 1)
    return following if following.number * RANGE_PAGES < _PAGE_LIMIT else Range(where.file_id + 1, 0)


class _Fold:
    """Of one range."""

    def __init__(self, segment: Segment, where: Range) -> None:
        self._segment, self._where = segment, where
        self._page_size = segment.meta.page_size
        self._changes = segment.store.page_batch()
        self.read_bytes = 0
        self.newest_lsn = 0

    async def run(self) -> None:
        segment = self._segment
        pacer = Pacer(rest_s=segment.merging_rest_s)
        for page, needed, dead_bytes, has_newer in self._pages():
            cleared = self._page(page, needed, dead_bytes, has_newer=has_newer)
            segment.store.cleared_bytes += cleared
            if self._changes.nbytes >= _WRITE_BYTES:
                await segment.store.write_pages(self._changes)
                self._changes = segment.store.page_batch()
            if pacer.due:
                await pacer.rest()
        await segment.store.write_pages(self._changes)

    def _pages(self) -> Iterator[tuple[int, list[_Version], int, bool]]:
        """Each page with the versions that make up its content as of the floor (the first is an image, or nothing was
        there before), the bytes of those before, and whether there are any above the floor.
        """
        file_id, first_page = self._where.file_id, self._where.number * RANGE_PAGES
        stop_page = first_page + RANGE_PAGES
        stop = page_key(file_id, stop_page, 0) if stop_page < _PAGE_LIMIT else page_key(file_id + 1, 0, 0)
        floor_lsn = self._segment.meta.floor_lsn
        current, needed, dead_bytes, has_newer = -1, list[_Version](), 0, False
        for key, value in self._segment.store.scan("pages", page_key(file_id, first_page, 0), stop):
            self.read_bytes += len(key) + len(value)
            _, page, lsn = PAGE_KEY.unpack(key)
            if page != current:
                if needed:
                    yield current, needed, dead_bytes, has_newer
                current, needed, dead_bytes, has_newer = page, [], 0, False
            self.newest_lsn = max(self.newest_lsn, lsn)
            if lsn > floor_lsn:
                has_newer = True
            else:
                if value[CRC_BYTES] != DELTA:
                    dead_bytes += sum(len(version.value) for version in needed)
                    needed = []
                needed.append(_Version(lsn, key, value))
        if needed:
            yield current, needed, dead_bytes, has_newer

    def _page(self, page: int, needed: list[_Version], dead_bytes: int, *, has_newer: bool) -> int:
        """Clears away what one page can do without; how many bytes that were."""
        file_id = self._where.file_id
        deltas = needed if needed[0].value[CRC_BYTES] == DELTA else needed[1:]
        delta_bytes = sum(len(version.key) + len(version.value) for version in deltas)
        oldest_key = page_key(file_id, page, 0)
        if has_newer or delta_bytes <= _CHAIN_SHARE * self._page_size:
            if dead_bytes:
                self._changes.delete_range("pages", oldest_key, needed[0].key)
            return dead_bytes
        base = needed[-1]
        image = IMAGE_HEAD + bytes(self._content(page, needed)).rstrip(b"\0")
        self._changes.delete_range("pages", oldest_key, base.key)
        self._changes.put("pages", base.key, guarded(base.key, image))
        if self._segment.chains.get(file_id, page) is not None:
            self._segment.chains.put(file_id, page, Chain(0, 0))
        return dead_bytes + sum(len(version.value) for version in needed)

    def _content(self, page: int, needed: list[_Version]) -> bytearray:
        """Raises DamagedError."""
        content = bytearray(self._page_size)
        for version in needed:
            try:
                value = content_of(version.key, version.value)
            except MalformedError as error:
                owner, item = (self._segment.volume, self._segment.group), Damage("page", self._where.file_id, page)
                raise DamagedError(owner, item, str(error)) from error
            if value[0] == DELTA:
                apply_delta(value[DELTA_HEAD.size :], content)
            else:
                content = bytearray(value[1:].ljust(self._page_size, b"\0"))
        return content
