"""A failover that was asked for, in order: a reader's instance becomes the writer, and the writer's a reader; or, where
there are no readers, the writer goes to another AZ.

What takes time and needs no standstill comes first: the writer writes back what its end would have to, and to move
it, a process in the new place gets its engine ready. Then, to change roles, the loop ends both incarnations at the
same time, after one change of the declared state, and opens the writer as soon as the one before has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.commands import WriteBack
from aurora_ray.compute.role import Role
from aurora_ray.control.decide.readers import failover_target, with_writer
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.perform.ending import end_in_order
from aurora_ray.control.perform.means import engine_choice
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.plane import ControlPlane

READY_TIMEOUT_S: Final = 10.0
WRITE_BACK_TIMEOUT_S: Final = 10.0


async def fail_over(plane: ControlPlane, name: str, target: str | None, timeout_s: float) -> None:
    """Moves the role of the writer to `target`, or to the reader that `failover_target` chooses; without readers that
    serve, moves the writer. Returns when that is under way.

    Raises UsageError for a target that is no reader of the cluster, or does not serve.
    """
    cluster, seen = plane.fleet.cluster(name), plane.observe().instances
    if target is None:
        chosen = failover_target(cluster, seen)
        if chosen is None:
            await move_writer(plane, name, timeout_s)
            return
        target = chosen.instance_id
    _check_target(plane, name, target)
    before = cluster.writer().instance_id
    await _write_back(plane, before, timeout_s)
    if plane.config.promote_in_place:  # what it would be recovered from shall not be much older than the writer's end
        await _write_back(plane, target, timeout_s, Role.READER)
    _check_target(plane, name, target)

    def change(fleet: Fleet) -> Fleet:
        if fleet.cluster(name).writer().instance_id != before:
            raise UsageError(f"{name} has another writer by now: ask again if it shall move once more")
        return with_writer(fleet, name, target)

    await plane.commit(change)
    told = f"failover of {name} was asked for: {target} is to be the writer, {before} a reader"
    plane.say(told)
    plane.events.note(EventKind.FAILOVER, target, told, name)
    plane.failovers.asked(target)
    for instance_id in (before, target):
        plane.attempts.pop(key(Kind.INSTANCE, instance_id), None)
    plane.notify()


def _check_target(plane: ControlPlane, name: str, target: str) -> None:
    declared, seen = plane.fleet.cluster(name).instance(target), plane.observe().instances
    if not declared.role.traits.reads:
        raise UsageError(f"{target} is the {declared.role} of {name} already: choose a reader")
    if target not in seen or not seen[target].serves(Role.READER):
        raise UsageError(f"{target} does not serve at the moment: choose another reader, or leave --target out")


async def _write_back(plane: ControlPlane, instance_id: str, timeout_s: float, role: Role = Role.WRITER) -> None:
    """What the writer's end would have to write while nobody can write is written before, for the most part. A writer
    that does not get to it ends all the same."""
    instance = plane.processes.instances.get(instance_id)
    if instance is None or not instance.seen.serves(role):
        return
    limit_s = min(timeout_s / 4, WRITE_BACK_TIMEOUT_S)
    with contextlib.suppress(AuroraError, TimeoutError):
        async with asyncio.timeout(limit_s + 1.0):
            await instance.process.do(WriteBack(limit_s))


async def move_writer(plane: ControlPlane, cluster: str, timeout_s: float) -> None:
    """Ends a cluster's writer in order and declares it for the next AZ whose nodes run; the loop starts it there.

    Raises UsageError unless it is available.
    """
    declared = plane.fleet.cluster(cluster).writer()
    instance = _available(plane, cluster)
    az = _next_az(plane, declared.az)
    choice = engine_choice(plane.config, plane.fleet.cluster(cluster))
    with contextlib.suppress(AuroraError, TimeoutError):  # then it is started when the old one is gone
        async with asyncio.timeout(min(timeout_s, READY_TIMEOUT_S)):
            await plane.processes.runtime.ready_instance(declared.instance_id, az, choice)
    await _write_back(plane, declared.instance_id, timeout_s)
    if _available(plane, cluster) is not instance:
        raise UsageError(f"the writer of {cluster} has been replaced meanwhile: ask again if it shall move once more")

    def change(fleet: Fleet) -> Fleet:  # of what is declared by now
        return fleet.with_instance(cluster, replace(fleet.cluster(cluster).instance(declared.instance_id), az=az))

    await plane.commit(change)
    plane.say(f"failover of {cluster} was asked for: {declared.instance_id} goes from {declared.az} to {az}")
    plane.failovers.asked(declared.instance_id)
    await end_in_order(instance, plane.notify, timeout_s)

    def gone() -> bool:
        return plane.processes.instances.get(declared.instance_id) is not instance

    await plane.wait_until(gone, timeout_s, f"ending {declared.instance_id}")


def _available(plane: ControlPlane, cluster: str) -> Instance:
    instance = plane.processes.instances.get(plane.fleet.cluster(cluster).writer().instance_id)
    if instance is None or not instance.seen.serves(Role.WRITER):
        raise UsageError(f"the writer of {cluster} is not available: it is being recovered already")
    return instance


def _next_az(plane: ControlPlane, az: str) -> str:
    """The next one, in the region's order, in which storage nodes run."""
    azs = plane.fleet.azs
    up = {node.az for node in plane.fleet.nodes if node.node_id in plane.processes.nodes}
    order = azs[azs.index(az) + 1 :] + azs[: azs.index(az)] if az in azs else azs
    return next((other for other in order if other in up), az)
