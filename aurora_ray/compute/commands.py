"""What an open incarnation of an instance can be told. One path carries them all, from `InstanceProcess.do` in the
control plane to `do` of the incarnation, whatever lies between: a new command is a class here and a case there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
