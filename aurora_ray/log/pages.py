"""Merging several changes of one page into one, for coalescing.

A change is a PAGE record still inside its batch: (buffer, offset of the record). Nothing is decoded into objects here:
this is what storage nodes spend most of their background CPU on.

A merged change is an image (trailing zeros left out) or a delta: u16 count, count * (u16 offset, u16 length), then the
 ranges' bytes one after the other.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import MalformedError
from aurora_ray.log.layout import IMAGE_LENGTH, RECORD_HEADER, RECORD_HEADER_BYTES, RecordFlag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.record import Buffer

_COUNT = Struct("<H")
_FULL = int(RecordFlag.FULL)  # an IntFlag's operators cost more than everything else here
# A gap between two ranges shorter than a range's own header is cheaper to keep apart only if its bytes were known; they
# are not (the base is elsewhere), so only ranges that touch are joined.
_RANGE_HEADS = [Struct(f"<{2 * n}H") for n in range(64)]


class Merged(NamedTuple):
    """`is_image`: `data` is the page, else a delta."""

    is_image: bool
    data: bytes


def apply_at(buf: Buffer, at: int, page: bytearray) -> bool:
    """Applies the PAGE record at offset `at` of `buf` to `page`; whether it was an image. Raises MalformedError."""
    length, _, flags, count, _, _, _, _ = RECORD_HEADER.unpack_from(buf, at)
    body, end = at + RECORD_HEADER_BYTES, at + length
    if flags & _FULL:
        if body + IMAGE_LENGTH.size > end:
            raise MalformedError("a page image is cut short")
        nbytes = IMAGE_LENGTH.unpack_from(buf, body)[0]
        body += IMAGE_LENGTH.size
        if nbytes > len(page) or body + nbytes > end:
            raise MalformedError(f"image of {nbytes} bytes for a page of {len(page)}")
        page[:nbytes] = buf[body : body + nbytes]
        page[nbytes:] = bytes(len(page) - nbytes)
        return True
    _apply_ranges(buf, body, end, count, page)
    return False


def apply_delta(delta: Buffer, page: bytearray) -> None:
    """Applies a merged delta to `page`. Raises MalformedError."""
    _apply_ranges(delta, 2, len(delta), _COUNT.unpack_from(delta)[0], page)


def _apply_ranges(
    buf: Buffer, at: int, end: int, count: int, page: bytearray, *, spans: list[tuple[int, int]] | None = None
) -> None:
    heads = _range_heads(count)
    data = at + heads.size
    if data > end:
        raise MalformedError(f"a page record of {count} ranges is cut short")
    fields = heads.unpack_from(buf, at)
    page_size = len(page)
    for offset, nbytes in zip(fields[::2], fields[1::2], strict=True):
        stop = offset + nbytes
        page[offset:stop] = buf[data : data + nbytes]
        data += nbytes
        if spans is not None:
            spans.append((offset, stop))
    # Checked once, for speed: a range beyond the page has made it longer.
    if data > end or len(page) != page_size:
        del page[page_size:]
        raise MalformedError(f"a page record's ranges do not fit a page of {page_size} bytes")


def fits(buf: Buffer, at: int, page_size: int) -> bool:
    """Whether the PAGE record at offset `at` can be applied to a page of `page_size` bytes.

    One that cannot is skipped, everywhere alike.
    """
    try:
        apply_at(buf, at, bytearray(page_size))
    except MalformedError:
        return False
    return True


def _range_heads(count: int) -> Struct:
    return _RANGE_HEADS[count] if count < len(_RANGE_HEADS) else Struct(f"<{2 * count}H")


class PageMerger:
    """Merges the changes of one page after another; keeps its scratch page between uses."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._scratch = bytearray(page_size)
        self._zeros = bytes(page_size)

    def merge(
        self, changes: Sequence[tuple[Buffer, int]], *, base_is_zeros: bool, zero_from: Sequence[int] = ()
    ) -> Merged:
        """All `changes` in LSN order as one. Raises MalformedError.

        `base_is_zeros`: nothing was there before, so the result is an image. `zero_from[i]` (page_size: no cut), when
        given, is where a truncation cut the page after change i; entry 0 stands before the first change.
        """
        page = self._scratch
        page[:] = self._zeros  # also back to its length after a malformed record
        image = base_is_zeros
        spans: list[tuple[int, int]] = []
        if zero_from and zero_from[0] < self.page_size:
            spans.append((zero_from[0], self.page_size))
        for i, (buf, at) in enumerate(changes):
            length, _, flags, count, _, _, _, _ = RECORD_HEADER.unpack_from(buf, at)
            if flags & _FULL:
                image = apply_at(buf, at, page)
            else:
                _apply_ranges(buf, at + RECORD_HEADER_BYTES, at + length, count, page, spans=spans)
            if zero_from and zero_from[i + 1] < self.page_size:
                cut = zero_from[i + 1]
                page[cut:] = bytes(self.page_size - cut)
                spans.append((cut, self.page_size))
        if image:
            return Merged(True, bytes(page).rstrip(b"\0"))
        return Merged(False, _encode_delta(page, spans))


def _encode_delta(page: bytearray, spans: list[tuple[int, int]]) -> bytes:
    """The union of `spans` as a delta, ranges ascending and apart."""
    if not spans:
        return _COUNT.pack(0)
    spans.sort()
    joined: list[int] = []
    start, stop = spans[0]
    for low, high in spans:
        if low > stop:
            joined += (start, stop - start)
            start, stop = low, high
        elif high > stop:
            stop = high
    joined += (start, stop - start)
    count = len(joined) // 2
    parts = [_COUNT.pack(count), _range_heads(count).pack(*joined)]
    parts += [bytes(page[joined[i] : joined[i] + joined[i + 1]]) for i in range(0, 2 * count, 2)]
    return b"".join(parts)
