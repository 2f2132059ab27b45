"""The verbs of serverless clusters: bounds, pause, resume."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aurora_ray.control.api.capacity import Scaling
from tests.control.crash.driver import Driver, Verb
from tests.control.crash.verbs import (
    TIMEOUT_S,
    add_reader,
    backtrack,
    clone,
    create,
    create_with_reader,
    delete,
    exists,
    failover,
    is_cloned,
    is_rewound,
    readers_of,
    remove_reader,
)

PAUSE_AFTER_S: Final = 1.0  # less than users may say


async def scale(driver: Driver) -> None:
    await driver.api.scale("demo", Scaling(min_acu=1, max_acu=4), TIMEOUT_S)


def acus(driver: Driver) -> list[float]:
    has = [driver.world.instances[i.instance_id].capacity for i in driver.fleet.cluster("demo").engines()]
    return [each.acu for each in has if each is not None]


async def create_scaled_capacity(driver: Driver) -> None:
    await create(driver)
    await driver.at_rest()
    await scale(driver)


async def raise_minimum(driver: Driver) -> None:
    await driver.api.scale("demo", Scaling(min_acu=2), TIMEOUT_S)


async def scale_no_more(driver: Driver) -> None:
    await driver.api.scale("demo", Scaling(off=True), TIMEOUT_S)


async def has_no_room(driver: Driver) -> None:
    """Its machine has less than is wanted, and another one has it."""
    driver.world.rooms = {("here", "a"): 1.0, ("small", "c"): 1.5, ("there", "b"): 8.0}
    await driver.api.scale("demo", Scaling(min_acu=2, max_acu=4), TIMEOUT_S)


def has_moved(driver: Driver) -> bool:
    return driver.world.instances["demo-1"].host == "there" and acus(driver) == [2]


def is_paused(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").paused_since_s > 0


async def pause(driver: Driver) -> None:
    """Nobody uses it."""
    await driver.api.scale("demo", Scaling(min_acu=0, max_acu=4, pause_after_s=PAUSE_AFTER_S), TIMEOUT_S)
    await driver.plane.wait_until(lambda: is_paused(driver), TIMEOUT_S, "its pause")


async def create_paused(driver: Driver) -> None:
    await create(driver)
    await driver.at_rest()
    await pause(driver)
    await driver.at_rest()


async def somebody_comes(driver: Driver) -> None:
    assert driver.world.endpoints is not None
    driver.world.endpoints.held.add("demo")
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


async def somebody_comes_while_it_is_paused(driver: Driver) -> None:
    await driver.api.scale("demo", Scaling(min_acu=0, max_acu=4, pause_after_s=PAUSE_AFTER_S), TIMEOUT_S)
    await driver.plane.wait_until(lambda: is_paused(driver), TIMEOUT_S, "its pause")
    await somebody_comes(driver)


def is_served(driver: Driver) -> bool:
    """Whoever came is connected, unless the endpoints' process ended, and with it the connection."""
    endpoints = driver.world.endpoints
    return endpoints is not None and not endpoints.held and (is_paused(driver) or bool(acus(driver)))


def at_once(
    *acts: Callable[[Driver], Coroutine[Any, Any, object]],
) -> Callable[[Driver], Coroutine[Any, Any, object]]:
    """All of them at the same time."""

    async def act(driver: Driver) -> None:
        answers = await asyncio.gather(*(each(driver) for each in acts), return_exceptions=True)
        for failure in (each for each in answers if isinstance(each, BaseException)):
            raise failure

    return act


async def create_scaled_with_reader(driver: Driver) -> None:
    await create_with_reader(driver)
    await driver.at_rest()
    await scale(driver)


async def raise_minimum_while_it_is_being_paused(driver: Driver) -> None:
    await driver.api.scale("demo", Scaling(min_acu=0, max_acu=4, pause_after_s=PAUSE_AFTER_S), TIMEOUT_S)
    await asyncio.sleep(PAUSE_AFTER_S)  # not synchronisation: the clock is virtual
    await raise_minimum(driver)


async def remove_reader_once(driver: Driver) -> None:
    if readers_of(driver):
        await remove_reader(driver)


def all_have_two(driver: Driver) -> bool:
    return set(acus(driver)) == {2}


CAPACITY_VERBS: Final = (
    Verb("bounds of capacity", scale, lambda d: acus(d) == [1], prepare=create, api="scale"),
    Verb("no bounds of capacity", scale_no_more, lambda d: acus(d) == [], prepare=create_scaled_capacity),
    Verb("no room on its machine", has_no_room, has_moved, prepare=create_scaled_capacity),
    Verb("pause", pause, is_paused, prepare=create),
    Verb("resume", somebody_comes, is_served, prepare=create_paused),
    Verb("resume in the middle of a pause", somebody_comes_while_it_is_paused, is_served, prepare=create),
    Verb("a higher minimum while it is paused", raise_minimum, lambda d: acus(d) == [2], prepare=create_paused),
    Verb("failover while it is paused", failover, lambda d: bool(acus(d)), prepare=create_paused),
    Verb("clone while it is paused", clone, is_cloned, prepare=create_paused),
    Verb("delete while it is paused", delete, lambda d: not exists(d), prepare=create_paused),
    Verb("a reader while it is paused", add_reader, lambda d: len(readers_of(d)) >= 1, prepare=create_paused),
    Verb("backtrack while it is paused", backtrack, is_rewound, prepare=create_paused),
    Verb(
        "a step while a failover goes on",
        at_once(raise_minimum, failover),
        all_have_two,
        prepare=create_scaled_with_reader,
    ),
    Verb(
        "a step while a rewind goes on",
        at_once(raise_minimum, backtrack),
        lambda d: all_have_two(d) and is_rewound(d),
        prepare=create_scaled_capacity,
    ),
    Verb(
        "a step while a reader goes",
        at_once(raise_minimum, remove_reader_once),
        lambda d: all_have_two(d) and not readers_of(d),
        prepare=create_scaled_with_reader,
    ),
    Verb(
        "a higher minimum while it is being paused",
        raise_minimum_while_it_is_being_paused,
        lambda d: acus(d) == [2],
        prepare=create,
    ),
)
