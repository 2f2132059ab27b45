"""What a volume is made of: its identity, its protection groups and where their copies live."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aurora_ray.errors import UsageError
from aurora_ray.log.segment_rules import read_quorum, write_quorum

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GroupPlacement", "NodeAddress", "VolumeSpec", "read_quorum", "write_quorum"]

EXTENT_PAGES = 64
COPIES = 6
PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A storage node and where it answers now (`address` is "host:port" and may change when the node restarts)."""

    node_id: str
    az: str
    address: str


@dataclass(frozen=True, slots=True)
class GroupPlacement:
    """One protection group and the nodes that hold its copies."""

    group: int
    node_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.node_ids)) != len(self.node_ids) or not self.node_ids:
            raise UsageError(f"group {self.group} needs distinct members, not {self.node_ids}")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """The shape of a volume. `group_bytes` is how much page data a group takes before the volume grows by another."""

    volume_id: UUID
    page_size: int
    group_bytes: int
    groups: tuple[GroupPlacement, ...]

    def __post_init__(self) -> None:
        numbers = [placement.group for placement in self.groups]
        if sorted(set(numbers)) != numbers or numbers[:1] != [0]:
            raise UsageError(f"the groups of a volume ascend from 0 without repeats, not {numbers}")
        if self.page_size not in PAGE_SIZES:
            raise UsageError(f"page size {self.page_size} is not one of {PAGE_SIZES}")

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All nodes that hold anything of the volume, each once."""
        return tuple(dict.fromkeys(node for placement in self.groups for node in placement.node_ids))

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Group number -> its members."""
        return {placement.group: placement.node_ids for placement in self.groups}

    def groups_of(self, node_id: str) -> tuple[int, ...]:
        """The groups of which a node holds a copy, ascending."""
        return tuple(placement.group for placement in self.groups if node_id in placement.node_ids)

    def with_group(self, placement: GroupPlacement) -> VolumeSpec:
        """The same volume, one protection group larger."""
        return replace(self, groups=tuple(sorted((*self.groups, placement), key=lambda each: each.group)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for msgpack or JSON."""
        return {
            "volume_id": str(self.volume_id),
            "page_size": self.page_size,
            "group_bytes": self.group_bytes,
            "groups": [[placement.group, list(placement.node_ids)] for placement in self.groups],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VolumeSpec:
        """The inverse of `to_dict`."""
        groups = tuple(GroupPlacement(int(group), tuple(nodes)) for group, nodes in values["groups"])
        return cls(UUID(values["volume_id"]), int(values["page_size"]), int(values["group_bytes"]), groups)
