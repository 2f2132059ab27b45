"""Sizes of instances: declared when an instance is, changed by a user's word alone, put in force by opening anew.

A change is declared first. Unless it shall wait for the next opening, the loop then sees an instance that was opened
with another size than the declared one, and has it open again (`ResizeInstance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet
from aurora_ray.control.perform.ending import end_in_order
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import Machine, this_machine
from aurora_ray.engine.sizes import MEMORY_MIN_BYTES, default_memory, memory_for_instances
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from aurora_ray.control.plane import ControlPlane

END_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class ResizeInstance(reconcile.Action):
    """Have an instance that was opened with another size than the declared one open anew."""

    instance_id: str

    @property
    def key(self) -> Key:
        """Shared by all that changes an instance."""
        return key(Kind.INSTANCE, self.instance_id)


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
                why = (
                    f"{instance.instance_id} has {_mib(now.memory_bytes)} and shall have {_mib(instance.memory_bytes)}"
                )
                yield ResizeInstance(why, instance.instance_id)


async def resize(plane: ControlPlane, action: ResizeInstance) -> None:
    """Carries the action out: the loop opens it again."""
    instance = plane.processes.instances.get(action.instance_id)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_in_order(plane, instance, END_TIMEOUT_S)


def with_sizes(fleet: Fleet, machine: Machine) -> Fleet:
    """Every instance without a size gets the default one. Machines are taken to be alike."""
    for cluster in fleet.clusters:
        for instance in cluster.instances:
            if not instance.memory_bytes:
                memory = default_memory(machine, _given(fleet))
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


async def modify(
    plane: ControlPlane, name: str, memory_bytes: int, *, at_next_start: bool, timeout_s: float
) -> dict[str, Any]:
    """Declares another size for the instances of a cluster (0: the default one); returns when it is in force, or at
    once if it shall wait for the next start of the engine.

    Raises UsageError for a size that no instance can have here, and what `wait_until` raises.
    """
    machine = this_machine()
    check_memory(memory_bytes, machine)
    before = plane.fleet.cluster(name)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(name)
        others = _given(fleet) - _given(fleet, cluster)
        memory = memory_bytes or default_memory(machine, others)
        for instance in cluster.instances:
            later = replace(instance, next_memory_bytes=memory if memory != instance.memory_bytes else 0)
            now = replace(instance, memory_bytes=memory, next_memory_bytes=0)
            fleet = fleet.with_instance(name, later if at_next_start else now)
        return fleet

    writer = (await plane.commit(change)).cluster(name).writer()
    memory = (writer.next_memory_bytes if at_next_start else 0) or writer.memory_bytes
    if memory != before.writer().memory_bytes:
        when = " at its next start" if at_next_start else ""
        plane.events.note(EventKind.CLUSTER, name, f"{name} shall have {_mib(memory)} of memory{when}", name)
    if not at_next_start:
        await plane.wait_until(lambda: _in_force(plane, name), timeout_s, f"opening {name} with {_mib(memory)}")
    return {
        "memory_bytes": memory,
        "before_bytes": before.writer().memory_bytes,
        "applies": "at the next start" if at_next_start and writer.next_memory_bytes else "now",
    }


def check_memory(memory_bytes: int, machine: Machine) -> None:
    """Raises UsageError for a size that no instance can have on such a machine; 0 is the default one."""
    most = memory_for_instances(machine)
    if memory_bytes and not MEMORY_MIN_BYTES <= memory_bytes <= most:
        raise UsageError(
            f"an instance can have from {_mib(MEMORY_MIN_BYTES)} to {_mib(most)} of memory here, not "
            f"{_mib(memory_bytes)}: a machine with {_mib(machine.memory_bytes)} keeps a quarter for everything else"
        )


def _in_force(plane: ControlPlane, name: str) -> bool:
    cluster = plane.fleet.cluster(name)
    attempt = plane.attempts.get(key(Kind.INSTANCE, cluster.writer().instance_id))
    if attempt is not None and attempt.permanent:
        raise AuroraError(attempt.error)
    seen = {i: instance.seen for i, instance in plane.processes.instances.items()}
    there = [seen.get(instance.instance_id) for instance in cluster.instances]
    opened = all(s is not None and s.phase is InstancePhase.AVAILABLE for s in there)
    return opened and not any(wanted(plane.fleet, seen)) and plane.endpoints.serves(cluster)


def _given(fleet: Fleet, *clusters: DBCluster) -> int:
    """Bytes that instances (of these clusters, else of all) were given on each machine, if they are spread evenly."""
    machines = len({node.host for node in fleet.nodes if node.host}) or 1
    instances = (instance for cluster in clusters or fleet.clusters for instance in cluster.instances)
    return sum(max(i.memory_bytes, i.next_memory_bytes) for i in instances) // machines


def _mib(count: int) -> str:
    return f"{count >> 20} MiB" if count % (1 << 30) else f"{count >> 30} GiB"
