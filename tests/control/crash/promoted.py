"""How an instance of the enumerated world goes on as the writer in place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from aurora_ray.compute.config import InstanceConfig, Opened
from aurora_ray.compute.role import Role
from aurora_ray.errors import FencedError, UsageError

if TYPE_CHECKING:
    from tests.control.crash.world import FakeInstance

_going_on: WeakKeyDictionary[FakeInstance, asyncio.Task[Opened]] = WeakKeyDictionary()


async def promote(instance: FakeInstance, config: InstanceConfig) -> Opened:
    """As Instance.promote: once, and whoever asks again hears what became of it."""
    task = _going_on.get(instance)
    if task is None or (task.done() and instance.config is not None and instance.config.role is Role.READER):
        if not instance.serves or instance.config is None or instance.config.role is not Role.READER:
            raise UsageError(f"{instance.name} is no open reader")
        task = _going_on[instance] = asyncio.create_task(_promote(instance, config))
    return await asyncio.shield(task)


def _require_owner(instance: FakeInstance) -> None:
    if instance.volume.epoch != instance.epoch:
        raise FencedError("a higher epoch exists")


async def _promote(instance: FakeInstance, config: InstanceConfig) -> Opened:
    world, volume = instance.world, instance.volume
    try:
        world.require_quorum(volume)
        volume.epoch += 1
        instance.epoch = volume.epoch
        if volume.owner is not None and volume.owner is not instance:
            volume.owner.end_incarnation("a higher epoch exists")
        volume.owner = instance
        await instance._step("seal in place")
        await instance._step("exchange")
        _require_owner(instance)
        instance.config = config
        await instance._step("promoted")
    except BaseException as error:
        instance.end_incarnation(f"it could not go on as the writer: {error}")
        raise
    volume.rows += 1
    return Opened(instance.epoch, 1, 1, config.port, {})
