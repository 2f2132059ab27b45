"""Sizes of instances: declared when an instance is, changed by a user's word alone, put in force by opening anew.

A change is declared first. Unless it shall wait for the next opening, the loop then sees an instance that was opened
with another size than the declared one, and has it open again (`ResizeInstance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet
from aurora_ray.engine.machine import Machine
from aurora_ray.engine.sizes import MEMORY_MIN_BYTES, default_memory, memory_for_instances
from aurora_ray.errors import UsageError

END_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class ResizeInstance(reconcile.Action):
    """Have an instance that was opened with another size than the declared one open anew."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    instance_id: str


def wanted(fleet: Fleet, seen: Mapping[str, InstanceSeen]) -> Iterator[reconcile.Action]:
    """An instance of an earlier version, which had no sizes, gets its own when it opens next."""
    for cluster in fleet.clusters:
        if cluster.phase is ClusterPhase.DELETING:
            continue
        for instance in cluster.instances:
            now = seen.get(instance.instance_id)
            if now is None or now.phase is not InstancePhase.AVAILABLE or not now.memory_bytes:
                continue
            if instance.memory_bytes not in (0, now.memory_bytes):
                why = f"{instance.instance_id} has {mib(now.memory_bytes)} and shall have {mib(instance.memory_bytes)}"
                yield ResizeInstance(why, instance.instance_id)


def with_sizes(fleet: Fleet, machine: Machine) -> Fleet:
    """Every instance without a size gets the default one. Machines are taken to be alike."""
    for cluster in fleet.clusters:
        for instance in cluster.instances:
            if not instance.memory_bytes and instance.role.traits.addressed:
                memory = default_memory(machine, given(fleet))
                fleet = fleet.with_instance(cluster.name, replace(instance, memory_bytes=memory))
    return fleet


def to_open(fleet: Fleet, cluster_name: str, instance_id: str, machine: Machine) -> Fleet:
    """The declaration with which an instance opens: a size that waited for that is in force now."""
    cluster = next((c for c in fleet.clusters if c.name == cluster_name), None)
    for instance in cluster.instances if cluster is not None else ():
        if instance.instance_id == instance_id and instance.next_memory_bytes:
            sized = replace(instance, memory_bytes=instance.next_memory_bytes, next_memory_bytes=0)
            fleet = fleet.with_instance(cluster_name, sized)
    return with_sizes(fleet, machine)


def check_memory(memory_bytes: int, machine: Machine) -> None:
    """Raises UsageError for a size that no instance can have on such a machine; 0 is the default one."""
    most = memory_for_instances(machine)
    if memory_bytes and not MEMORY_MIN_BYTES <= memory_bytes <= most:
        raise UsageError(
            f"an instance can have from {mib(MEMORY_MIN_BYTES)} to {mib(most)} of memory here, not "
            f"{mib(memory_bytes)}: a machine with {mib(machine.memory_bytes)} keeps a quarter for everything else"
        )


def given(fleet: Fleet, *clusters: DBCluster) -> int:
    """Bytes that instances (of these clusters, else of all) were given on each machine, if they are spread evenly."""
    machines = len({node.host for node in fleet.nodes if node.host}) or 1
    instances = (instance for cluster in clusters or fleet.clusters for instance in cluster.instances)
    return sum(max(i.memory_bytes, i.next_memory_bytes) for i in instances) // machines


def mib(count: int) -> str:
    """For people."""
    return f"{count >> 20} MiB" if count % (1 << 30) else f"{count >> 30} GiB"
