"""What is known to be: the storage nodes, instances and the control volume, as the control plane has seen them last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from aurora_ray.compute.role import Role
from aurora_ray.control.model.attempt import Attempt
from aurora_ray.control.model.keys import Key
from aurora_ray.control.model.state import Group, VolumeState
from aurora_ray.control.model.views import View
from aurora_ray.log.sizes import VOLUME_BYTES_MAX
from aurora_ray.volume.spec import GroupPlacement


class InstancePhase(StrEnum):
    """Where an instance's process stands."""

    IDLE = "idle"
    OPENING = "opening"
    AVAILABLE = "available"
    STOPPING = "stopping"
    ENDED = "ended"


Addresses = tuple[tuple[str, str], ...]
"""Sorted pairs of node id and host:port."""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A storage node that runs. `told` are the addresses it was last given, `segments` the groups it has, `refilling`
    those that it had lost and is getting back from its peers. `retention`: (volume, seconds, bytes of log a segment) as
    it keeps history, None until it has said so. `silent`: it does not answer."""

    address: str
    pid: int
    host: str
    told: Addresses = ()
    segments: frozenset[tuple[UUID, int]] = frozenset()
    refilling: frozenset[tuple[UUID, int]] = frozenset()
    silent: bool = False
    retention: frozenset[tuple[UUID, int, int]] | None = None


class Ailment(StrEnum):
    """Why a storage node is not what it shall be."""

    UNREACHABLE = "unreachable"  # it has no process, or one that does not answer
    DATA_GONE = "without its data"  # it runs, lacks copies that it had, and is not getting them back


@dataclass(frozen=True, slots=True)
class Ailing:
    """A storage node that is not well, or was not a moment ago (`over`); `since_s` by the clock of `decide`."""

    ailment: Ailment
    since_s: float
    over: bool = False


PRESSED: Final = 0.8  # of the CPU that a capacity gives: below what makes the policy step up


@dataclass(frozen=True, slots=True)
class CapacityUse:
    """What an instance does with its capacity of `acu` (it could have up to `room` where it is), as looked at at
    `at_s` by its own clock. The rest: see decide.capacity.Sample."""

    at_s: float
    acu: float
    room: float
    cpus_per_acu: float
    cpus: float
    held_back: float
    misses: float
    cache_full: bool
    busy: int = 0
    slots: int = 0  # replication slots
    cpu_enforced: bool = False  # whether a control group holds its CPU to it
    memory_limit_bytes: int = 0  # ... and what another one bounds its memory to; 0: nothing does

    @property
    def is_pressed(self) -> bool:
        """Whether it may want more, so that it pays to decide about it at once."""
        given = self.acu * self.cpus_per_acu
        return self.held_back > 0 or self.cpus > PRESSED * given or (self.cache_full and self.misses > 0)


@dataclass(frozen=True, slots=True)
class InstanceSeen:
    """An instance whose process runs. `role`: as what it was opened, which need not be what is declared by now."""

    phase: InstancePhase
    reason: str = ""
    told: Addresses = ()
    groups: frozenset[int] = frozenset()
    free_bytes: int | None = None  # of the groups it has; None: not known
    placements: tuple[GroupPlacement, ...] = ()  # who holds them, as the writer goes by it
    repaired: frozenset[str] = frozenset()  # the repairs that its opening made
    memory_bytes: int = 0  # the size that it was opened with; 0: not known
    volume_id: str = ""  # that it was opened on; empty: not known
    role: Role = Role.WRITER
    lag_ms: float | None = None  # None: not known, or it follows nobody
    cpu_percent: float | None = None  # of its machine's CPUs, by its engine; None: not known
    connections: int | None = None  # sessions of its engine; None: not known
    capacity: CapacityUse | None = None  # None: it has a size, and nothing else
    described: str = ""  # of a backup: the digest of what it was told; empty: not known
    copied: bool = False  # a replicator's copy has all pages ...
    copy_lsn: int = 0  # ... and is durable up to here
    source_told: Addresses = ()  # storage nodes of the primary region that it was told

    def serves(self, role: Role) -> bool:
        """Whether its engine accepts statements, as one of that role."""
        return self.phase is InstancePhase.AVAILABLE and self.role is role


@dataclass(frozen=True, slots=True)
class Abroad:
    """What is known of the other regions of a global cluster: what each said last, which said it within seconds, and
    how long ago that was (`heard_s`); `asked_s`: for how long they have been asked. `fenced`: how many regions, this
    one among them, have seen to it that no earlier generation than that of the failover to here has a lease; `turns_s`:
    for how long that was wanted."""

    views: Mapping[str, View] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    asked_s: float = 0.0
    fenced: int = 0
    turns_s: float = 0.0
    heard_s: Mapping[str, float] = field(default_factory=dict)


NOTHING_ABROAD = Abroad()


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known to be. Processes that do not run are not in the maps."""

    nodes: Mapping[str, NodeSeen] = field(default_factory=dict)
    instances: Mapping[str, InstanceSeen] = field(default_factory=dict)
    unsure: frozenset[str] = frozenset()  # instances without a known process, of which one may run all the same
    control_open: bool = False
    busy: frozenset[Key] = frozenset()
    held: frozenset[Key] = frozenset()  # keys of what must not be done now, although nothing of the kind goes on
    attempts: Mapping[Key, Attempt] = field(default_factory=dict)
    control_placements: tuple[GroupPlacement, ...] = ()  # of the control volume, while it is open
    volume_limit_bytes: int = VOLUME_BYTES_MAX  # how large a volume may grow
    ailing: Mapping[str, Ailing] = field(default_factory=dict)  # by storage node
    abroad: Mapping[str, Abroad] = field(default_factory=dict)  # by cluster
    lost: frozenset[str] = frozenset()  # instances that were writers until they ended by nobody's will

    def addresses(self) -> Addresses:
        """Where the running storage nodes answer."""
        return tuple(sorted((node_id, node.address) for node_id, node in self.nodes.items()))

    def holders(self, volume: VolumeState, group: Group) -> set[str]:
        """The nodes that run and have their copy of the group: one that lost it is none of them."""
        key = (volume.volume_id, group.group)
        return {n for n in group.created_on if n in self.nodes and key in self.nodes[n].segments}
