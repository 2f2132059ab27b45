"""Readers that go on as writers in place: the verbs that make it happen."""

from __future__ import annotations

from typing import Final

from aurora_ray.compute.role import Role
from tests.control.crash import verbs
from tests.control.crash.driver import Driver, Verb


async def _in_place(driver: Driver) -> None:
    driver.promote_in_place = True
    await driver.vanish()
    driver.begin()


async def create_with_reader(driver: Driver) -> None:
    await _in_place(driver)
    await verbs.create_with_reader(driver)


async def create_with_readers(driver: Driver) -> None:
    await _in_place(driver)
    await verbs.create_with_readers(driver)


def has_one_writer(driver: Driver) -> bool:
    """Which one depends on who ended when."""
    cluster = driver.fleet.cluster("demo")
    writers = [i for i in driver.world.instances.values() if i.serves and i.config and i.config.role is Role.WRITER]
    return [each.name for each in writers] == [cluster.writer().instance_id] and len(cluster.readers()) == 1


PROMOTING: Final = (
    Verb("promotion after an engine's end", verbs.engine_ends, has_one_writer, prepare=create_with_reader),
    Verb("promotion after a process's end", verbs.process_ends, has_one_writer, prepare=create_with_reader),
    Verb("promotion for a process that hangs", verbs.process_hangs, has_one_writer, prepare=create_with_reader),
    Verb("promotion that is asked for", verbs.failover_to_the_best, verbs.writes_elsewhere, prepare=create_with_reader),
    Verb("promotion of a target", verbs.failover_to_target, verbs.demo_3_writes, prepare=create_with_readers),
)
