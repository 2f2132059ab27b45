"""Other sizes for the instances of a cluster, by a user's word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.control.decide.sizing import check_memory, given, mib, wanted
from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine
from aurora_ray.engine.sizes import default_memory

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane


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
        others = given(fleet) - given(fleet, cluster)
        memory = memory_bytes or default_memory(machine, others)
        for instance in (each for each in cluster.instances if each.role.traits.addressed):
            later = replace(instance, next_memory_bytes=memory if memory != instance.memory_bytes else 0)
            now = replace(instance, memory_bytes=memory, next_memory_bytes=0)
            fleet = fleet.with_instance(name, later if at_next_start else now)
        return fleet

    writer = (await plane.commit(change)).cluster(name).writer()
    memory = (writer.next_memory_bytes if at_next_start else 0) or writer.memory_bytes
    if memory != before.writer().memory_bytes:
        when = " at its next start" if at_next_start else ""
        plane.events.note(EventKind.CLUSTER, name, f"{name} shall have {mib(memory)} of memory{when}", name)
    if not at_next_start:
        await plane.wait_until(lambda: _in_force(plane, name), timeout_s, f"opening {name} with {mib(memory)}")
    return {
        "memory_bytes": memory,
        "before_bytes": before.writer().memory_bytes,
        "applies": "at the next start" if at_next_start and writer.next_memory_bytes else "now",
    }


def _in_force(plane: ControlPlane, name: str) -> bool:
    cluster = plane.fleet.cluster(name)
    check_hope(plane.attempts, key(Kind.INSTANCE, cluster.writer().instance_id))
    seen = {i: instance.seen for i, instance in plane.processes.instances.items()}
    there = [seen.get(instance.instance_id) for instance in cluster.instances]
    opened = all(s is not None and s.phase is InstancePhase.AVAILABLE for s in there)
    return opened and not any(wanted(plane.fleet, seen)) and plane.endpoints.serves(cluster)
