"""One volume in one region, and what is noted of it by whoever keeps that region's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aurora_ray.rpc.link import HOME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.replication.succession import Succession
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
    from aurora_ray.volume.write.volume import Volume


@dataclass(frozen=True, slots=True)
class RegionalVolume:
    """A region's copy and where its storage nodes answer.

    `first_lsn`: the copy was begun as of this LSN; below it, its history is not the primary's. `abroad`: how the nodes'
    fleet is reached, if it is not ours.
    """

    spec: VolumeSpec
    nodes: tuple[NodeAddress, ...]
    first_lsn: int = 0
    abroad: Abroad = HOME
    az: str | None = None  # copies there are read first


class Notes(Protocol):
    """What a replicator has noted, durably, before it goes on; asking twice for the same is harmless."""

    async def place(self, group: int) -> GroupPlacement:
        """Which nodes here shall hold a group that the primary has and the copy lacks, once that is noted and known."""

    async def note_spec(self, spec: VolumeSpec) -> None:
        """The copy has these groups: a flush may touch them from now on."""

    async def note_succession(self, succession: Succession) -> None:
        """The copy holds this, up to its end, and may go on as it does."""


async def add_missing_groups(volume: Volume, groups: Iterable[int], notes: Notes) -> None:
    """Gives a copy the protection groups that it lacks, by the primary's numbers, on the nodes that its region says.

    Raises QuorumLostError.
    """
    for group in sorted(set(groups) - volume.spec.placements.keys()):
        await volume.members.add_group(await notes.place(group))
        await notes.note_spec(volume.spec)
