"""The declared state: which clusters, instances, volumes and storage nodes there shall be.

All of it is immutable: a change makes a new `Fleet`, which is first saved (see store.py) and then acted upon, so what
the reconciler sees is always what a restarted control plane would see. Nothing observed (process ids, addresses of
storage nodes, roles that an engine reports) is in here.

Serialised form: msgpack of `{"format": FORMAT, "fleet": {...}}`; dataclasses as maps by field name, UUIDs as 16 bytes,
tuples as arrays. A reader refuses a format newer than its own and fills in defaults for fields that are missing, so an
added field with a default needs no new format. Format 2 seals secrets (see sealing.py); format 1 had them in clear.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]

from aurora_ray.compute.role import Role
from aurora_ray.control.model.sealing import SECRET, seal, secret_fields, unseal
from aurora_ray.errors import ConfigurationError, MalformedError, UsageError
from aurora_ray.log.sizes import COPIES_PER_AZ
from aurora_ray.volume.spec import GroupPlacement

FORMAT = 2  # 2: sealed passwords; deleted clusters, which an older program would forget
FIRST_NODES_PER_AZ = COPIES_PER_AZ

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

    def placed(self, placement: GroupPlacement) -> Group:
        """After a step of a change: a node that came in by it has made its copy."""
        before = self.placement.all_node_ids
        created_on = tuple(n for n in placement.all_node_ids if n in self.created_on or n not in before)
        return Group(self.group, placement.node_ids, created_on, placement.next_node_ids or ())


@dataclass(frozen=True, slots=True)
class VolumeState:
    """A volume and where its groups live. `initialised` once it holds a complete data directory; `given_up` by a user's
    word, or when the time after it was over: who drops it need not bury it."""

    volume_id: UUID
    page_size: int
    group_bytes: int
    groups: tuple[Group, ...]
    initialised: bool = False
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class DBInstance:
    """One engine process, of one kind. `port` is where the engine listens.

    `memory_bytes` is its size (0: none yet), `next_memory_bytes` the one that it gets when it opens next (0: no other).
    """

    instance_id: str
    role: Role
    az: str
    port: int
    promotion_tier: int = 1
    memory_bytes: int = 0
    next_memory_bytes: int = 0


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

    def endpoint_port(self, role: Role) -> int:
        """Of the endpoint that leads to instances of that role."""
        return self.port if role is Role.WRITER else self.reader_port

    def with_endpoint_port(self, role: Role, port: int) -> DBCluster:
        """The same cluster, with that endpoint elsewhere."""
        return replace(self, port=port) if role is Role.WRITER else replace(self, reader_port=port)

    def __post_init__(self) -> None:
        writers = [i.instance_id for i in self.instances if i.role is Role.WRITER]
        if len(writers) > 1:
            raise UsageError(f"cluster {self.name!r} cannot have more than one writer, not {', '.join(writers)}")

    def writer(self) -> DBInstance:
        """The instance that is declared to be the writer."""
        return next(instance for instance in self.instances if instance.role is Role.WRITER)


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

    def replacements(self) -> dict[str, str]:
        """Old node -> the one that takes over its copies."""
        return {node.replaces: node.node_id for node in self.nodes if node.replaces}

    def holds(self, node_id: str) -> bool:
        """Whether any volume has copies on that node, or is getting them."""
        groups = (group for volume in self.volumes() for group in volume.groups)
        return any(node_id in group.placement.all_node_ids for group in groups)

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
        for volume in self.volumes():
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
        volumes = tuple(replace(each.cluster.volume, given_up=True) for each in gone)
        kept = tuple(each for each in self.deleted if each not in gone)
        return replace(self, deleted=kept, dropped_volumes=(*self.dropped_volumes, *volumes))

    def with_volume(self, volume: VolumeState) -> Fleet:
        """Replaces the volume of the same id, wherever it is."""
        if volume.volume_id == self.control_volume.volume_id:
            return replace(self, control_volume=volume)
        return replace(
            self,
            clusters=tuple(
                replace(c, volume=volume) if c.volume.volume_id == volume.volume_id else c for c in self.clusters
            ),
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


# ---- serialisation


def pack(fleet: Fleet) -> bytes:
    """The state as bytes."""
    packed: bytes = msgpack.packb({"format": FORMAT, "fleet": _plain(fleet)}, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Fleet:
    """The state from bytes. Raises MalformedError, or ConfigurationError if a newer version wrote it."""
    try:
        document = msgpack.unpackb(data, raw=False, use_list=True)
        written_by = int(document["format"])
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise MalformedError(f"The control state does not parse: {error}.") from error
    if written_by > FORMAT:
        raise ConfigurationError(
            f"The control state has format {written_by}, this aurora-ray knows up to {FORMAT}: use the newer version."
        )
    try:
        return _fleet(document["fleet"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"The control state lacks something: {error!r}.") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        sealed = {name: seal(f"{type(value).__name__}.{name}", plain[name]) for name in secret_fields(type(value))}
        return plain | sealed
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, UUID):
        return value.bytes
    return str(value) if isinstance(value, StrEnum) else value


def _known(cls: type[Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Only the fields that this version knows: an older program may read what a newer one of the same format wrote."""
    names = {f.name for f in dataclasses.fields(cls)}
    known = {key: value for key, value in plain.items() if key in names}
    for name in secret_fields(cls):
        if name in known:
            known[name] = unseal(f"{cls.__name__}.{name}", known[name])
    return known


def _group(plain: dict[str, Any]) -> Group:
    known = _known(Group, plain)
    nodes = {name: tuple(known.get(name, ())) for name in ("created_on", "next_node_ids")}
    return Group(**{**known, **nodes, "node_ids": tuple(known["node_ids"])})


def _volume(plain: dict[str, Any]) -> VolumeState:
    known = _known(VolumeState, plain)
    groups = tuple(_group(group) for group in known["groups"])
    return VolumeState(**{**known, "volume_id": UUID(bytes=known["volume_id"]), "groups": groups})


def _instance(plain: dict[str, Any]) -> DBInstance:
    known = _known(DBInstance, plain)
    return DBInstance(**{**known, "role": Role(known["role"])})


def _cluster(plain: dict[str, Any]) -> DBCluster:
    known = _known(DBCluster, plain)
    return DBCluster(
        **{
            **known,
            "volume": _volume(known["volume"]),
            "instances": tuple(_instance(instance) for instance in known["instances"]),
            "phase": ClusterPhase(known["phase"]),
            "parameters": tuple((str(name), str(value)) for name, value in known.get("parameters", ())),
            "repairs": tuple(known.get("repairs", ())),
        }
    )


def _deleted(plain: dict[str, Any]) -> DeletedCluster:
    known = _known(DeletedCluster, plain)
    return DeletedCluster(**{**known, "cluster": _cluster(known["cluster"])})


def _fleet(plain: dict[str, Any]) -> Fleet:
    known = _known(Fleet, plain)
    return Fleet(
        **{
            **known,
            "fleet_id": UUID(bytes=known["fleet_id"]),
            "azs": tuple(known["azs"]),
            "nodes": tuple(StorageNode(**_known(StorageNode, node)) for node in known["nodes"]),
            "control_volume": _volume(known["control_volume"]),
            "clusters": tuple(_cluster(cluster) for cluster in known["clusters"]),
            "dropped_volumes": tuple(_volume(volume) for volume in known.get("dropped_volumes", ())),
            "deleted": tuple(_deleted(deleted) for deleted in known.get("deleted", ())),
        }
    )
