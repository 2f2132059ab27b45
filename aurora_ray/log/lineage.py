"""Where a volume's history begins: at nothing, or at an LSN of another volume.

A volume with a parent shares all of the parent's history up to an LSN, its *origin*, and has a log of its own from
there on: in every group the first batch links back to the origin, and each of its segments is complete and durable up
to it from the start. What lies at or below the origin is the parent's, and so is each page that the child has not
written. The origin of a volume without a parent is 0; whether a segment is empty is asked by comparing with the origin.

No volume with a parent can be created yet: nothing reads through to the parent's segments. What is here is the place of
lineage in specifications, in messages and in what a segment stores of itself.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aurora_ray.errors import UnsupportedLineageError, UsageError

_VOLUME_ID_BYTES: Final = 16


class Lineage(NamedTuple):
    """`parent`: the id of another volume, 16 bytes, or none at all; `origin_lsn`: up to where its history is shared."""

    parent: bytes = b""
    origin_lsn: int = 0

    def checked(self, volume: bytes) -> Lineage:
        """The same. Raises UsageError if it cannot be the lineage of `volume`."""
        if not self.parent and not self.origin_lsn:
            return self
        if len(self.parent) != _VOLUME_ID_BYTES:
            raise UsageError(f"a parent is named by {_VOLUME_ID_BYTES} bytes, not {len(self.parent)}")
        if self.parent == volume:
            raise UsageError("a volume cannot be its own parent")
        return self

    def require_root(self, what: str) -> None:
        """Raises UnsupportedLineageError if there is a parent; `what`: what would need it."""
        if self.parent:
            raise UnsupportedLineageError(
                f"{what} is not possible: the volume has a parent ({self.parent.hex()}, up to LSN {self.origin_lsn}),"
                " and storage nodes do not read through to parents yet; create a volume without one"
            )


ROOT: Final = Lineage()
