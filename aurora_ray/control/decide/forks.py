"""Forked volumes, and what is kept of the past: rules, as pure as those of `reconcile`.

A clone or a rewind is declared as a volume with an *origin*; nothing else needs to be remembered. Its segments are made
by those nodes that hold the parent (`CreateSegments`, whose orders say where to fork), and it is opened once four of
six have theirs. A node whose fork failed when that many are there gets an empty copy, which the others fill.

    FollowVolume   an instance that was opened on another volume than its cluster has now opens anew: a rewind's end
    KeepHistory    a node keeps history for as long as a cluster's window says, of the present volume and of past ones
    ForgetPast     a past volume has outlived the window: its segments go
    EndTemporary   the time of a temporary cluster is over, and nobody is connected
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final
from uuid import UUID

from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase, Observed
from aurora_ray.control.model.origins import Origin
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet, Group, PastVolume, VolumeState

STARTS_WITHIN_S: Final = 300.0  # a temporary cluster, after its time is over already


@dataclass(frozen=True, slots=True)
class FollowVolume(Action):
    """Have an instance end its incarnation, which is on another volume than its cluster's."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str


@dataclass(frozen=True, slots=True)
class KeepHistory(Action):
    """Tell a node for how long (seconds, bytes of log a segment) to keep history of these volumes."""

    kind: ClassVar = Kind.RETENTION
    of: ClassVar = ("node_id",)
    node_id: str
    wanted: tuple[tuple[UUID, int, int], ...]


@dataclass(frozen=True, slots=True)
class ForgetPast(Action):
    """Give up a volume that a cluster had before it was rewound."""

    kind: ClassVar = Kind.PAST
    of: ClassVar = ("volume_id",)
    cluster: str
    volume_id: UUID


@dataclass(frozen=True, slots=True)
class EndTemporary(Action):
    """Delete a temporary cluster."""

    kind: ClassVar = Kind.CLUSTER
    of: ClassVar = ("cluster",)
    cluster: str


def wanted(fleet: Fleet, observed: Observed, wall_s: float) -> Iterator[Action]:
    """`wall_s`: Unix time."""
    if not observed.control_open:
        return
    for cluster in fleet.clusters:
        if cluster.phase is not ClusterPhase.AVAILABLE:
            continue
        yield from _followers(cluster, observed)
        for past in cluster.past:
            if past.kept_until_s <= wall_s:
                why = f"what {cluster.name} was before it was rewound is no longer kept"
                yield ForgetPast(why, cluster.name, past.volume.volume_id)
        if cluster.until_s and cluster.until_s <= wall_s and not _is_used(cluster, observed, wall_s):
            yield EndTemporary(f"the time of {cluster.name} is over and nobody uses it", cluster.name)
    yield from _retention(fleet, observed)


def _followers(cluster: DBCluster, observed: Observed) -> Iterator[Action]:
    for instance in cluster.instances:
        seen = observed.instances.get(instance.instance_id)
        if seen is None or seen.phase is not InstancePhase.AVAILABLE:
            continue
        if seen.volume_id not in ("", str(cluster.volume.volume_id)):
            yield FollowVolume(f"{instance.instance_id} is on a volume that {cluster.name} had", instance.instance_id)


def _is_used(cluster: DBCluster, observed: Observed, wall_s: float) -> bool:
    """Also while it starts, for a time: what goes on then is not cut short."""
    seen = [observed.instances.get(instance.instance_id) for instance in cluster.instances]
    starts = any(each is None or each.phase is not InstancePhase.AVAILABLE for each in seen)
    if starts and wall_s < cluster.until_s + STARTS_WITHIN_S:
        return True
    return any(each is not None and each.connections for each in seen)


def _retention(fleet: Fleet, observed: Observed) -> Iterator[Action]:
    clusters = (*fleet.clusters, *(each.cluster for each in fleet.deleted))  # a copy that moved is told as well
    declared = {
        volume.volume_id: (volume.volume_id, cluster.window_s, cluster.window_log_bytes)
        for cluster in clusters
        for volume in (cluster.volume, *(past.volume for past in cluster.past))
    }
    for node_id, seen in observed.nodes.items():
        if seen.retention is None or seen.silent:
            continue
        held = {volume_id for volume_id, _ in seen.segments}
        told = {volume_id for volume_id, *_ in seen.retention}  # as of the last look: newer ones at the next
        missing = tuple(want for v, want in declared.items() if v in held & told and want not in seen.retention)
        if missing:
            yield KeepHistory(f"{node_id} keeps history of {len(missing)} volumes for another time", node_id, missing)


# ---- changes of the declared state


def forked(parent: VolumeState, origin: Origin, volume_id: UUID) -> VolumeState:
    """The volume that is to be forked from `parent`, on the nodes that hold it."""
    groups = tuple(Group(group.group, group.node_ids) for group in parent.groups)
    return VolumeState(volume_id, parent.page_size, parent.group_bytes, groups, initialised=True, origin=origin)


def with_rewound(fleet: Fleet, name: str, before: UUID, volume: VolumeState, wall_s: float) -> Fleet:
    """The cluster goes on with `volume`, and what it had until now (`before`) is past. Nothing, if that is not so."""
    cluster = fleet.cluster(name)
    if cluster.volume.volume_id != before:
        return fleet
    past = PastVolume(cluster.volume, wall_s, wall_s + cluster.window_s)
    return fleet.with_cluster(replace(cluster, volume=volume, past=(past, *cluster.past)))


def without_past(fleet: Fleet, name: str, volume_id: UUID) -> Fleet:
    """Gives a past volume up."""
    cluster = next((c for c in fleet.clusters if c.name == name), None)
    gone = [past for past in cluster.past if past.volume.volume_id == volume_id] if cluster is not None else []
    if cluster is None or not gone:
        return fleet
    kept = tuple(past for past in cluster.past if past not in gone)
    return fleet.with_cluster(replace(cluster, past=kept)).with_given_up(past.volume for past in gone)


def in_force_at(cluster: DBCluster, time_s: float) -> VolumeState:
    """The volume that was the cluster's at a time, as far as it is still kept."""
    found = cluster.volume
    for past in cluster.past:  # the newest first
        if time_s < past.until_s:
            found = past.volume
    return found
