"""Finding the page changes of a batch, and merging several changes of one page into one, for coalescing.

A change is a PAGE record still inside its batch: (LSN, batch, offset of the record). Nothing is decoded into objects
here, and the loops are in C (src/pages.c): this is what storage nodes spend most of their background CPU on.

A merged change is an image (trailing zeros left out) or a delta: u16 count, count * (u16 offset, u16 length), then the
ranges' bytes one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import MalformedError
from aurora_ray.log._pages import apply_at, apply_delta, merge, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.log.record import Buffer

__all__ = ["Change", "Merged", "apply_at", "apply_delta", "cut_page", "fits", "merge_changes", "scan"]

Change = tuple[int, bytes, int]


class Merged(NamedTuple):
    """`is_image`: `data` is the page, else a delta."""

    is_image: bool
    data: bytes


def merge_changes(
    changes: Sequence[Change], page_size: int, *, base_is_zeros: bool, zero_from: Sequence[int] | None = None
) -> Merged:
    """All `changes` in LSN order as one. Raises MalformedError.

    `base_is_zeros`: nothing was there before, so the result is an image. `zero_from[i]` (page_size: no cut), when
    given, is where a truncation cut the page after change i; entry 0 stands before the first change.
    """
    return Merged(*merge(changes, page_size, base_is_zeros, zero_from))


def fits(buf: Buffer, at: int, page_size: int) -> bool:
    """Whether the PAGE record at offset `at` can be applied to a page of `page_size` bytes.

    One that cannot is skipped, everywhere alike.
    """
    try:
        apply_at(buf, at, bytearray(page_size))
    except MalformedError:
        return False
    return True


def cut_page(content: bytearray, keep: int) -> bytearray | None:
    """A page after a truncation that keeps its first `keep` bytes."""
    if keep <= 0:
        return None
    if keep < len(content):
        content[keep:] = bytes(len(content) - keep)
    return content
