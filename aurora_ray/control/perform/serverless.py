"""How capacities change, and how a cluster is paused and woken. Each can be cut short anywhere and is decided anew.

To pause: its engine writes back, while it serves, what its end would take time for. Then its endpoints lead nowhere,
which is refused if anybody is connected or waits, so no session is ever cut for it; then that is declared, and only
then do its engines end. Whoever comes from the first moment on is held, and wakes it. To wake it is to declare that it
runs: everything else is a start like any other.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray import telemetry
from aurora_ray.compute.commands import Scale, WriteBack
from aurora_ray.compute.config import CapacityOrder
from aurora_ray.control.decide.serverless import start_acu
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_incarnation
from aurora_ray.control.perform.means import END_TIMEOUT_S, engine_choice
from aurora_ray.control.report.events import EventKind

WRITE_BACK_S: Final = 10.0

if TYPE_CHECKING:
    from aurora_ray.control.decide.metering import SaveUsage
    from aurora_ray.control.decide.reconcile import PauseInstance
    from aurora_ray.control.decide.serverless import FitPool, LookAtPools, PauseCluster, ResumeCluster, ScaleInstance
    from aurora_ray.control.model.state import DBCluster, DBInstance, Fleet
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.perform.means import Means


def order_to_open(means: Means, cluster: DBCluster, declared: DBInstance) -> CapacityOrder | None:
    """The capacity with which an instance opens: the one that it had last, within the bounds."""
    rule = cluster.rule_of(declared)
    if rule is None or not declared.role.traits.engine:
        return None
    last = means.processes.last_status(declared.instance_id)
    acu = start_acu(rule, float(last.stats.get("acu", 0)) if last is not None else 0.0)
    return CapacityOrder(acu, rule.least_acu, rule.max_acu, means.config.cpus_per_acu)


async def scale_instance(means: Means, action: ScaleInstance) -> None:
    """One step."""
    instance = means.processes.instances.get(action.instance_id)
    cluster = means.declared.fleet.cluster(action.cluster)
    declared = next((each for each in cluster.instances if each.instance_id == action.instance_id), None)
    rule = cluster.rule_of(declared) if declared is not None else None
    if (
        instance is None
        or instance.seen.phase is not InstancePhase.AVAILABLE
        or (rule is None) is not (action.acu == 0)
    ):
        return
    used, acu = instance.seen.capacity, action.acu
    if used is not None and acu > used.acu:
        with telemetry.span("capacity.place", {"aurora.acu": acu}):
            acu = await _hold(means, instance, action.instance_id, acu, used.room)
        if acu <= used.acu:
            means.say(f"{action.instance_id} keeps {used.acu:g} ACU: its machine has no room for {action.acu:g}")
            return
    order = None
    if rule is not None:
        order = CapacityOrder(acu, rule.least_acu, rule.max_acu, means.config.cpus_per_acu)
    with telemetry.span("capacity.give", {"aurora.acu": acu}):
        instance.has_capacity(await instance.process.do(Scale(order)))
    if used is None:
        await means.processes.refresh(action.instance_id)
    told = action.why if acu == action.acu else f"{action.why}; its machine has room for {acu:g}"
    means.events.note(EventKind.CAPACITY, action.instance_id, told, action.cluster)


async def _hold(means: Means, instance: Instance, instance_id: str, acu: float, at_most: float = math.inf) -> float:
    return await means.pools.hold(instance_id, instance.process.host, acu, means.config.cpus_per_acu, at_most)


async def look_at_pools(means: Means, _: LookAtPools) -> None:
    """What an earlier control plane left."""
    await means.pools.look()


async def fit_pool(means: Means, action: FitPool) -> None:
    """To what is in force by now."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is None:
        await means.pools.hold(action.instance_id, "", 0.0, means.config.cpus_per_acu)
        return
    await _hold(means, instance, action.instance_id, action.acu)


async def save_usage(means: Means, _: SaveUsage) -> None:
    """A mark."""
    await means.save_usage()


async def pause_cluster(means: Means, action: PauseCluster) -> None:
    """Nobody is cut: see the module."""
    before = means.declared.fleet.cluster(action.cluster)

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(action.cluster)
        if cluster.capacity is None or not cluster.capacity.pauses or cluster.paused_since_s:
            return fleet  # its user has said otherwise
        return fleet.with_cluster(replace(cluster, paused_since_s=time.time()))

    await _write_back(means, before)
    async with means.withdrawn(before) as withdrawn:
        if not withdrawn:
            means.say(f"{action.cluster} is not paused: somebody has come")
            return
        await means.declared.commit(change)
    means.events.note(EventKind.CAPACITY, action.cluster, f"paused: {action.why}", action.cluster)


async def _write_back(means: Means, cluster: DBCluster) -> None:
    """Whoever comes while the engine ends waits for that, too: so it shall not take long."""
    writer = means.processes.instances.get(cluster.writer().instance_id)
    if writer is not None and writer.seen.phase is InstancePhase.AVAILABLE and writer.seen.role.traits.writes:
        await writer.process.do(WriteBack(WRITE_BACK_S))


async def pause_instance(means: Means, action: PauseInstance) -> None:
    """Its engine ends in order, and its process stays; nobody is in waiting for it."""
    instance = means.processes.instances.get(action.instance_id)
    cluster = means.declared.fleet.cluster_of(action.instance_id)
    if instance is None or cluster is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        return
    declared = cluster.instance(action.instance_id)
    choice = engine_choice(means.config, cluster)
    await means.processes.runtime.have_spare(declared.instance_id, declared.az, choice, wanted=False)
    await end_incarnation(instance, means.notify, END_TIMEOUT_S, "its cluster is paused")
    await means.processes.hear_last_word(action.instance_id)


async def resume_cluster(means: Means, action: ResumeCluster) -> None:
    """The loop opens its instances."""
    await means.declared.commit(lambda fleet: with_resumed(fleet, action.cluster))
    means.events.note(EventKind.CAPACITY, action.cluster, f"resumed: {action.why}", action.cluster)
    for instance in means.declared.fleet.cluster(action.cluster).engines():
        means.forget_attempt(key(Kind.INSTANCE, instance.instance_id))


def with_resumed(fleet: Fleet, name: str) -> Fleet:
    """A cluster that runs."""
    cluster = fleet.cluster(name)
    return fleet.with_cluster(replace(cluster, paused_since_s=0.0)) if cluster.paused_since_s else fleet
