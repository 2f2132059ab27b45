"""What a volume is made of: its identity, its protection groups and where their copies live.

**Changing who holds a group** (after Aurora, SIGMOD 2018, section 4). A group's six members S are replaced by T, mostly
by five of S and a new one, in two steps, each of which leaves the volume readable and writable:

    S  --begin-->  S and T  --commit-->  T
                        |---abort--->  S

In between, everything needs a quorum of S *and* of T: a write 4/6 of both, and a recovery promises and installs on 4/6
of both. So whoever knows only S, or only T already, meets everybody else in a quorum, and each step may be taken back.
`commit` comes when 4/6 of T are complete up to where `begin` was.

A placement that somebody wrote down may be out of date. The truth is with the copies: the writer has each step
installed on a quorum of every set of the new placement before it goes by it (`Membership` in
aurora_ray/log/segment_rules.py), so a recovery that starts from any earlier placement meets a copy that knows the next
step, and follows from step to step (`told_placements` in recovery.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aurora_ray.errors import UsageError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.sizes import PAGE_BYTES_ALLOWED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A storage node and where it answers now (`address` is "host:port" and may change when the node restarts)."""

    node_id: str
    az: str
    address: str


class ChangeStep(Enum):
    """A step of a change of members; see the module."""

    BEGIN = "begin"
    COMMIT = "commit"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class GroupPlacement:
    """One protection group and the nodes that hold its copies; `next_node_ids` while they are being changed."""

    group: int
    node_ids: tuple[str, ...]
    next_node_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for nodes in self.sets:
            if len(set(nodes)) != len(nodes) or not nodes:
                raise UsageError(f"group {self.group} needs distinct members, not {nodes}")
        if self.next_node_ids is not None and set(self.next_node_ids) == set(self.node_ids):
            raise UsageError(f"group {self.group} would have the same members as before: {self.node_ids}")

    @property
    def sets(self) -> tuple[tuple[str, ...], ...]:
        """The sets of nodes in each of which a quorum is needed: one, or two during a change."""
        return (self.node_ids,) if self.next_node_ids is None else (self.node_ids, self.next_node_ids)

    @property
    def all_node_ids(self) -> tuple[str, ...]:
        """Everybody who holds a copy, each once."""
        return tuple(dict.fromkeys(node for nodes in self.sets for node in nodes))

    def step_to(self, wanted: GroupPlacement) -> ChangeStep | None:
        """Which step of a change leads there; None if there is nothing to do. Raises UsageError for anything else."""
        if wanted == self:
            return None
        if self.next_node_ids is None and wanted.next_node_ids is not None and wanted.node_ids == self.node_ids:
            return ChangeStep.BEGIN
        if self.next_node_ids is not None and wanted.next_node_ids is None:
            if wanted.node_ids == self.next_node_ids:
                return ChangeStep.COMMIT
            if wanted.node_ids == self.node_ids:
                return ChangeStep.ABORT
        raise UsageError(f"group {self.group} cannot go from {self.sets} to {wanted.sets} in one step")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """The shape of a volume. `group_bytes` is how much page data a group takes before the volume grows by another.

    `lineage`: where its history begins; a volume with a parent is made by a fork (`volume/fork.py`).
    """

    volume_id: UUID
    page_size: int
    group_bytes: int
    groups: tuple[GroupPlacement, ...]
    lineage: Lineage = ROOT

    def __post_init__(self) -> None:
        self.lineage.checked(self.volume_id.bytes)
        numbers = [placement.group for placement in self.groups]
        if sorted(set(numbers)) != numbers or numbers[:1] != [0]:
            raise UsageError(f"the groups of a volume ascend from 0 without repeats, not {numbers}")
        if self.page_size not in PAGE_BYTES_ALLOWED:
            raise UsageError(f"page size {self.page_size} is not one of {PAGE_BYTES_ALLOWED}")

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All nodes that hold anything of the volume, each once."""
        return tuple(dict.fromkeys(node for placement in self.groups for node in placement.all_node_ids))

    @property
    def placements(self) -> dict[int, GroupPlacement]:
        """Group number -> its placement."""
        return {placement.group: placement for placement in self.groups}

    @property
    def members(self) -> dict[int, tuple[str, ...]]:
        """Group number -> everybody who holds a copy."""
        return {placement.group: placement.all_node_ids for placement in self.groups}

    def groups_of(self, node_id: str) -> tuple[int, ...]:
        """The groups of which a node holds a copy, ascending."""
        return tuple(placement.group for placement in self.groups if node_id in placement.all_node_ids)

    def with_placements(self, placements: Iterable[GroupPlacement]) -> VolumeSpec:
        """The same volume with these groups placed so, be they new or known."""
        merged = self.placements | {placement.group: placement for placement in placements}
        return replace(self, groups=tuple(merged[group] for group in sorted(merged)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for msgpack or JSON."""
        return {
            "volume_id": str(self.volume_id),
            "page_size": self.page_size,
            "group_bytes": self.group_bytes,
            "groups": [[placement.group, *(list(nodes) for nodes in placement.sets)] for placement in self.groups],
            "lineage": [self.lineage.parent.hex(), self.lineage.origin_lsn],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VolumeSpec:
        """The inverse of `to_dict`."""
        groups = tuple(
            GroupPlacement(int(group), *(tuple(nodes) for nodes in sets)) for group, *sets in values["groups"]
        )
        parent, origin_lsn = values.get("lineage", ("", 0))  # absent in what was written before there were parents
        lineage = Lineage(bytes.fromhex(parent), int(origin_lsn))
        return cls(UUID(values["volume_id"]), int(values["page_size"]), int(values["group_bytes"]), groups, lineage)
