"""Readers of a cluster: where they go, which one becomes the writer, and who is what then. Pure functions.

A change of the declared state comes first; the loop then starts, ends and opens whatever is not as declared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.sizing import mib
from aurora_ray.control.model.scaling import READERS_MAX
from aurora_ray.control.model.state import TIER_MAX, ClusterPhase, DBCluster, DBInstance, Fleet
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.control.model.observed import InstanceSeen

DEFAULT_TIER = 1


def place_reader(azs: Sequence[str], cluster: DBCluster) -> str:
    """The AZ with the fewest of the cluster's readers; among equals not the writer's, then in the region's order."""
    load = Counter(reader.az for reader in cluster.readers())
    writer_az = cluster.writer().az
    return min(azs, key=lambda az: (load[az], az == writer_az, azs.index(az)))


def check_tier(tier: int) -> None:
    """Raises UsageError for a promotion tier that there is not."""
    if not 0 <= tier <= TIER_MAX:
        raise UsageError(f"a promotion tier is a number from 0 (first) to {TIER_MAX}, not {tier}")


def with_readers(
    fleet: Fleet,
    name: str,
    count: int,
    *,
    tier: int,
    memory_bytes: int,
    ports: Callable[[Fleet, int], Sequence[int]],
    scaled: bool = False,
) -> Fleet:
    """Declares `count` more readers of a cluster; `ports` gives free ones. Raises UsageError."""
    check_tier(tier)
    cluster = fleet.cluster(name)
    if cluster.phase is ClusterPhase.DELETING:
        raise UsageError(f"cluster {name!r} is being deleted")
    if (there := len(cluster.readers())) + count > READERS_MAX:
        raise UsageError(f"cluster {name!r} has {there} readers and can have {READERS_MAX}: {count} more are too many")
    for port in ports(fleet, count) if count else ():
        number = cluster.last_instance_number + 1
        az = place_reader(fleet.azs, cluster)
        reader = DBInstance(f"{name}-{number}", Role.READER, az, port, tier, memory_bytes, scaled=scaled)
        cluster = replace(cluster, instances=(*cluster.instances, reader), last_instance_number=number)
    return fleet.with_cluster(cluster)


def reader_of(fleet: Fleet, instance_id: str) -> tuple[DBCluster, DBInstance]:
    """A reader and its cluster. Raises UsageError for what is none."""
    cluster = fleet.cluster_of(instance_id)
    if cluster is None:
        known = [reader.instance_id for each in fleet.clusters for reader in each.readers()]
        raise UsageError(f"there is no instance {instance_id!r} (readers: {', '.join(known) or 'none'})")
    declared = cluster.instance(instance_id)
    if not declared.role.traits.reads:
        raise UsageError(f"{instance_id} is the {declared.role} of {cluster.name}, not a reader")
    return cluster, declared


def without_reader(fleet: Fleet, instance_id: str) -> Fleet:
    """Forgets a reader, whose process the loop then ends. Raises UsageError."""
    cluster, gone = reader_of(fleet, instance_id)
    return fleet.with_cluster(replace(cluster, instances=tuple(i for i in cluster.instances if i is not gone)))


def with_writer(fleet: Fleet, name: str, target: str) -> Fleet:
    """The instance `target` is the writer, and the one that was is a reader. Raises UsageError."""
    cluster = fleet.cluster(name)
    old, new = cluster.writer(), cluster.instance(target)
    changed = {
        old.instance_id: replace(old, role=Role.READER),
        new.instance_id: replace(new, role=Role.WRITER, scaled=False, leaving_since_s=0.0),
    }
    return fleet.with_cluster(
        replace(cluster, instances=tuple(changed.get(i.instance_id, i) for i in cluster.instances))
    )


def failover_target(cluster: DBCluster, seen: Mapping[str, InstanceSeen]) -> DBInstance | None:
    """The reader that takes the writer's place: of those that serve the lowest promotion tier, then the largest, then
    the one that lags least (Aurora's order; one whose lag is not known comes last), then by name."""

    def rank(reader: DBInstance) -> tuple[int, int, float, str]:
        lag_ms = seen[reader.instance_id].lag_ms
        known_ms = float("inf") if lag_ms is None else lag_ms
        return reader.promotion_tier, -reader.memory_bytes, known_ms, reader.instance_id

    staying = (r for r in cluster.readers() if not r.leaving_since_s)
    serving = (r for r in staying if r.instance_id in seen and seen[r.instance_id].serves(Role.READER))
    return min(serving, key=rank, default=None)


def describe(reader: DBInstance) -> str:
    """For people."""
    size = f", {mib(reader.memory_bytes)}" if reader.memory_bytes else ""
    return f"reader {reader.instance_id} in {reader.az}{size}"
