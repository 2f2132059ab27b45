"""Whole flushes out of the logs of single groups. Pure: batches in, flushes out.

Each batch says of which flush it is and which groups that flush touches, and flushes follow each other without gaps: so
the next flush is the one that starts where the last one ended, and it is whole when each of its groups has brought its
batch. Which groups a volume has need not be known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.errors import MalformedError
from aurora_ray.log.batch import verify
from aurora_ray.log.flush import Flush

if TYPE_CHECKING:
    from aurora_ray.log.batch import BatchHeader


class FlushMerger:
    """Puts flushes together behind `lsn`, the end of the last one taken."""

    def __init__(self, after_lsn: int) -> None:
        """`after_lsn` need not be the end of a flush: then the first one begins below it."""
        self.lsn = after_lsn
        self._found: dict[int, dict[int, bytes]] = {}  # flush start -> group -> batch
        self._headers: dict[int, BatchHeader] = {}  # flush start -> the header of one of its batches
        self._ends: dict[int, int] = {}  # group -> the end of its last batch
        self._bytes: dict[int, int] = {}  # group -> of its batches that wait here
        self._begun = False

    def after_lsn(self, group: int) -> int:
        """From where on log of a group is wanted."""
        return max(self.lsn, self._ends.get(group, 0))

    def buffered_bytes(self, group: int) -> int:
        """Of batches of a group that wait for others. Nothing waits of a group that the next flush waits for."""
        return self._bytes.get(group, 0)

    def add(self, group: int, batch: bytes) -> bool:
        """A batch of a group's durable log, in the group's order. False if it is not new. Raises MalformedError."""
        header = verify(batch)
        if header.group != group:
            raise MalformedError(f"a batch of group {header.group} came from the log of group {group}")
        if header.flush_end <= self.after_lsn(group):
            return False
        known = self._headers.setdefault(header.flush_start, header)
        if (known.flush_end, known.groups, known.epoch) != (header.flush_end, header.groups, header.epoch):
            raise MalformedError(f"two flushes begin at {header.flush_start}: {known} and {header}")
        self._found.setdefault(header.flush_start, {})[group] = batch
        self._ends[group] = header.flush_end
        self._bytes[group] = self._bytes.get(group, 0) + len(batch)
        return True

    def missing(self) -> frozenset[int] | None:
        """The groups of the next flush whose batch is not here; None if no batch of it is."""
        start = self._next()
        return None if start is None else frozenset(self._headers[start].groups) - self._found[start].keys()

    def take(self) -> Flush | None:
        """The next flush, if it is whole."""
        start = self._next()
        if start is None or len(self._found[start]) < len(self._headers[start].groups):
            return None
        header, found = self._headers.pop(start), self._found.pop(start)
        assert header.flush_start == self.lsn or not self._begun, "flushes follow each other"  # noqa: S101
        assert header.flush_end > self.lsn, "and each goes on"  # noqa: S101
        self._begun, self.lsn = True, header.flush_end
        for group, batch in found.items():
            self._bytes[group] -= len(batch)
        return Flush(header.flush_start, header.flush_end, {group: found[group] for group in header.groups})

    def _next(self) -> int | None:
        if self.lsn in self._found:
            return self.lsn
        if self._begun:
            return None
        below = [start for start, header in self._headers.items() if start < self.lsn < header.flush_end]
        return below[0] if below else None
