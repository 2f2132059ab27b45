"""The stretch of WAL between what was given out and what the volume's log has brought. Pure.

Only whole records are given out: behind the last whole one, a crash recovery of the next writer may put others in their
place. So what stands in the window may still change, what was given out never does (src/wal.c finds the ends).
"""

from __future__ import annotations

from typing import Final

from aurora_ray.engine._wal import walk
from aurora_ray.log.pages import apply_at

PAGE_BYTES: Final = 8192
Parameters = tuple[int, int, int, int, int]


class WalWindow:
    """WAL of a timeline from `base`, the page with the end of what was given out, on."""

    def __init__(self, position: int, segment_bytes: int, timeline: int = 1) -> None:
        """Begins at a segment's start, which may lie in the middle of a record."""
        self.timeline = timeline
        self.base = self.end = position
        self.parameters: Parameters | None = None  # of the last record given out that changes those settings
        self.copies = 0  # where the last record begins whose replay copies the files of a database
        self._segment_bytes = segment_bytes
        self._begins = True
        self._prev = 0
        self._content = bytearray()

    @property
    def loaded(self) -> int:
        """Behind the last page that is here."""
        return self.base + len(self._content)

    def put(self, position: int, pages: bytes) -> None:
        """Whole pages as they stand in the volume."""
        offset = self._reach(position, len(pages))
        self._content[offset : offset + len(pages)] = pages

    def change(self, position: int, batch: bytes, offset: int) -> None:
        """Applies the PAGE record at `offset` of a batch to the page at `position`; one before `base` is no concern.

        Raises MalformedError.
        """
        if position < self.base:
            return
        at = self._reach(position, PAGE_BYTES)
        page = self._content[at : at + PAGE_BYTES]
        apply_at(batch, offset, page)
        self._content[at : at + PAGE_BYTES] = page

    def _reach(self, position: int, nbytes: int) -> int:
        """The offset of a position; what lies between is zeros until it comes."""
        offset = position - self.base
        missing = offset + nbytes - len(self._content)
        if missing > 0:
            self._content.extend(bytes(missing))
        return offset

    def look(self) -> bool:
        """Finds how far whole records reach: `end`. True if it would go on with what lies behind `loaded`."""
        found, prev, more, parameters, copies = walk(
            self._content, self.base, self.end, self._prev, self._segment_bytes, self._begins
        )
        if found > self.end:
            self._begins = False
            self._prev = prev
        self.end = found
        self.parameters = parameters or self.parameters
        self.copies = copies or self.copies
        return more

    def cut(self, end: int) -> None:
        """The timeline was left at `end`, where a record ends: what stands behind that is not of it."""
        self.end = min(self.end, end)

    def take(self, position: int) -> bytes:
        """WAL from `position`, up to where it was taken before, to `end`; it need not be kept any longer."""
        if self.end > self.loaded:  # behind a switch to the next segment nothing is written any more
            self._reach(self.end - PAGE_BYTES, PAGE_BYTES)
        taken = bytes(memoryview(self._content)[position - self.base : self.end - self.base])
        keep = self.end - self.end % PAGE_BYTES
        del self._content[: keep - self.base]
        self.base = keep
        return taken
