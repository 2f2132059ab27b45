"""What a table's rows at one moment have that they do not have at another: a merge of two sorted streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.engine.base import Difference

if TYPE_CHECKING:
    from collections.abc import Iterator


def merged(before: Iterator[tuple[bytes, str]], after: Iterator[tuple[bytes, str]]) -> Iterator[Difference]:
    """Of two streams of (what it is sorted by, the row), each in order."""
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None  # noqa: S101
            yield Difference("went", old[1], None)
            old = next(before, None)
        elif old is None or new[0] < old[0]:
            yield Difference("came", None, new[1])
            new = next(after, None)
        else:
            if old[1] != new[1]:
                yield Difference("changed", old[1], new[1])
            old, new = next(before, None), next(after, None)
