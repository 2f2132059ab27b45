"""A segment's content as of an LSN, page by page in key order: what is copied to peers and compared with theirs.

How a node stores a page (layers, deltas) is its own affair; what the page *is* at an LSN is the same on every copy. So
copies are compared, and new ones filled, by content.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.storage.disk.keys import PAGE_KEY, page_key
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.reading import View
from aurora_ray.storage.segment.layers import page_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aurora_ray.storage.segment.segment import Segment
    from aurora_ray.storage.v1 import storage_pb2 as pb

_DIGEST_BYTES: Final = 16
_KEY_BYTES: Final = 12  # of a page, without the LSN
_PAGE_MAX: Final = (1 << 32) - 1


class PageKey(NamedTuple):
    """A page's place in key order."""

    file_id: int
    page: int


FIRST: Final = PageKey(0, 0)


def key_range(request: pb.CopySegmentRequest | pb.DigestRequest) -> tuple[PageKey, PageKey | None]:
    """The range that a request names; None: to the end."""
    stop = PageKey(request.stop.file_id, request.stop.page) if request.HasField("stop") else None
    return PageKey(request.start.file_id, request.start.page), stop


class Walk:
    """The pages in [start, stop) as of `lsn`, some at a time. Keeps nothing open between steps."""

    def __init__(self, segment: Segment, lsn: int, start: PageKey = FIRST, stop: PageKey | None = None) -> None:
        self.position = start  # the first key not looked at yet
        self.done = False
        self._segment, self._lsn, self._stop = segment, lsn, stop
        self._new: list[PageKey] | None = None  # pages that only the log has, so far

    async def step(self, pages_max: int) -> list[tuple[PageKey, bytearray]]:
        """Up to `pages_max` pages that were ever written; none and `done` at the end.

        Raises OutOfRangeError or DamagedError.
        """
        segment = self._segment
        found: list[tuple[PageKey, bytearray]] = []
        pacer = Pacer(rest_s=segment.rest_s)
        while True:
            view = await View.of(segment, self._lsn)
            if self._new is None:
                self._new = sorted(key for key in map(_from_number, view.changed()) if self._within(key))
            for key in self._keys():
                content = view.page(*key)
                self.position = _after(key)
                if content is not None:
                    found.append((key, content))
                if pacer.due or len(found) >= pages_max:
                    break
            else:
                self.done = True
                return found
            if len(found) >= pages_max:
                return found
            await pacer.rest()

    def _within(self, key: PageKey) -> bool:
        return key >= self.position and (self._stop is None or key < self._stop)

    def _keys(self) -> Iterator[PageKey]:
        """Keys from the position on, of versions and of log, each once."""
        last = None
        new = self._new or []
        new = new[bisect_left(new, self.position) :]
        for key in heapq.merge(stored_keys(self._segment, self.position, self._stop), new):
            if key != last:
                last = key
                yield key


def stored_keys(segment: Segment, start: PageKey, stop: PageKey | None = None) -> Iterator[PageKey]:
    """Pages in [start, stop) that have any version, as of now. Raises DamagedError."""
    cursor = segment.store.cursor("pages")
    cursor.it.seek(page_key(start.file_id, start.page, 0))
    last = b""
    while cursor.it.valid():
        prefix = cursor.it.key()[:_KEY_BYTES]
        if prefix != last:
            file_id, page, _ = PAGE_KEY.unpack(cursor.it.key())
            key = PageKey(file_id, page)
            if stop is not None and key >= stop:
                return
            last = prefix
            yield key
        cursor.it.next()
    cursor.check()


def _from_number(number: int) -> PageKey:
    return PageKey(number >> 32, page_of(number))


def _after(key: PageKey) -> PageKey:
    """The key that follows, whether there is such a page or not."""
    return PageKey(key.file_id, key.page + 1) if key.page < _PAGE_MAX else PageKey(key.file_id + 1, 0)


class ContentDigest:
    """A running BLAKE2b-128 over pages in key order."""

    def __init__(self) -> None:
        self.pages = 0
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, key: PageKey, content: bytes | bytearray) -> None:
        """Takes in a whole page."""
        self._hash.update(PAGE_KEY.pack(key.file_id, key.page, 0)[:_KEY_BYTES])
        self._hash.update(content)
        self.pages += 1

    def digest(self) -> bytes:
        """So far."""
        return self._hash.digest()


async def log_digest(segment: Segment, after_lsn: int, up_to_lsn: int) -> tuple[bytes, int]:
    """BLAKE2b-128 over the batches with flush_end in the range, and how many there are."""
    pacer = Pacer(rest_s=segment.rest_s)
    running, count = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
    for batch in segment.store.log_batches(after_lsn, up_to_lsn):
        running.update(batch)
        count += 1
        if pacer.due:
            await pacer.rest()
    return running.digest(), count
