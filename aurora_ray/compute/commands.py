"""What an open incarnation of an instance can be told. One path carries them all, from `InstanceProcess.do` in the
control plane to `do` of the incarnation, whatever lies between: a new command is a class here and a case there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.compute.config import CapacityOrder
    from aurora_ray.engine.base import Horizon, RegionRow, ReplicaRow
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

T_co = TypeVar("T_co", covariant=True)


class Command(Generic[T_co]):
    """Answered by a `T_co`. While nothing is open, one that is `needless` then is answered by None, because what opens
    next is told all of it anyway; for others UsageError is raised."""

    __slots__ = ()
    needless: ClassVar[bool] = False

    @property
    def limit_s(self) -> float:
        """How long an answer may take."""
        return 60.0


@dataclass(frozen=True, slots=True)
class Configure(Command[None]):
    """Other parameters of the cluster for its engine."""

    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UpdateNodes(Command[None]):
    """New addresses of storage nodes."""

    needless: ClassVar[bool] = True
    nodes: Sequence[NodeAddress]


@dataclass(frozen=True, slots=True)
class UpdateSource(Command[None]):
    """For a replicator: new addresses of the storage nodes of the primary region."""

    needless: ClassVar[bool] = True
    nodes: Sequence[NodeAddress]


@dataclass(frozen=True, slots=True)
class AddGroup(Command[None]):
    """Another protection group for the volume."""

    needless: ClassVar[bool] = True
    placement: GroupPlacement


@dataclass(frozen=True, slots=True)
class ChangeMembers(Command["tuple[GroupPlacement, ...]"]):
    """A step of a change of members, see volume.write.membership; the placements from then on."""

    placement: GroupPlacement
    filled: str


@dataclass(frozen=True, slots=True)
class FirstWrite(Command["tuple[int, int] | None"]):
    """When the VDL first moved at or after a Unix time (ns), and the VDL; None if it does not in `timeout_s`."""

    needless: ClassVar[bool] = True
    after_ns: int
    timeout_s: float

    @property
    def limit_s(self) -> float:
        """Its own time, and some for the way."""
        return self.timeout_s + 10.0


@dataclass(frozen=True, slots=True)
class Scale(Command[float]):
    """Another capacity; the one that is in force then, in ACUs. None: the instance has its size again, and 0 is in
    force."""

    order: CapacityOrder | None


@dataclass(frozen=True, slots=True)
class WriteBack(Command[None]):
    """For a writer that is going to end in order: whatever of that takes time and can be done while it serves. Returns
    when that is done, or after `timeout_s` at the latest."""

    timeout_s: float

    @property
    def limit_s(self) -> float:
        """Its own time, and some for the way."""
        return self.timeout_s + 10.0


@dataclass(frozen=True, slots=True)
class ReplicaStatus(Command[None]):
    """All instances of the cluster, for the engine's users, and the regions of a global one. To be told anew while
    anything of it changes. `writer_at`: where a reader's sessions have their writes run; None: nowhere."""

    needless: ClassVar[bool] = True
    rows: Sequence[ReplicaRow]
    regions: Sequence[RegionRow] = ()
    writer_at: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class AcknowledgeUntil(Command["float | None"]):
    """For a writer: commits are acknowledged until then, by its own clock, and wait from then on; None: always.
    `lowers`: what it was told before stands if that is earlier. Answered by what that clock says."""

    needless: ClassVar[bool] = True
    until_s: float | None
    lowers: bool = False

    @property
    def limit_s(self) -> float:
        """Whoever answers later is told anew."""
        return 5.0


@dataclass(frozen=True, slots=True)
class HoldHorizon(Command[None]):
    """For a writer: the readers' horizons (each the oldest of one reader), to be held for `lease_s` from now on."""

    needless: ClassVar[bool] = True
    horizons: Sequence[Horizon]
    lease_s: float
