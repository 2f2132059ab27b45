"""Where a volume's history begins: at nothing, or at an LSN of another volume, of which it is a *fork*.

A fork has all of its parent's history up to an LSN, its *origin*, and a log of its own from there on. Each of its
segments is made from the parent's segment on the same node (`storage/node/fork.py` says how, and what must hold), and
from then on needs the parent for nothing: its log simply ends at the origin, as after a recovery that truncated there,
and goes on under another volume's name. So lineage is told, and serves to check what is stored: batches at or below the
origin carry the name of the volume that they were written to, those above carry the fork's own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aurora_ray.errors import UsageError

VOLUME_ID_BYTES: Final = 16


class Lineage(NamedTuple):
    """`parent`: the id of another volume, 16 bytes, or none at all; `origin_lsn`: up to where its history is shared."""

    parent: bytes = b""
    origin_lsn: int = 0

    def checked(self, volume: bytes) -> Lineage:
        """The same. Raises UsageError if it cannot be the lineage of `volume`."""
        if not self.parent and not self.origin_lsn:
            return self
        if len(self.parent) != VOLUME_ID_BYTES:
            raise UsageError(f"a parent is named by {VOLUME_ID_BYTES} bytes, not {len(self.parent)}")
        if self.parent == volume:
            raise UsageError("a volume cannot be its own parent")
        return self

    def may_hold(self, volume: bytes, batch_volume: bytes, flush_end: int) -> bool:
        """Whether a batch that was written to `batch_volume` and ends at `flush_end` can be part of `volume`'s log."""
        return batch_volume == volume or flush_end <= self.origin_lsn


ROOT: Final = Lineage()
