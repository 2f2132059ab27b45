"""Clusters that a user deleted: kept whole for a while, listed, restored by a word, given up when their time is over.

Deleting takes the processes and the endpoints away; the declaration goes to `Fleet.deleted`, and the volume stays on
its storage nodes as it is. So restoring is a change of the declared state alone. When the time is over, or a user says
so, the nodes are told to drop the volume, and to keep nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DeletedCluster, Fleet, StorageNode
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

DELETED_MAX: Final = 1000  # records in the declared state; beyond that, someone must purge before more is deleted


@dataclass(frozen=True, slots=True)
class GiveUpDeleted(reconcile.Action):
    """Have the nodes drop the volume of a deleted cluster whose time is over."""

    kind: ClassVar = Kind.GRAVEYARD
    of: ClassVar = ("volume_id",)
    volume_id: str


def wanted(fleet: Fleet, wall_s: float) -> Iterator[reconcile.Action]:
    """`wall_s`: Unix time. A clock that was set back keeps things longer."""
    for each in fleet.deleted:
        if each.until_s <= wall_s:
            why = f"{each.cluster.name} was deleted and is no longer kept"
            yield GiveUpDeleted(why, str(each.cluster.volume.volume_id))


def with_deleted(fleet: Fleet, name: str, kept_s: float) -> Fleet:
    """Takes a cluster out of the declaration, to be kept for `kept_s`."""
    now_s = time.time()
    cluster = fleet.cluster(name)
    record = DeletedCluster(cluster, now_s, now_s + (0.0 if cluster.until_s else kept_s))
    rest = tuple(cluster for cluster in fleet.clusters if cluster.name != name)
    return replace(fleet, clusters=rest, deleted=(*fleet.deleted, record))


def require_room(fleet: Fleet) -> None:
    """Raises UsageError if no more may be deleted before something is purged."""
    if len(fleet.deleted) >= DELETED_MAX:
        raise UsageError(f"{DELETED_MAX} deleted clusters are kept already: `aurora graveyard purge` some first")


def source(fleet: Fleet, name: str) -> DBCluster:
    """The cluster of that name; if none is declared, the newest deleted one that is still kept, or the one with that
    volume id. Raises UsageError."""
    declared = next((cluster for cluster in fleet.clusters if cluster.name == name), None)
    if declared is not None:
        return declared
    if any(name in (d.cluster.name, str(d.cluster.volume.volume_id)) for d in fleet.deleted):
        return find(fleet, name).cluster
    return fleet.cluster(name)


def find(fleet: Fleet, entry: str) -> DeletedCluster:
    """The newest deleted cluster of that name, or the one with that volume id. Raises UsageError."""
    found = [d for d in fleet.deleted if entry in (d.cluster.name, str(d.cluster.volume.volume_id))]
    if not found:
        known = ", ".join(sorted({d.cluster.name for d in fleet.deleted})) or "nothing"
        raise UsageError(f"no deleted cluster {entry!r} is kept (there is: {known}); see `aurora graveyard list`")
    return max(found, key=lambda d: d.deleted_at_s)


def with_restored(fleet: Fleet, entry: str, new_name: str, free_ports: Callable[[Fleet, int], list[int]]) -> Fleet:
    """Declares a deleted cluster again, with all that it had; ports that others have by now are replaced.

    Raises UsageError if its name is taken, ConfigurationError if no ports are free.
    """
    record = find(fleet, entry)
    name = new_name or record.cluster.name
    if any(cluster.name == name for cluster in fleet.clusters):
        raise UsageError(f"there is a cluster {name!r} again: restore the deleted one with --as and another name")
    taken = {port for c in fleet.clusters for port in (*c.endpoint_ports().values(), *(i.port for i in c.instances))}
    cluster = replace(_renamed(record.cluster, name), phase=ClusterPhase.AVAILABLE)
    wanted_ports = [*cluster.endpoint_ports().values(), *(i.port for i in cluster.instances)]
    if taken.intersection(wanted_ports):
        cluster = _with_ports(cluster, free_ports(fleet, len(wanted_ports)))
    rest = tuple(each for each in fleet.deleted if each is not record)
    return replace(fleet.with_cluster(cluster), deleted=rest, nodes=(*fleet.nodes, *_gone_meanwhile(fleet, cluster)))


def _gone_meanwhile(fleet: Fleet, cluster: DBCluster) -> tuple[StorageNode, ...]:
    """Members of its volume that were replaced while nobody counted them: declared again, without their data, so that
    others take their place in this volume as well."""
    members = {node_id for group in cluster.volume.groups for node_id in group.placement.all_node_ids}
    gone = sorted(members - {node.node_id for node in fleet.nodes})
    return tuple(StorageNode(node_id, node_id.rpartition("-")[0]) for node_id in gone)


def _renamed(cluster: DBCluster, name: str) -> DBCluster:
    def renamed(instance_id: str) -> str:
        return name + instance_id.removeprefix(cluster.name)

    instances = tuple(replace(i, instance_id=renamed(i.instance_id)) for i in cluster.instances)
    endpoints = tuple(
        replace(e, members=tuple(map(renamed, e.members)), excluded=tuple(map(renamed, e.excluded)))
        for e in cluster.custom_endpoints
    )
    return replace(cluster, name=name, instances=instances, custom_endpoints=endpoints)


def _with_ports(cluster: DBCluster, ports: list[int]) -> DBCluster:
    endpoints = cluster.endpoint_ports()
    instances = tuple(replace(i, port=port) for i, port in zip(cluster.instances, ports[len(endpoints) :], strict=True))
    for endpoint, port in zip(endpoints, ports, strict=False):
        cluster = cluster.with_endpoint_port(endpoint, port)
    return replace(cluster, instances=instances)


def report(deleted: Iterable[DeletedCluster]) -> list[dict[str, Any]]:
    """For `aurora graveyard list --json`, the newest first."""
    return [
        {
            "cluster": d.cluster.name,
            "engine": d.cluster.engine,
            "engine_version": d.cluster.engine_version,
            "volume": str(d.cluster.volume.volume_id),
            "protection_groups": len(d.cluster.volume.groups),
            "deleted_at_s": d.deleted_at_s,
            "until_s": d.until_s,
        }
        for d in sorted(deleted, key=lambda d: -d.deleted_at_s)
    ]
