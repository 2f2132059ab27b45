"""How an instance goes on on another machine: the process there is started first, then the one here ends in order.

Whoever dies in between, the next control plane finds one process of the instance or two, keeps the one that serves, and
decides anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.commands import WriteBack
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_in_order
from aurora_ray.control.perform.means import END_TIMEOUT_S, engine_choice
from aurora_ray.control.report.events import EventKind

if TYPE_CHECKING:
    from aurora_ray.control.decide.moving import MoveInstance
    from aurora_ray.control.perform.means import Means

READY_TIMEOUT_S: Final = 90.0  # more than a process may take to start, whose error says more
WRITE_BACK_S: Final = 10.0


async def move_instance(means: Means, action: MoveInstance) -> None:
    """See the module."""
    instance = means.processes.instances.get(action.instance_id)
    cluster = means.declared.fleet.cluster_of(action.instance_id)
    if instance is None or cluster is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        return
    declared = cluster.instance(action.instance_id)
    if instance.process.host == action.host or declared.provisioned:
        return
    choice = engine_choice(means.config, cluster)
    async with asyncio.timeout(READY_TIMEOUT_S):
        await means.processes.runtime.ready_instance(action.instance_id, action.az, choice, action.host)
    if instance.seen.role.traits.writes:
        await instance.process.do(WriteBack(WRITE_BACK_S))
    if means.processes.instances.get(action.instance_id) is not instance:
        return  # it has ended by itself meanwhile
    if declared.az != action.az:
        await means.declared.commit(lambda fleet: fleet.with_instance(cluster.name, replace(declared, az=action.az)))
    told = f"moves from machine {instance.process.host} to {action.host}: {action.why}"
    means.events.note(EventKind.CAPACITY, action.instance_id, told, cluster.name)
    await end_in_order(instance, means.notify, END_TIMEOUT_S)
