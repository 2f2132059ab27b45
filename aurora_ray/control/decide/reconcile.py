"""What to do next: declared state, observed state and a clock in, actions out. Nothing here waits, calls or remembers.

`decide` is run every quarter of a second and after every event. It is level-triggered: it looks at what is, never at
what happened, so a control plane that was killed in the middle of anything goes on from wherever things stand. An
action says in a sentence why it is taken; what has to wait says why in a note. Each action has a `key`, and of one key
one action runs at a time; one that failed is tried again after a delay that doubles up to a bound (`Attempt`).

The order of things is given by preconditions alone:

- storage nodes run, know each other's addresses and have the segments that are declared for them (`StartNode`,
  `TellNodes`, `CreateSegments`);
- the control volume is opened once a write quorum of it runs; until then the fleet is the one of the local file, which
  has nodes but no clusters (`OpenControl`);
- an instance's process is started at any time, because starting processes is slow, but the instance is opened only
  when a write quorum of every group of its volume runs (`StartInstance`, `OpenInstance`), a reader when a read quorum
  runs and a writer has served. An instance whose engine or mount ended is opened again in the same process; nothing of
  the old incarnation is used again;
- an instance that is of another kind than declared is ended, and opened as what it shall be in the same process; the
  next writer waits for the one before as long as that ends in order (`ChangeRole`);
- a volume on which an engine serves is noted to be complete, whoever had it opened (`NoteInitialised`);
- a cluster that is paused has no engines: those that run end in order, and nobody starts others (`PauseInstance`);
- repairs that an engine's opening made are not asked for again, whoever had it opened (`NoteRepaired`);
- a volume that fills up gets another group before it is full (`AllocateGroup`), which is given to the writer once a
  write quorum of nodes has the segments, and then to readers (`AddGroup`); who holds a group, readers ask the nodes.
  A writer that is still opening is given room as well, once it has mounted the volume;
- a cluster that shall go loses its instances first, then its declaration, then its segments (`StopInstance`,
  `ForgetCluster`, `DropVolumes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, assert_never
from uuid import UUID

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.abroad import waits_for_regions
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import Addresses, InstancePhase, InstanceSeen, NodeSeen, Observed
from aurora_ray.control.model.origins import Origin
from aurora_ray.control.model.placement import quorum_up
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet, Group, VolumeState
from aurora_ray.log.sizes import READ_QUORUM, WRITE_QUORUM, write_quorum

GROW_BELOW_FREE = 0.25  # of one group's bytes
Items = Iterable["Action | str"]


@dataclass(frozen=True, slots=True)
class SegmentOrder:
    """Segments that a node shall have of one volume. `origin`: it is a fork, and they are made out of its parent's,
    unless they are to be `empty`, for the others to fill."""

    volume_id: UUID
    page_size: int
    groups: tuple[int, ...]
    members: tuple[str, ...]
    origin: Origin | None = None
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do, and why. Actions of one key exclude each other: of one `kind`, of the same thing, which the
    fields named in `of` say (none: there is one)."""

    kind: ClassVar[Kind]
    of: ClassVar[tuple[str, ...]] = ()
    why: str

    @property
    def key(self) -> Key:
        """What it is of, for `Observed.busy` and for attempts."""
        return key(self.kind, "/".join(str(getattr(self, name)) for name in self.of))


@dataclass(frozen=True, slots=True)
class StartNode(Action):
    """Start the storage node's process in its AZ, on its own directory."""

    kind: ClassVar = Kind.NODE
    of: ClassVar = ("node_id",)
    node_id: str


@dataclass(frozen=True, slots=True)
class TellNodes(Action):
    """Give these running nodes the addresses of all."""

    kind: ClassVar = Kind.PEERS
    node_ids: tuple[str, ...]
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class CreateSegments(Action):
    """Have a running node make the segments that it shall have and never had."""

    kind: ClassVar = Kind.SEGMENTS
    of: ClassVar = ("node_id",)
    node_id: str
    segments: tuple[SegmentOrder, ...]


@dataclass(frozen=True, slots=True)
class OpenControl(Action):
    """Open the control volume (which fences an older control plane) and load the declared state."""

    kind: ClassVar = Kind.CONTROL


@dataclass(frozen=True, slots=True)
class StartInstance(Action):
    """Start the process of an instance in its AZ."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class OpenInstance(Action):
    """Open an instance as what it is declared to be: a writer seals the volume first, a reader never does.

    `initialise`: nobody has noted yet that the volume holds a data directory; if it is empty, it gets one.
    """

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str
    initialise: bool


@dataclass(frozen=True, slots=True)
class ChangeRole(Action):
    """End the incarnation of an instance that is of another kind than declared; the process stays, and opens anew."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class NoteInitialised(Action):
    """Note that a cluster's volume holds a complete data directory: an engine serves on it."""

    kind: ClassVar = Kind.INITIALISED
    of: ClassVar = ("cluster",)
    cluster: str
    volume_id: UUID


@dataclass(frozen=True, slots=True)
class NoteRepaired(Action):
    """Note that these repairs of a cluster are made: an engine serves that was opened with them."""

    kind: ClassVar = Kind.REPAIRED
    of: ClassVar = ("cluster",)
    cluster: str
    made: frozenset[str]


@dataclass(frozen=True, slots=True)
class StopInstance(Action):
    """Stop the engine and end the process."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str


@dataclass(frozen=True, slots=True)
class PauseInstance(Action):
    """End the incarnation of an instance of a cluster that is paused; the process stays, to open again soon."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str


@dataclass(frozen=True, slots=True)
class TellInstance(Action):
    """Give an instance the new addresses of the storage nodes."""

    kind: ClassVar = Kind.TELL
    of: ClassVar = ("instance_id",)
    instance_id: str
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class AllocateGroup(Action):
    """Declare another protection group of a cluster's volume."""

    kind: ClassVar = Kind.GROW
    of: ClassVar = ("cluster",)
    cluster: str
    group: int


@dataclass(frozen=True, slots=True)
class AddGroup(Action):
    """Give a declared group to an instance."""

    kind: ClassVar = Kind.ADD_GROUP
    of: ClassVar = ("instance_id",)
    instance_id: str
    group: Group


@dataclass(frozen=True, slots=True)
class ForgetCluster(Action):
    """Take a cluster without instances out of the declared state."""

    kind: ClassVar = Kind.CLUSTER
    of: ClassVar = ("cluster",)
    cluster: str


@dataclass(frozen=True, slots=True)
class DropVolumes(Action):
    """Have a node delete its segments of volumes that are no longer declared."""

    kind: ClassVar = Kind.DROP
    of: ClassVar = ("node_id",)
    node_id: str
    volume_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle decided: actions to start now, and sentences about what has to wait."""

    actions: tuple[Action, ...]
    notes: tuple[str, ...]


def decide(fleet: Fleet, observed: Observed, now_s: float, *, ahead: Items = (), further: Items = ()) -> Plan:
    """One cycle. `now_s` is any monotonic clock, the same that made `Attempt.not_before_s`. `further`: what others want
    done, under the same rules; `ahead`: the same, before what is decided here."""
    actions: list[Action] = []
    notes: list[str] = []
    for item in chain(ahead, _wanted(fleet, observed), further):
        if isinstance(item, str):
            notes.append(item)
            continue
        attempt = observed.attempts.get(item.key)
        if item.key in observed.busy | observed.held or any(item.key == other.key for other in actions):
            continue
        if attempt is not None and attempt.not_before_s > now_s:
            notes.append(f"{item.key} waits for its next attempt: {attempt.error}")
            continue
        actions.append(item)
    return Plan(tuple(actions), tuple(notes))


def _wanted(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    yield from _nodes(fleet, observed)
    if not observed.control_open:
        yield from _control(fleet, observed)
    for cluster in fleet.clusters:
        if cluster.phase is ClusterPhase.DELETING:
            yield from _deletion(cluster, observed)
            continue
        for instance in cluster.instances:
            yield from _instance(cluster, instance, observed)
        if observed.control_open:
            yield from _growth(cluster, observed)
    yield from _orphans(fleet, observed)
    yield from _dropped(fleet, observed)


# ---- storage nodes


def _nodes(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    addresses = observed.addresses()
    for node in fleet.nodes:
        seen = observed.nodes.get(node.node_id)
        if seen is None:
            if not fleet.is_done_with(node):
                yield StartNode(f"storage node {node.node_id} does not run", node.node_id)
            continue
        orders, lost = _segments(fleet, node.node_id, seen, observed)
        if lost:
            yield f"storage node {node.node_id} lacks its copies of {lost} protection group{'' if lost == 1 else 's'}"
        if orders:
            count = sum(len(order.groups) for order in orders)
            yield CreateSegments(f"{node.node_id} shall hold {count} more segments", node.node_id, orders)
    ignorant = tuple(sorted(node_id for node_id, seen in observed.nodes.items() if seen.told != addresses))
    if ignorant:
        why = f"{len(ignorant)} of the {len(addresses)} running storage nodes do not know where the others answer"
        yield TellNodes(why, ignorant, addresses)


def _segments(fleet: Fleet, node_id: str, seen: NodeSeen, observed: Observed) -> tuple[tuple[SegmentOrder, ...], int]:
    """The segments to create on a node, and how many it had once and has no longer."""
    orders: list[SegmentOrder] = []
    has_failed = key(Kind.SEGMENTS, node_id) in observed.attempts
    for volume in fleet.volumes():
        alike: dict[tuple[tuple[str, ...], bool], list[int]] = {}
        for group in volume.groups:
            if node_id in group.node_ids and node_id not in group.created_on:
                forked = len(set(group.created_on).intersection(group.node_ids)) >= write_quorum(len(group.node_ids))
                # A group that the parent did not have at the origin begins empty everywhere.
                new = volume.origin is None or group.group not in dict(volume.origin.tails)
                alike.setdefault((group.node_ids, new or (has_failed and forked)), []).append(group.group)
        orders.extend(
            SegmentOrder(volume.volume_id, volume.page_size, tuple(groups), members, volume.origin, empty)
            for (members, empty), groups in alike.items()
        )
    return tuple(orders), len(lacking(fleet, node_id, seen))


def lacking(fleet: Fleet, node_id: str, seen: NodeSeen) -> frozenset[tuple[UUID, int]]:
    """The groups (volume, number) whose copies a running node had and has no longer."""
    had = {(v.volume_id, g.group) for v in fleet.volumes() for g in v.groups if node_id in g.created_on}
    return frozenset(had - seen.segments)


def _control(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    waits = waits_for(fleet.control_volume, observed)
    yield waits or OpenControl("a write quorum of the control volume runs and its state is not loaded")


def waits_for(volume: VolumeState, observed: Observed, quorum: int = WRITE_QUORUM) -> str:
    """Why the volume cannot be opened yet, or an empty string."""
    for group in volume.groups:
        ready = observed.holders(volume, group)
        if not quorum_up(group, ready, quorum):
            return (
                f"volume {volume.volume_id} waits: {len(ready)} of the {len(group.placement.all_node_ids)} copies "
                f"of group {group.group} run, {quorum} are needed"
            )
    return ""


# ---- clusters


def _instance(cluster: DBCluster, instance: DBInstance, observed: Observed) -> Iterator[Action | str]:
    match instance.role:
        case Role.WRITER | Role.READER | Role.BACKUP | Role.REPLICATOR:
            yield from _engine(cluster, instance, observed)
        case Role.STATIC | Role.REPLICA:
            # Opened as a writer it would seal out the real one.
            yield f"{instance.instance_id} of {cluster.name} is not started: nothing can run a {instance.role} yet"
        case _:
            assert_never(instance.role)


def _engine(cluster: DBCluster, instance: DBInstance, observed: Observed) -> Iterator[Action | str]:
    seen = observed.instances.get(instance.instance_id)
    if cluster.paused_since_s and instance.role.traits.addressed:
        if seen is not None and seen.phase is InstancePhase.AVAILABLE and observed.control_open:
            yield PauseInstance(f"{cluster.name} is paused and {instance.instance_id} serves", instance.instance_id)
        return
    if seen is None:
        why = f"{instance.role} {instance.instance_id} of {cluster.name} has no process"
        yield StartInstance(why, cluster.name, instance.instance_id)
        return
    if seen.phase in (InstancePhase.OPENING, InstancePhase.STOPPING):
        return
    if seen.phase is InstancePhase.AVAILABLE:
        yield from _serving(cluster, instance, seen, observed)
        return
    if not observed.control_open:
        waits = "the control state is not loaded"
    elif instance.role.traits.owns:
        waits = waits_for_regions(cluster, instance, observed)
        waits = waits or waits_for(cluster.volume, observed) or former_writer(cluster, observed)
    elif not cluster.volume.initialised:
        waits = "no writer has served yet"
    else:
        waits = waits_for(cluster.volume, observed, READ_QUORUM)
    if waits:
        yield f"{instance.instance_id} is not opened: {waits}"
        return
    why = f"{instance.instance_id} shall run and is {seen.phase}" + (f" ({seen.reason})" if seen.reason else "")
    yield OpenInstance(why, cluster.name, instance.instance_id, initialise=not cluster.volume.initialised)


def _serving(
    cluster: DBCluster, instance: DBInstance, seen: InstanceSeen, observed: Observed
) -> Iterator[Action | str]:
    instance_id = instance.instance_id
    if seen.role not in (instance.role, cluster.served_as(instance)):
        if observed.control_open:
            why = f"{instance_id} is a {seen.role} and shall be the {instance.role} of {cluster.name}"
            yield ChangeRole(why, instance_id, instance.role)
        return
    if seen.role.traits.writes and not cluster.volume.initialised and observed.control_open:
        why = f"{instance_id} serves on the volume of {cluster.name}, so its data directory is complete"
        yield NoteInitialised(why, cluster.name, cluster.volume.volume_id)
    made = seen.repaired.intersection(cluster.repairs)
    if made and observed.control_open:
        yield NoteRepaired(f"{instance_id} serves and was repaired", cluster.name, made)
    if seen.told != observed.addresses():
        why = f"{instance_id} does not know where all running storage nodes answer"
        yield TellInstance(why, instance_id, observed.addresses())


def former_writer(cluster: DBCluster, observed: Observed) -> str:
    """Why the next writer cannot be opened yet: one that ends in order has made all of its redo durable then, and no
    commit of it has an unknown outcome. One that is killed, or opens something, is not waited for: the seal shuts it
    out."""
    for other in cluster.instances:
        seen = observed.instances.get(other.instance_id)
        if other.role.traits.owns or seen is None or not seen.role.traits.owns:
            continue
        ends_in_order = seen.phase is InstancePhase.STOPPING and key(Kind.INSTANCE, other.instance_id) in observed.busy
        if ends_in_order or seen.phase is InstancePhase.AVAILABLE:
            return f"{other.instance_id}, the writer before, has not ended yet"
    return ""


def nearly_out_of_room(volume: VolumeState, seen: InstanceSeen) -> bool:
    """Whether a volume should grow, by what its writer says."""
    return seen.free_bytes is not None and seen.free_bytes < volume.group_bytes * GROW_BELOW_FREE


def _takes_groups(seen: InstanceSeen) -> bool:
    """Whether a writer can be given groups: it serves, or it opens and has its volume mounted. What an engine writes
    before it serves (a recovery, files that are made anew) may not fit in what is there, and it would wait for ever."""
    opens = seen.phase is InstancePhase.OPENING and seen.role.traits.writes and seen.free_bytes is not None
    return seen.serves(Role.WRITER) or opens


def _growth(cluster: DBCluster, observed: Observed) -> Iterator[Action | str]:
    writer = cluster.writer()
    seen = observed.instances.get(writer.instance_id)
    if seen is None or not _takes_groups(seen) or seen.volume_id not in ("", str(cluster.volume.volume_id)):
        return
    for group in cluster.volume.groups:
        if group.group not in seen.groups:
            if not quorum_up(group, observed.holders(cluster.volume, group)):
                yield f"group {group.group} of {cluster.name} waits for {WRITE_QUORUM} nodes that have its segments"
                return
            yield AddGroup(f"{writer.instance_id} does not use group {group.group} yet", writer.instance_id, group)
            return
        for reader in cluster.readers():
            follows = observed.instances.get(reader.instance_id)
            if follows is not None and follows.serves(Role.READER) and group.group not in follows.groups:
                why = f"{reader.instance_id} does not know of group {group.group} yet"
                yield AddGroup(why, reader.instance_id, group)
    if nearly_out_of_room(cluster.volume, seen):
        if not cluster.volume.may_grow(observed.volume_limit_bytes):
            yield f"the volume of {cluster.name} has grown as far as it may: {observed.volume_limit_bytes} bytes"
            return
        why = f"the volume of {cluster.name} has only {seen.free_bytes} bytes left"
        yield AllocateGroup(why, cluster.name, len(cluster.volume.groups))


def _deletion(cluster: DBCluster, observed: Observed) -> Iterator[Action | str]:
    maybe = observed.instances.keys() | observed.unsure
    running = [i.instance_id for i in cluster.instances if i.instance_id in maybe]
    for instance_id in running:
        yield StopInstance(f"cluster {cluster.name} shall be deleted", instance_id)
    if not running:
        yield ForgetCluster(f"cluster {cluster.name} shall be deleted and has no process left", cluster.name)


def _orphans(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    declared = {instance.instance_id for cluster in fleet.clusters for instance in cluster.instances}
    if not observed.control_open:
        return
    for instance_id in sorted(observed.instances.keys() | observed.unsure):
        if instance_id not in declared:
            yield StopInstance(f"instance {instance_id} is not declared", instance_id)


def _is_forked(volume: VolumeState, origin: Origin) -> bool:
    """Whether a write quorum has each group that the parent had."""
    had = dict(origin.tails)
    return all(
        len(set(group.created_on).intersection(group.node_ids)) >= write_quorum(len(group.node_ids))
        for group in volume.groups
        if group.group in had
    )


def _dropped(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    needed = {v.origin.parent for v in fleet.volumes() if v.origin is not None and not _is_forked(v, v.origin)}
    for node_id in observed.nodes:
        if key(Kind.SEGMENTS, node_id) in observed.busy:
            continue  # it may be making what is to go
        held = [v.volume_id for v in fleet.dropped_volumes if any(node_id in g.created_on for g in v.groups)]
        gone = tuple(volume_id for volume_id in held if volume_id not in needed)
        if len(gone) < len(held):
            yield f"{node_id} keeps {len(held) - len(gone)} deleted volumes until what was forked of them is there"
        if gone:
            yield DropVolumes(f"{node_id} still has segments of {len(gone)} deleted volumes", node_id, gone)
