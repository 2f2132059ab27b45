"""A flush: the unit in which a log grows and becomes durable; and the end of a log, to which the next one is added.

Flushes follow each other without gaps. A flush carries one batch (`batch.py`) for each protection group that it
touches, and each batch links back to the last one of its group.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import GROUPS_MAX


@dataclass(frozen=True, slots=True)
class Flush:
    """The stretch (start, end] of a log, LSNs in bytes; `batches`: protection group -> its batch, encoded."""

    start: int
    end: int
    batches: dict[int, bytes]

    @property
    def groups(self) -> tuple[int, ...]:
        """The protection groups that it touches."""
        return tuple(self.batches)

    @property
    def nbytes(self) -> int:
        """Of the batches together."""
        return sum(map(len, self.batches.values()))


class LogEnd:
    """Where a writer's log ends: at `lsn`, and each group's log at its tail, the end of the last flush touching it.

    The writer that submits flushes is the only one who moves it (`advance`). Who encodes the next flush reads it; the
    interposer's C code does so through `tails_pointer`.
    """

    __slots__ = ("_tails", "lsn")

    def __init__(self, lsn: int = 0, tails: Mapping[int, int] | None = None) -> None:
        self.lsn = lsn
        self._tails = (ctypes.c_uint64 * GROUPS_MAX)()
        for group, tail in (tails or {}).items():
            self._tails[group] = tail

    def tail(self, group: int) -> int:
        """The end of the last flush that touched a group; 0 if none did."""
        return self._tails[group]

    @property
    def tails(self) -> dict[int, int]:
        """Group -> tail, of those that were ever written to."""
        return {group: tail for group, tail in enumerate(self._tails) if tail}

    @property
    def tails_pointer(self) -> Any:
        """For C: uint64_t[GROUPS_MAX], read only, alive as long as this object."""
        return self._tails

    def check(self, flush: Flush) -> None:
        """Raises UsageError if a flush does not begin here."""
        if flush.start != self.lsn:
            raise UsageError(f"a flush from {flush.start} cannot follow the tail at {self.lsn}")

    def advance(self, flush: Flush) -> None:
        """The flush is part of the log. Raises UsageError if it does not begin here."""
        self.check(flush)
        assert flush.end > flush.start, "a flush carries records"  # noqa: S101
        self.lsn = flush.end
        for group in flush.batches:
            self._tails[group] = flush.end
