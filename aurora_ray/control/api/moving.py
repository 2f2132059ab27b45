"""A failover that was asked for: the writer goes to another AZ, in order.

What takes time and needs no standstill comes first: a process in the new place that has its engine ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_in_order
from aurora_ray.control.perform.steps import engine_choice
from aurora_ray.errors import AuroraError, UsageError

if TYPE_CHECKING:
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.plane import ControlPlane

READY_TIMEOUT_S: Final = 10.0


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
    if _available(plane, cluster) is not instance:
        raise UsageError(f"the writer of {cluster} has been replaced meanwhile: ask again if it shall move once more")
    await plane.commit(lambda fleet: fleet.with_instance(cluster, replace(declared, az=az)))
    plane.say(f"failover of {cluster} was asked for: {declared.instance_id} goes from {declared.az} to {az}")
    plane.failovers.asked(declared.instance_id)
    await end_in_order(instance, plane.notify, timeout_s)

    def gone() -> bool:
        return plane.processes.instances.get(declared.instance_id) is not instance

    await plane.wait_until(gone, timeout_s, f"ending {declared.instance_id}")


def _available(plane: ControlPlane, cluster: str) -> Instance:
    instance = plane.processes.instances.get(plane.fleet.cluster(cluster).writer().instance_id)
    if instance is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        raise UsageError(f"the writer of {cluster} is not available: it is being recovered already")
    return instance


def _next_az(plane: ControlPlane, az: str) -> str:
    """The next one, in the region's order, in which storage nodes run."""
    azs = plane.fleet.azs
    up = {node.az for node in plane.fleet.nodes if node.node_id in plane.processes.nodes}
    order = azs[azs.index(az) + 1 :] + azs[: azs.index(az)] if az in azs else azs
    return next((other for other in order if other in up), az)
