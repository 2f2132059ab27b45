"""What layers leave behind in a segment's page versions, for garbage collection to clear away.

* An image makes all older versions of its page unneeded, once the floor has reached it. Coalescing knows its images, so
  they are remembered, layer by layer, and nothing has to be searched for.
* Pages that nobody changes any more keep a chain of deltas. Ranges of pages to which layers wrote are remembered with
  the LSN; when the floor has passed it, they are cold, and their chains are folded into images (`folding.py`).

Nothing here is stored. After a start, all ranges are looked at once, unless a note in the store says that all of them
were folded. What is forgotten is found again: by the page's next image, or when its range is cold the next time.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES_MAX: Final = 1 << 20  # remembered, a segment: 4 MiB
RANGES_MAX: Final = 1 << 16

Images = list[tuple[int, "array[int]"]]  # file id, pages (u32)


class Range(NamedTuple):
    """The pages [number * RANGE_PAGES, (number + 1) * RANGE_PAGES) of a file."""

    file_id: int
    number: int


class Leftovers:
    """Of one segment; the background's."""

    def __init__(self, *, all_folded: bool) -> None:
        """`all_folded`: no stored version is anything but the only image of its page."""
        self.all_known = all_folded  # ranges outside of `_ranges` have nothing to fold
        self.next_range = Range(0, 0)  # where the look at all ranges goes on until then
        self._images: deque[tuple[int, Images]] = deque()
        self._images_count = 0
        self._ranges: dict[Range, int] = {}  # LSN of the last layer that wrote there, in that order

    @property
    def empty(self) -> bool:
        """Whether nothing is left to clear away, now or later."""
        return self.all_known and not self._images and not self._ranges

    def note_layer(self, end_lsn: int, images: Images, ranges: list[Range]) -> None:
        """A layer is there, with these images (of pages that may have older versions) and versions in these ranges."""
        count = sum(len(pages) for _, pages in images)
        if count:
            self._images.append((end_lsn, images))
            self._images_count += count
        while self._images_count > IMAGES_MAX:
            self._images_count -= sum(len(pages) for _, pages in self._images.popleft()[1])
        for where in ranges:
            self.note_range(where, end_lsn)

    def note_range(self, where: Range, lsn: int) -> None:
        """Versions up to `lsn` stand there that may be folded when the floor has reached it."""
        self._ranges.pop(where, None)
        self._ranges[where] = lsn
        if len(self._ranges) > RANGES_MAX:
            del self._ranges[next(iter(self._ranges))]
            self.all_known, self.next_range = False, Range(0, 0)

    def superseding(self, floor_lsn: int) -> Iterator[tuple[int, int, int]]:
        """File id, page and LSN of images that the floor has reached; each is forgotten with its layer's last."""
        while self._images and self._images[0][0] <= floor_lsn:
            lsn, images = self._images[0]
            for file_id, pages in images:
                for page in pages:
                    yield file_id, page, lsn
            self._images_count -= sum(len(pages) for _, pages in self._images.popleft()[1])

    def cold(self, floor_lsn: int) -> Range | None:
        """A range to which nothing was written above the floor; None if there is none."""
        where = next(iter(self._ranges), None)
        return where if where is not None and self._ranges[where] <= floor_lsn else None

    def forget(self, where: Range) -> None:
        """It has been folded, or its file is gone."""
        self._ranges.pop(where, None)
