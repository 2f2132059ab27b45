"""How a reader goes on as the writer in place, see decide/promoting.py."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from aurora_ray.control.decide.readers import with_writer
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.control.perform.ending import end_incarnation
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceConfig
    from aurora_ray.control.decide.promoting import MakeWriter, PromoteInstance
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.perform.means import Means

PROMOTE_TIMEOUT_S: Final = 8.0  # the instance itself gives up before that; then its place is opened anew
FAILED_END_TIMEOUT_S: Final = 10.0


async def make_writer(means: Means, action: MakeWriter) -> None:
    """The loop then promotes it, and starts the other one as a reader."""

    def change(fleet: Fleet) -> Fleet:
        cluster = next((each for each in fleet.clusters if each.name == action.cluster), None)
        names = {each.instance_id for each in cluster.readers()} if cluster is not None else set()
        if cluster is None or cluster.writer().instance_id != action.instance_id or action.target not in names:
            return fleet
        return with_writer(fleet, action.cluster, action.target)

    fleet = await means.declared.commit(change)
    if fleet.cluster(action.cluster).writer().instance_id != action.target:
        return
    means.processes.lost.discard(action.instance_id)
    for instance_id in (action.instance_id, action.target):
        means.forget_attempt(key(Kind.INSTANCE, instance_id))
    told = f"failover of {action.cluster}: {action.target} is to be the writer, {action.instance_id} a reader"
    means.say(told)
    means.events.note(EventKind.FAILOVER, action.target, told, action.cluster)


async def promote_instance(means: Means, action: PromoteInstance, config: InstanceConfig) -> None:
    """What goes wrong is said, and is no failure: its incarnation has ended then, and the loop opens it at once."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is None or instance.seen.phase is not InstancePhase.AVAILABLE:
        return
    try:
        async with asyncio.timeout(PROMOTE_TIMEOUT_S):
            opened = await instance.process.promote(config)
    except Exception as error:
        why = str(error) or type(error).__name__
        means.say(f"{action.instance_id} does not go on as the writer in place, and is opened anew: {why}")
        if means.processes.instances.get(action.instance_id) is not instance or isinstance(error, ProcessGoneError):
            return
        if instance.seen.phase is InstancePhase.AVAILABLE:
            await _end(means, action, why)
        return
    instance.has_opened(opened)
    await means.processes.promoted(action.instance_id, instance)
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in opened.stages_s.items())
    with contextlib.suppress(AuroraError):  # the next opening only takes longer without it
        await means.processes.runtime.have_spare(action.instance_id, config.az, config.engine, wanted=True)
    means.say(f"{action.instance_id} goes on as the writer in epoch {opened.epoch} ({stages})")


async def _end(means: Means, action: PromoteInstance, why: str) -> None:
    """Whatever it is at: what it has acknowledged by now is in the volume, and its next opening finds it there."""
    instance = means.processes.instances[action.instance_id]
    with contextlib.suppress(Exception):  # it is killed then, which the loop sees as well
        await end_incarnation(instance, means.notify, FAILED_END_TIMEOUT_S, f"it could not go on as the writer: {why}")
