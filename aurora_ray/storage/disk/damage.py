"""What was found damaged on this node and is not repaired yet.

Everything stored carries a checksum of ours (batches, page versions, snapshots of the file table, cuts, metadata), and
RocksDB has its own for what lies in its files. Whoever meets a checksum that does not hold raises DamagedError and
returns nothing of it; the error ends up in the node's DamageBook, and `repair.py` mends what is in there.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Literal, NamedTuple

from aurora_ray.errors import DamagedCopyError

if TYPE_CHECKING:
    from collections import Counter

_log = logging.getLogger(__name__)

SegmentKey = tuple[bytes, int]  # volume, group


class Damage(NamedTuple):
    """One damaged item. `log`: a batch, `key` its flush end. `page`: all versions of a page, `key` the file's id and
    `page`. `table`: a snapshot, `key` its LSN. `store`: more than can be told; the segment must be copied anew.
    """

    kind: Literal["log", "page", "table", "store"]
    key: int = 0
    page: int = 0

    def __str__(self) -> str:
        if self.kind == "log":
            return f"the batch that ends at {self.key}"
        if self.kind == "page":
            return f"page {self.page} of file {self.key}"
        return f"the file table as of {self.key}" if self.kind == "table" else "the segment's files"


STORE = Damage("store")


class DamagedError(DamagedCopyError):
    """... on this very node, and where."""

    def __init__(self, segment: SegmentKey, item: Damage, why: str) -> None:
        super().__init__(f"group {segment[1]}: damaged here: {item}: {why}")
        self.segment, self.item = segment, item


class DamageBook:
    """Damaged items by segment; each is logged and counted when it is first seen."""

    def __init__(self, counters: Counter[str]) -> None:
        self.found = asyncio.Event()
        self._counters = counters
        self._items: dict[SegmentKey, dict[Damage, None]] = {}

    def report(self, error: DamagedError) -> None:
        """Takes in an error that somebody met."""
        items = self._items.setdefault(error.segment, {})
        if error.item in items:
            return
        items[error.item] = None
        self._counters[f"damaged_{error.item.kind}"] += 1
        _log.warning("volume %s %s", uuid.UUID(bytes=error.segment[0]), error)
        self.found.set()

    def segments(self) -> list[SegmentKey]:
        """Those with anything to repair."""
        return list(self._items)

    def items(self, segment: SegmentKey) -> list[Damage]:
        """What is known to be damaged of a segment."""
        return list(self._items.get(segment, ()))

    def forget(self, segment: SegmentKey, item: Damage | None = None) -> None:
        """An item was repaired, or (None) the whole segment was replaced or dropped."""
        items = self._items.get(segment)
        if items is not None:
            if item is not None:
                items.pop(item, None)
            if item is None or not items:
                del self._items[segment]


def says_full(error: BaseException) -> bool:
    """Whether RocksDB, itself or as the cause, says that there is no room left."""
    said = str(error.__cause__ or error).lower()
    return "no space left" in said or "quota exceeded" in said


def says_unreadable(error: BaseException) -> bool:
    """Whether RocksDB, itself or as the cause, says that the disk does not give back what lies on it (EIO)."""
    return "input/output error" in str(error.__cause__ or error).lower()


def is_corruption(error: BaseException) -> bool:
    """Whether RocksDB (whose errors have no classes), itself or as the cause, says that files are damaged or gone."""
    said = str(error.__cause__ or error)
    return said.startswith("Corruption") or (said.startswith("IO error") and "No such file" in said)
