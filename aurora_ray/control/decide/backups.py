"""Backups: which instance does it, what it is told, and what is declared of a restore. Pure.

ReopenBackup   a backup that was told of another cluster than this one is by now (its parameters, a mark, another
               place) opens anew
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from aurora_ray.backup.manifest import Subject
from aurora_ray.compute.config import BackupOrder
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.backups import BackupPlan
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase, Observed
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet
from aurora_ray.errors import UsageError


@dataclass(frozen=True, slots=True)
class ReopenBackup(Action):
    """Have a backup end; the loop opens it again, as what is declared."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str


def wanted(fleet: Fleet, observed: Observed) -> Iterator[Action]:
    """What has to be done."""
    if not observed.control_open:
        return
    for cluster in fleet.clusters:
        order = order_of(fleet, cluster)
        if order is None or cluster.phase is not ClusterPhase.AVAILABLE:
            continue
        for instance in cluster.instances:
            seen = observed.instances.get(instance.instance_id)
            if seen is None or not seen.serves(Role.BACKUP) or seen.phase is not InstancePhase.AVAILABLE:
                continue
            if seen.described not in ("", order.digest):
                yield ReopenBackup(f"{cluster.name} is not what its backup was told", instance.instance_id)


def order_of(fleet: Fleet, cluster: DBCluster) -> BackupOrder | None:
    """What the backup of a cluster is told; None if there is none. A password is kept only where there is a key."""
    plan = cluster.backup
    if plan is None:
        return None
    subject = Subject(
        cluster.name,
        cluster.engine,
        cluster.engine_version,
        cluster.volume.page_size,
        cluster.volume.group_bytes,
        cluster.writer().memory_bytes,
        len(cluster.readers()),
        cluster.parameters,
        tuple((mark.label, mark.lsn) for mark in cluster.marks if mark.volume_id == cluster.volume.volume_id),
        cluster.superuser_password if plan.key_file else "",
        fleet.region,
        cluster.residency.sorted(),
    )
    place = f"{fleet.fleet_id}/{cluster.volume.volume_id}"
    former = tuple((str(past.volume.volume_id), past.until_s) for past in cluster.past)
    return BackupOrder(plan.url, place, plan.key_file, plan.retention_s, subject, former)


def with_backup(
    fleet: Fleet, name: str, plan: BackupPlan | None, ports: Callable[[Fleet, int], Sequence[int]]
) -> Fleet:
    """The cluster is backed up so from now on, or not any more. Raises UsageError."""
    cluster = fleet.cluster(name)
    if cluster.phase is ClusterPhase.DELETING:
        raise UsageError(f"cluster {name!r} is being deleted")
    there = tuple(each for each in cluster.instances if each.role.traits.archives)
    if plan is None:
        kept = tuple(each for each in cluster.instances if each not in there)
        return fleet.with_cluster(replace(cluster, backup=None, instances=kept))
    if there:
        return fleet.with_cluster(replace(cluster, backup=plan))
    number = cluster.last_instance_number + 1
    (port,) = ports(fleet, 1)  # nothing listens there; it is as every instance's
    runs = DBInstance(f"{name}-{number}", Role.BACKUP, cluster.writer().az, port)
    instances = (*cluster.instances, runs)
    return fleet.with_cluster(replace(cluster, backup=plan, instances=instances, last_instance_number=number))
