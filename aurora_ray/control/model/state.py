"""The declared state: which clusters, instances, volumes and storage nodes there shall be.

All of it is immutable: a change makes a new `Fleet`, which is first saved (see store.py) and then acted upon, so what
the reconciler sees is always what a restarted control plane would see. Nothing observed (process ids, addresses of
storage nodes, roles that an engine reports) is in here.

How it is written: codec.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from uuid import UUID

from aurora_ray.compute.role import Role
from aurora_ray.control.model.backups import BackupPlan, RestorePlan
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.custom_endpoints import CLUSTER, READER, CustomEndpoint
from aurora_ray.control.model.origins import WINDOW_LOG_BYTES, WINDOW_S, Mark, Origin
from aurora_ray.control.model.regional import NO_TURNS, Membership, Turns, newest
from aurora_ray.control.model.scaling import READERS_MAX, ReaderScaling
from aurora_ray.control.model.sealing import SECRET
from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import COPIES_PER_AZ, GROUPS_MAX, write_quorum
from aurora_ray.replication.residency import Policy
from aurora_ray.volume.spec import GroupPlacement

FIRST_NODES_PER_AZ = COPIES_PER_AZ
TIER_MAX = 15  # of promotion: 0 comes first

# The volume that holds this state. Its id is fixed so that a control plane that knows nothing yet can find it.
CONTROL_VOLUME_ID = UUID("a0707aa0-0000-4000-8000-c0117701e000")  # of every fleet, before each got one of its own


def control_volume_id(fleet_id: UUID) -> UUID:
    """The id of a new fleet's control volume: the beginning says what it is, the rest whose."""
    return UUID(bytes=CONTROL_VOLUME_ID.bytes[:10] + hashlib.sha256(fleet_id.bytes).digest()[:6])


def is_control_volume(volume_id: UUID) -> bool:
    """Whether a volume holds a fleet's control state."""
    return volume_id.bytes[:10] == CONTROL_VOLUME_ID.bytes[:10]


class ClusterPhase(StrEnum):
    """What is wanted of a cluster."""

    AVAILABLE = "available"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class StorageNode:
    """A storage node. `host` pins it to the machine that has its directory; empty until it ran once.

    `replaces`: the node whose copies it takes over, until it has them all. `leaving`: nothing is placed on it any more,
    and it is removed when it holds nothing.
    """

    node_id: str
    az: str
    host: str = ""
    replaces: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Six copies of one protection group, and the six that shall follow while its members change (else none).

    `created_on` are the members that have (or had) the segment: a member that is in it and comes back without the
    segment has lost data and must be repaired or replaced, never given an empty one.
    """

    group: int
    node_ids: tuple[str, ...]
    created_on: tuple[str, ...] = ()
    next_node_ids: tuple[str, ...] = ()

    @property
    def placement(self) -> GroupPlacement:
        """As the volume client takes it."""
        return GroupPlacement(self.group, self.node_ids, self.next_node_ids or None)

    def can_move(self, nodes: Collection[str]) -> bool:
        """Whether these nodes have enough of its copies for others to be made; else no copy can be relied on."""
        there = set(nodes).intersection(self.created_on)
        return all(len(there.intersection(members)) >= write_quorum(len(members)) for members in self.placement.sets)

    def placed(self, placement: GroupPlacement) -> Group:
        """After a step of a change: a node that came in by it has made its copy."""
        before = self.placement.all_node_ids
        created_on = tuple(n for n in placement.all_node_ids if n in self.created_on or n not in before)
        return Group(self.group, placement.node_ids, created_on, placement.next_node_ids or ())


@dataclass(frozen=True, slots=True)
class VolumeState:
    """A volume and where its groups live. `initialised` once it holds a complete data directory; `given_up` by a user's
    word, or when the time after it was over: who drops it need not bury it. `origin`: where it was forked, if it was.
    `restore`: what it is made out of, until it is `initialised`.
    """

    volume_id: UUID
    page_size: int
    group_bytes: int
    groups: tuple[Group, ...]
    initialised: bool = False
    given_up: bool = False
    origin: Origin | None = None
    restore: RestorePlan | None = None

    def groups_max(self, limit_bytes: int) -> int:
        """How many groups it may have, one at least."""
        return max(1, min(GROUPS_MAX, limit_bytes // self.group_bytes))

    def may_grow(self, limit_bytes: int) -> bool:
        """Whether it may have another group."""
        return len(self.groups) < self.groups_max(limit_bytes)


@dataclass(frozen=True, slots=True)
class DBInstance:
    """One engine process, of one kind. `port` is where the engine listens.

    `memory_bytes` is its size (0: none yet), `next_memory_bytes` the one that it gets when it opens next (0: no other).
    `promotion_tier`: 0 to TIER_MAX, see decide/readers.py. `scaled`: a rule of scaling added it, and may remove it; it
    is drained since `leaving_since_s` (Unix time; 0: it stays).
    """

    instance_id: str
    role: Role
    az: str
    port: int
    promotion_tier: int = 1
    memory_bytes: int = 0
    next_memory_bytes: int = 0
    scaled: bool = False
    leaving_since_s: float = 0.0
    provisioned: bool = False  # it has its size, whatever bounds its cluster has


@dataclass(frozen=True, slots=True)
class PastVolume:
    """A volume that was a cluster's until `until_s`, when it was rewound, and is kept until `kept_until_s` (Unix
    times)."""

    volume: VolumeState
    until_s: float
    kept_until_s: float


@dataclass(frozen=True, slots=True)
class DBCluster:
    """A database cluster: one volume, one writer, any readers. `port` and `reader_port` are those of its endpoints."""

    name: str
    engine: str
    engine_version: str
    bin_dir: str
    port: int
    superuser_password: str = field(repr=False, metadata=SECRET)
    volume: VolumeState = field(repr=False)
    instances: tuple[DBInstance, ...] = ()
    phase: ClusterPhase = ClusterPhase.AVAILABLE
    created_at_s: float = 0.0
    cache_bytes: int = 0
    reader_port: int = 0
    parameters: tuple[tuple[str, str], ...] = ()  # of its parameter group: names and values
    repairs: tuple[str, ...] = ()  # to be made at the next opening
    last_instance_number: int = 1  # in the name of an instance; none is used twice, as its process may be somewhere
    scaling: ReaderScaling | None = None
    window_s: int = WINDOW_S  # for which history is kept ...
    window_log_bytes: int = WINDOW_LOG_BYTES  # ... as far as so much redo a copy reaches back
    past: tuple[PastVolume, ...] = ()  # the newest first
    marks: tuple[Mark, ...] = ()
    until_s: float = 0.0  # a temporary one: deleted then, if nobody uses it (Unix time)
    custom_endpoints: tuple[CustomEndpoint, ...] = ()
    backup: BackupPlan | None = None
    capacity: Capacity | None = None  # None: each instance has its size
    paused_since_s: float = 0.0  # its engines are stopped since then, until somebody comes (Unix time; 0: it runs)
    succession: Turns = NO_TURNS  # of its volume: from which LSN on its redo is of which generation
    membership: Membership | None = None  # in a global cluster
    residency: Policy = field(default_factory=Policy)  # where its data may lie

    @property
    def generation(self) -> int:
        """That whoever writes to the volume acts for, here."""
        return newest(self.succession)

    @property
    def is_secondary(self) -> bool:
        """Whether a replicator has its volume, and no engine may write to it."""
        return any(instance.role.traits.copies for instance in self.instances)

    def endpoint_ports(self) -> dict[str, int]:
        """Endpoints by their names, the two that every cluster has and its custom ones."""
        return {CLUSTER: self.port, READER: self.reader_port} | {e.name: e.port for e in self.custom_endpoints}

    def with_endpoint_port(self, endpoint: str, port: int) -> DBCluster:
        """The same cluster, with that endpoint elsewhere."""
        at = {**self.endpoint_ports(), endpoint: port}
        custom = tuple(replace(each, port=at[each.name]) for each in self.custom_endpoints)
        return replace(self, port=at[CLUSTER], reader_port=at[READER], custom_endpoints=custom)

    def __post_init__(self) -> None:
        writers = [i.instance_id for i in self.instances if i.role.traits.owns]
        if len(writers) > 1:
            raise UsageError(f"cluster {self.name!r} cannot have more than one writer, not {', '.join(writers)}")
        if (readers := len(self.readers())) > READERS_MAX:
            raise UsageError(f"cluster {self.name!r} can have {READERS_MAX} readers, not {readers}")

    def writer(self) -> DBInstance:
        """The instance that is declared to write to the volume: the writer; in a secondary region, the replicator."""
        return next(instance for instance in self.instances if instance.role.traits.owns)

    def readers(self) -> tuple[DBInstance, ...]:
        """The instances that are declared to be readers."""
        return tuple(instance for instance in self.instances if instance.role.traits.reads)

    def engines(self) -> tuple[DBInstance, ...]:
        """The instances that run an engine."""
        return tuple(instance for instance in self.instances if instance.role.traits.engine)

    def rule_of(self, instance: DBInstance) -> Capacity | None:
        """Between which capacities an instance scales; None: it has its size."""
        return None if instance.provisioned else self.capacity

    def served_as(self, instance: DBInstance) -> Role:
        """As what an instance of this cluster serves: as what it is declared to be; but while the volume is made out of
        a backup, whoever shall write to it reads that."""
        return Role.STATIC if instance.role.traits.writes and self.is_restored_now() else instance.role

    def with_volume(self, volume: VolumeState) -> DBCluster:
        """With this in the place of the volume of the same id, if it has that or had it before a rewind."""
        now = volume if self.volume.volume_id == volume.volume_id else self.volume
        past = tuple(
            replace(each, volume=volume) if each.volume.volume_id == volume.volume_id else each for each in self.past
        )
        return replace(self, volume=now, past=past)

    def is_restored_now(self) -> bool:
        """Whether its volume is being made out of a backup: until that is whole, nobody writes."""
        return self.volume.restore is not None and not self.volume.initialised

    def instance(self, instance_id: str) -> DBInstance:
        """The instance of that id. Raises UsageError."""
        for instance in self.instances:
            if instance.instance_id == instance_id:
                return instance
        known = ", ".join(instance.instance_id for instance in self.instances) or "none"
        raise UsageError(f"cluster {self.name!r} has no instance {instance_id!r} (there is: {known})")


@dataclass(frozen=True, slots=True)
class DeletedCluster:
    """A cluster that a user deleted, with all that it takes to bring it back; its volume stays on its nodes until
    `until_s` (Unix times)."""

    cluster: DBCluster
    deleted_at_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that one control plane is responsible for. `revision` counts the saved changes.

    `last_node_number`: the highest number in a storage node's name so far. No name is used twice: whatever carries the
    old one may still be somewhere.
    """

    fleet_id: UUID
    region: str
    azs: tuple[str, ...]
    nodes: tuple[StorageNode, ...]
    control_volume: VolumeState
    clusters: tuple[DBCluster, ...] = ()
    dropped_volumes: tuple[VolumeState, ...] = ()  # to be forgotten by nodes that have not done so yet
    revision: int = 0
    last_node_number: int = FIRST_NODES_PER_AZ
    deleted: tuple[DeletedCluster, ...] = ()  # see graveyard.py

    def node(self, node_id: str) -> StorageNode:
        """The node of that id. Raises UsageError."""
        for node in self.nodes:
            if node.node_id == node_id:
                return node
        raise UsageError(
            f"there is no storage node {node_id!r}; the nodes are {', '.join(n.node_id for n in self.nodes)}."
        )

    def cluster(self, name: str) -> DBCluster:
        """The cluster of that name. Raises UsageError."""
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        known = ", ".join(cluster.name for cluster in self.clusters) or "none"
        raise UsageError(f"there is no cluster {name!r} (there is: {known}); `aurora create {name}` makes one")

    def volumes(self) -> tuple[VolumeState, ...]:
        """Every volume that must exist, the control volume first."""
        return (self.control_volume, *(cluster.volume for cluster in self.clusters))

    def kept_volumes(self) -> tuple[VolumeState, ...]:
        """Every volume that nobody serves, and that is kept for a while: what rewinds left, and what deleted clusters
        had."""
        clusters = (*self.clusters, *(each.cluster for each in self.deleted))
        past = (past.volume for cluster in clusters for past in cluster.past)
        return (*past, *(each.cluster.volume for each in self.deleted))

    def replacements(self) -> dict[str, str]:
        """Old node -> the one that takes over its copies."""
        return {node.replaces: node.node_id for node in self.nodes if node.replaces}

    def holds(self, node_id: str) -> bool:
        """Whether any volume has copies on that node, or is getting them; of those that nobody serves, any that can be
        moved from there."""
        groups = (group for volume in self.volumes() for group in volume.groups)
        declared = {node.node_id for node in self.nodes}
        kept = (g for volume in self.kept_volumes() for g in volume.groups if g.can_move(declared))
        return any(node_id in group.placement.all_node_ids for group in (*groups, *kept))

    def is_done_with(self, node: StorageNode) -> bool:
        """Whether the node was to give away all that it holds, and has."""
        going = node.leaving or any(other.replaces == node.node_id for other in self.nodes)
        return going and not self.holds(node.node_id)

    # ---- changes: each returns the next state

    def with_replacement(self, node_id: str) -> Fleet:
        """Declares a new node in the AZ of `node_id` that shall take over its copies."""
        old, number = self.node(node_id), self.last_node_number + 1
        fresh = StorageNode(f"{old.az}-{number}", old.az, replaces=node_id)
        return replace(self, nodes=(*self.nodes, fresh), last_node_number=number)

    def without_replacement(self, node_id: str) -> Fleet:
        """That node takes nothing over any more; it leaves, unless it is the sole holder of copies by now."""
        groups = [group for volume in self.volumes() for group in volume.groups]
        needed = any(node_id in group.node_ids for group in groups)
        return self.with_node(replace(self.node(node_id), replaces="", leaving=not needed))

    def without_node(self, node_id: str) -> Fleet:
        """Forgets a node that holds nothing; whoever took over its copies is an ordinary node from now on."""
        fleet = self.without_dropped(node_id, {volume.volume_id for volume in self.dropped_volumes})
        nodes = tuple(replace(n, replaces="") if n.replaces == node_id else n for n in fleet.nodes)
        return replace(fleet, nodes=tuple(node for node in nodes if node.node_id != node_id))

    def with_placements(self, volume_id: UUID, placements: Iterable[GroupPlacement]) -> Fleet:
        """Notes who holds these groups of a volume. Whoever turns out to be a member stays, and who has given away its
        last copy leaves."""
        placed = {placement.group: placement for placement in placements}
        fleet = self
        for volume in (*self.volumes(), *self.kept_volumes()):
            if volume.volume_id == volume_id:
                groups = tuple(g.placed(placed[g.group]) if g.group in placed else g for g in volume.groups)
                fleet = fleet.with_volume(replace(volume, groups=groups))
        members = {node_id for placement in placed.values() for node_id in placement.node_ids}
        empty = {n.node_id for n in self.nodes if self.holds(n.node_id) and not fleet.holds(n.node_id)}
        leaving = {n.node_id for n in self.nodes if n.leaving} - members | empty
        return replace(fleet, nodes=tuple(replace(n, leaving=n.node_id in leaving) for n in fleet.nodes))

    def with_node(self, node: StorageNode) -> Fleet:
        """The same node id with other properties."""
        return replace(self, nodes=tuple(node if n.node_id == node.node_id else n for n in self.nodes))

    def cluster_of(self, instance_id: str) -> DBCluster | None:
        """The cluster that an instance belongs to; None if it is not declared."""
        declared = (c for c in self.clusters if any(i.instance_id == instance_id for i in c.instances))
        return next(declared, None)

    def with_cluster(self, cluster: DBCluster) -> Fleet:
        """Adds the cluster, or replaces the one of the same name."""
        if any(c.name == cluster.name for c in self.clusters):
            return replace(self, clusters=tuple(cluster if c.name == cluster.name else c for c in self.clusters))
        return replace(self, clusters=(*self.clusters, cluster))

    def with_instance(self, name: str, instance: DBInstance) -> Fleet:
        """The instance of that id in a cluster, with other properties."""
        cluster = self.cluster(name)
        changed = tuple(instance if i.instance_id == instance.instance_id else i for i in cluster.instances)
        return self.with_cluster(replace(cluster, instances=changed))

    def without_cluster(self, name: str) -> Fleet:
        """Forgets the cluster; its volume goes to the list of those to drop."""
        gone = self.cluster(name)
        return replace(
            self,
            clusters=tuple(c for c in self.clusters if c.name != name),
            dropped_volumes=(*self.dropped_volumes, gone.volume),
        )

    def without_deleted(self, volume_id: str) -> Fleet:
        """Gives a deleted cluster up: its volume goes to the list of those to drop, for good."""
        gone = [each for each in self.deleted if str(each.cluster.volume.volume_id) == volume_id]
        volumes = [v for each in gone for v in (each.cluster.volume, *(past.volume for past in each.cluster.past))]
        kept = tuple(each for each in self.deleted if each not in gone)
        return replace(self, deleted=kept).with_given_up(volumes)

    def with_given_up(self, volumes: Iterable[VolumeState]) -> Fleet:
        """Adds to the volumes to drop, for good. A member may have made its copy though nobody has noted that."""
        nodes, dropped = {node.node_id for node in self.nodes}, list(self.dropped_volumes)
        for volume in volumes:
            groups = tuple(replace(g, created_on=(*{*g.created_on, *nodes & {*g.node_ids}},)) for g in volume.groups)
            dropped.append(replace(volume, groups=groups, given_up=True))
        return replace(self, dropped_volumes=tuple(dropped))

    def with_volume(self, volume: VolumeState) -> Fleet:
        """Replaces the volume of the same id, wherever it is."""
        if volume.volume_id == self.control_volume.volume_id:
            return replace(self, control_volume=volume)
        return replace(
            self,
            clusters=tuple(cluster.with_volume(volume) for cluster in self.clusters),
            deleted=tuple(replace(each, cluster=each.cluster.with_volume(volume)) for each in self.deleted),
            dropped_volumes=tuple(volume if v.volume_id == volume.volume_id else v for v in self.dropped_volumes),
        )

    def with_initialised(self, volume_id: UUID) -> Fleet:
        """Notes that the volume holds a complete data directory."""
        volume = next(v for v in self.volumes() if v.volume_id == volume_id)
        return self.with_volume(replace(volume, initialised=True))

    def with_created(self, node_id: str, created: dict[UUID, tuple[int, ...]]) -> Fleet:
        """Notes that `node_id` now has the segments of these groups."""
        fleet = self
        for volume in self.volumes():
            groups = created.get(volume.volume_id, ())
            if groups:
                fleet = fleet.with_volume(_mark_created(volume, node_id, groups))
        return fleet

    def without_dropped(self, node_id: str, volume_ids: set[UUID]) -> Fleet:
        """Notes that `node_id` has forgotten these dropped volumes; one that nobody has any more is gone."""
        kept: list[VolumeState] = []
        for volume in self.dropped_volumes:
            if volume.volume_id in volume_ids:
                groups = tuple(
                    replace(g, created_on=tuple(n for n in g.created_on if n != node_id)) for g in volume.groups
                )
                volume = replace(volume, groups=groups)  # noqa: PLW2901
            if any(group.created_on for group in volume.groups):
                kept.append(volume)
        return replace(self, dropped_volumes=tuple(kept))


def _mark_created(volume: VolumeState, node_id: str, groups: tuple[int, ...]) -> VolumeState:
    return replace(
        volume,
        groups=tuple(
            replace(g, created_on=(*g.created_on, node_id)) if g.group in groups and node_id not in g.created_on else g
            for g in volume.groups
        ),
    )
