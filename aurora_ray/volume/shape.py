"""The shape of an open volume: who holds its groups, as it is now. One object, shared by all that goes by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec


class Shape:
    """`spec` is replaced as a whole when placements change; only `place` does that."""

    def __init__(self, spec: VolumeSpec) -> None:
        self.spec = spec
        self.members: Mapping[int, tuple[str, ...]] = spec.members  # group -> everybody who holds a copy

    def place(self, placement: GroupPlacement) -> VolumeSpec:
        """From now on a group, be it new or known, has these members; the new specification."""
        self.spec = self.spec.with_placements([placement])
        self.members = self.spec.members
        return self.spec
