"""What the declared state says of forks: where a volume was forked, marks, and for how long history is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from aurora_ray.log.lineage import Lineage
from aurora_ray.volume.origin import ForkPoint

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_S: Final = 24 * 3600  # that a new cluster can be rewound by ...
WINDOW_LOG_BYTES: Final = 1 << 30  # ... as far as so much redo a copy of a protection group reaches back


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a volume was forked; the fields of a ForkPoint beside the parent's id."""

    parent: UUID
    lsn: int
    epoch: int
    tails: tuple[tuple[int, int], ...]
    time_us: int = 0
    first_epoch: int = 0

    @classmethod
    def of(cls, parent: UUID, point: ForkPoint) -> Origin:
        """A volume that is to be forked from `parent` there."""
        return cls(parent, point.lsn, point.epoch, point.tails, point.time_us, point.first_epoch)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Origin:
        """Out of the serialised state."""
        tails: Iterable[Any] = plain["tails"]
        return cls(
            UUID(bytes=plain["parent"]),
            int(plain["lsn"]),
            int(plain["epoch"]),
            tuple((int(group), int(lsn)) for group, lsn in tails),
            int(plain.get("time_us", 0)),
            int(plain.get("first_epoch", 0)),
        )

    @property
    def point(self) -> ForkPoint:
        """As storage nodes are told."""
        return ForkPoint(self.lsn, self.epoch, self.tails, self.time_us, self.first_epoch)

    @property
    def lineage(self) -> Lineage:
        """As segments keep it."""
        return Lineage(self.parent.bytes, self.lsn)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that a user has given a name."""

    label: str
    volume_id: UUID
    lsn: int
    made_at_s: float

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Mark:
        """Out of the serialised state."""
        return cls(str(plain["label"]), UUID(bytes=plain["volume_id"]), int(plain["lsn"]), float(plain["made_at_s"]))
