"""When a storage node is replaced by a new one, and how its copies move: rules, as pure as those of `reconcile`.

A node whose process ended is started again on its data (`StartNode`), and so it is for as long as it stays away. It is
*replaced* when it has been unreachable for `unreachable_after_s`, or without its data for `data_gone_after_s`: nobody
can give it back what it promised under its name, so whatever takes its place has a new one.

    ReplaceNode         declares a new node beside the old one, in the same AZ; it is started like any other
    ChangeMembers       for each group that the old node holds: begin; once the new node has all of its copy, commit
    NotePlacements      what a writer goes by is what is declared: before its next step, and after anybody's crash
    RemoveNode          the old node holds nothing any more: its process and its data go, and it is forgotten
    CancelReplacement   the old node is well again before anything was committed, or the new one is lost itself; what
                        is being changed is taken back, and the new node is removed once it holds nothing

Volumes that nobody serves (what a rewind left, what a deleted cluster had) move as well, for as long as they are kept:
the control plane opens them for each step, as their next writer would. A node is held for them only while they could
still be moved; of what has lost more copies than that, nothing is left that could.

One node of the fleet is replaced at a time, and one group of a volume moves at a time. Nothing is begun unless a write
quorum of the group's copies runs, and nothing that runs is taken away: until the commit the old node counts as before.
Which step is next follows from what is declared and what the volumes' writers say, so it does not matter who of them
was killed when.

**The same AZ, always.** A copy elsewhere would be the third in its AZ, and would have to move back as soon as the AZ
that it belongs to has machines again. So an AZ of which no storage node runs is waited for: the other four copies are a
write quorum. The price is that one more node lost meanwhile stops writing (not reading) until either is back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import Ailment, InstancePhase, InstanceSeen, NodeSeen, Observed
from aurora_ray.control.model.placement import quorum_up
from aurora_ray.control.model.state import ClusterPhase, Fleet, Group, VolumeState
from aurora_ray.volume.spec import GroupPlacement

if TYPE_CHECKING:
    from aurora_ray.control.model.state import DBCluster


@dataclass(frozen=True, slots=True)
class ReplaceRules:
    """For how long a storage node is waited for, in seconds."""

    unreachable_after_s: float = 300.0
    data_gone_after_s: float = 10.0

    def limit_s(self, ailment: Ailment) -> float:
        """The time of that ailment."""
        return self.unreachable_after_s if ailment is Ailment.UNREACHABLE else self.data_gone_after_s


@dataclass(frozen=True, slots=True)
class ReplaceNode(Action):
    """Declare a new node that takes over the copies of this one."""

    kind: ClassVar = Kind.REPLACEMENT
    node_id: str


@dataclass(frozen=True, slots=True)
class CancelReplacement(Action):
    """Have this new node take nothing over."""

    kind: ClassVar = Kind.REPLACEMENT
    node_id: str


@dataclass(frozen=True, slots=True)
class ChangeMembers(Action):
    """Have a volume's writer take a step of a change (the control volume's is the control plane itself).

    With `filled`, once that node has its copies.
    """

    kind: ClassVar = Kind.MEMBERS
    of: ClassVar = ("volume_id",)
    volume_id: UUID
    instance_id: str
    placement: GroupPlacement
    filled: str = ""


@dataclass(frozen=True, slots=True)
class NotePlacements(Action):
    """Declare what a volume's writer says about who holds its groups."""

    kind: ClassVar = Kind.MEMBERS
    of: ClassVar = ("volume_id",)
    volume_id: UUID
    placements: tuple[GroupPlacement, ...]


@dataclass(frozen=True, slots=True)
class RemoveNode(Action):
    """End the process of a node that holds nothing, remove its directory, and forget it."""

    kind: ClassVar = Kind.REMOVE
    of: ClassVar = ("node_id",)
    node_id: str


def wanted(fleet: Fleet, observed: Observed, now_s: float, rules: ReplaceRules) -> Iterator[Action | str]:
    """What is to be done now. Who holds what is only known once the control state is loaded."""
    if observed.control_open:
        yield from _replacements(fleet, observed, now_s, rules)
        yield from _changes(fleet, observed)
        yield from _removals(fleet, observed)


# ---- whom to replace


def _replacements(fleet: Fleet, observed: Observed, now_s: float, rules: ReplaceRules) -> Iterator[Action | str]:
    pairs = fleet.replacements()
    for old, new in pairs.items():
        why = _overdue(new, observed, now_s, rules)
        if not why and old not in observed.ailing and not _has_taken_over(fleet, new):
            why = f"storage node {old} is well again"
        if why:
            yield CancelReplacement(why, new)
    changing = any(group.next_node_ids for volume in _all_volumes(fleet) for group in volume.groups)
    if pairs or changing or any(node.leaving for node in fleet.nodes):
        return
    answering = {node_id for node_id, seen in observed.nodes.items() if not seen.silent}
    azs = {node.az for node in fleet.nodes if node.node_id in answering}
    for node in sorted(fleet.nodes, key=lambda node: _since_s(node.node_id, observed, now_s)):
        why = _overdue(node.node_id, observed, now_s, rules)
        if why and node.az not in azs:
            yield f"storage node {node.node_id} is waited for: none answers in AZ {node.az}"
        elif why:
            yield _short_of_quorum(fleet, node.node_id, observed) or ReplaceNode(why, node.node_id)
            return


def _overdue(node_id: str, observed: Observed, now_s: float, rules: ReplaceRules) -> str:
    """Why the node is not waited for any longer, or an empty string."""
    case = observed.ailing.get(node_id)
    if case is None or case.over or now_s - case.since_s < rules.limit_s(case.ailment):
        return ""
    return f"storage node {node_id} has been {case.ailment} for {now_s - case.since_s:.0f} s"


def _since_s(node_id: str, observed: Observed, now_s: float) -> float:
    return observed.ailing[node_id].since_s if node_id in observed.ailing else now_s


def _has_taken_over(fleet: Fleet, node_id: str) -> bool:
    return any(node_id in group.node_ids for volume in _all_volumes(fleet) for group in volume.groups)


def _all_volumes(fleet: Fleet) -> tuple[VolumeState, ...]:
    return (*fleet.volumes(), *fleet.kept_volumes())


def _short_of_quorum(fleet: Fleet, node_id: str, observed: Observed) -> str:
    for volume in fleet.volumes():
        for group in volume.groups:
            if node_id in group.node_ids and not quorum_up(group, _answering(volume, group, observed)):
                return (
                    f"storage node {node_id} cannot be replaced yet: too few copies of group {group.group} "
                    f"of volume {volume.volume_id} run"
                )
    return ""


def _answering(volume: VolumeState, group: Group, observed: Observed) -> set[str]:
    """Those that have their copy and answer us: a control plane that is cut off itself finds fault with everybody."""
    return {node_id for node_id in observed.holders(volume, group) if not observed.nodes[node_id].silent}


# ---- moving copies


def _changes(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    pairs = fleet.replacements()
    control = fleet.control_volume
    yield from _change(control, "", observed.control_placements, pairs, observed)
    for cluster in fleet.clusters:
        if cluster.phase is ClusterPhase.AVAILABLE:
            yield from _change_of_cluster(cluster, pairs, observed)
    for volume in fleet.kept_volumes():
        yield from _change_of_kept(volume, pairs, observed)


def _change_of_kept(volume: VolumeState, pairs: Mapping[str, str], observed: Observed) -> Iterator[Action | str]:
    """Nobody says who holds it but its copies: whoever takes the step asks them, and notes what they say."""
    if any(str(volume.volume_id) == seen.volume_id for seen in observed.instances.values()):
        return  # a writer that was rewound has not left it yet
    yield from _change(volume, "", tuple(group.placement for group in volume.groups), pairs, observed)


def _change_of_cluster(cluster: DBCluster, pairs: Mapping[str, str], observed: Observed) -> Iterator[Action | str]:
    writer = cluster.writer().instance_id
    seen = observed.instances.get(writer)
    on_its_volume = seen is not None and seen.volume_id in ("", str(cluster.volume.volume_id))
    if seen is not None and _has_the_volume(seen) and seen.placements and on_its_volume:
        if seen.told == observed.addresses():  # before it knows a new node it can give it nothing
            yield from _change(cluster.volume, writer, seen.placements, pairs, observed)
    elif any(_next_step(group, pairs) for group in cluster.volume.groups):
        yield f"the copies of {cluster.name} cannot move before its writer is available"


def _has_the_volume(seen: InstanceSeen) -> bool:
    return seen.phase is InstancePhase.AVAILABLE and seen.role.traits.owns


def _change(
    volume: VolumeState,
    writer: str,
    in_force: tuple[GroupPlacement, ...],
    pairs: Mapping[str, str],
    observed: Observed,
) -> Iterator[Action | str]:
    declared = {group.group: group for group in volume.groups}
    differing = tuple(p for p in in_force if p.group in declared and declared[p.group].placement != p)
    if differing:
        yield NotePlacements(f"the members of {len(differing)} groups have changed", volume.volume_id, differing)
        return
    for placement in in_force:
        group = declared.get(placement.group)
        step = _next_step(group, pairs) if group is not None else None
        if group is not None and step is not None:
            waits = _cannot(volume, group, step, observed)
            yield waits or ChangeMembers(step.why, volume.volume_id, writer, step.placement, step.filled)
            return


@dataclass(frozen=True, slots=True)
class _Step:
    why: str
    placement: GroupPlacement
    filled: str = ""
    needs: str = ""  # a node that must answer


def _next_step(group: Group, pairs: Mapping[str, str]) -> _Step | None:
    number, members, following = group.group, group.node_ids, group.next_node_ids
    if not following:
        old = next((node_id for node_id in members if node_id in pairs), None)
        if old is None:
            return None
        new = pairs[old]
        changed = tuple(new if node_id == old else node_id for node_id in members)
        why = f"{new} shall have the copy of group {number} in the place of {old}"
        return _Step(why, GroupPlacement(number, members, changed), needs=new)
    leaving = [node_id for node_id in members if node_id not in following]
    coming = [node_id for node_id in following if node_id not in members]
    if [pairs.get(node_id) for node_id in leaving] == coming:
        new = coming[0]
        return _Step(f"{new} is to hold group {number}", GroupPlacement(number, following), filled=new, needs=new)
    return _Step(f"nobody wants group {number} on {', '.join(coming)} any more", GroupPlacement(number, members))


def _cannot(volume: VolumeState, group: Group, step: _Step, observed: Observed) -> str:
    """Why a step must wait, or an empty string."""
    seen = observed.nodes.get(step.needs)
    if step.needs and (seen is None or seen.silent):
        return f"group {group.group} of volume {volume.volume_id} waits for storage node {step.needs}"
    if not quorum_up(group, _answering(volume, group, observed)):
        return f"too few copies of group {group.group} of volume {volume.volume_id} run to change its members"
    return ""


# ---- the end


def _removals(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    in_force = _in_force(fleet, observed)
    held = {n for placements in in_force.values() for p in placements for n in p.all_node_ids}
    for node in fleet.nodes:
        if not fleet.is_done_with(node) or key(Kind.NODE, node.node_id) in observed.busy or node.node_id in held:
            continue
        if node.leaving and not all(in_force.values()):  # a step may have been taken that nobody has noted
            yield f"storage node {node.node_id} is removed when every volume has a writer"
        else:
            yield RemoveNode(f"storage node {node.node_id} holds nothing any more", node.node_id)
    declared = {node.node_id for node in fleet.nodes}
    for node_id, seen in observed.nodes.items():
        if node_id in declared | held:
            continue
        if _is_worthless(fleet, seen, in_force):
            yield RemoveNode(f"storage node {node_id} is not declared", node_id)
        else:  # an older state may have been loaded, which does not know it yet
            yield f"storage node {node_id} is not declared, and is left alone: nobody vouches that its copies can go"


def _is_worthless(fleet: Fleet, seen: NodeSeen, in_force: Mapping[UUID, tuple[GroupPlacement, ...]]) -> bool:
    """Whether nothing on a node that is in no placement in force can be missed: it has no copies, or all of them are of
    volumes that are to be dropped, or whose writers go by others."""
    known = {volume_id for volume_id, placements in in_force.items() if placements}
    known |= {volume.volume_id for volume in fleet.dropped_volumes}
    return not seen.silent and {volume_id for volume_id, _ in seen.segments | seen.refilling} <= known


def _in_force(fleet: Fleet, observed: Observed) -> dict[UUID, tuple[GroupPlacement, ...]]:
    """By volume: who holds its groups, as its writer goes by it; nothing where no writer is available. Those that
    nobody serves go by what is declared."""
    in_force = {fleet.control_volume.volume_id: observed.control_placements}
    declared = {node.node_id for node in fleet.nodes}
    for volume in fleet.kept_volumes():
        if movable := tuple(group.placement for group in volume.groups if group.can_move(declared)):
            in_force[volume.volume_id] = movable
    for cluster in fleet.clusters:
        seen = observed.instances.get(cluster.writer().instance_id)
        available = seen is not None and _has_the_volume(seen)
        in_force[cluster.volume.volume_id] = seen.placements if seen is not None and available else ()
    return in_force
