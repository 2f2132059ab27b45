"""How an instance goes on on another machine: the process there is started first, then the one here ends in order.

Whoever dies in between, the next control plane finds one process of the instance or two, keeps the one that serves, and
decides anew. What is declared meanwhile goes first: one that is to be of another role by then, has ended or is paused
stays where it is.
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
    from aurora_ray.control.model.state import DBCluster, Fleet
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.perform.means import Means

READY_TIMEOUT_S: Final = 90.0  # more than a process may take to start, whose error says more
WRITE_BACK_S: Final = 10.0


async def move_instance(means: Means, action: MoveInstance) -> None:
    """See the module."""
    going = _going(means, action)
    if going is None or going[0].process.host == action.host:
        return
    instance, cluster = going
    choice = engine_choice(means.config, cluster)
    async with asyncio.timeout(READY_TIMEOUT_S):
        await means.processes.runtime.ready_instance(action.instance_id, action.az, choice, action.host)
    if instance.seen.role.traits.writes:
        await instance.process.do(WriteBack(WRITE_BACK_S))
    now = _going(means, action)
    if now is None or now[0] is not instance:
        means.say(f"{action.instance_id} does not move: something else has become of it meanwhile")
        return

    def change(fleet: Fleet) -> Fleet:
        declared = fleet.cluster(cluster.name).instance(action.instance_id)
        return fleet.with_instance(cluster.name, replace(declared, az=action.az))

    if now[1].instance(action.instance_id).az != action.az:
        await means.declared.commit(change)
    told = f"moves from machine {instance.process.host} to {action.host}: {action.why}"
    means.events.note(EventKind.CAPACITY, action.instance_id, told, cluster.name)
    means.leaves(action.instance_id)
    await end_in_order(instance, means.notify, END_TIMEOUT_S)


def _going(means: Means, action: MoveInstance) -> tuple[Instance, DBCluster] | None:
    """The instance, if it serves as what it is declared to be, and its cluster."""
    instance = means.processes.instances.get(action.instance_id)
    cluster = means.declared.fleet.cluster_of(action.instance_id)
    if instance is None or cluster is None or cluster.paused_since_s:
        return None
    declared = cluster.instance(action.instance_id)
    serves = instance.seen.phase is InstancePhase.AVAILABLE and instance.seen.serves(declared.role)
    return (instance, cluster) if serves and not declared.provisioned else None
