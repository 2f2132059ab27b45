"""Every verb of the control plane: what users ask for, and what it does by itself when something ends."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.control.crash.driver import GROUP_BYTES, REPLACE_AFTER_S, Driver, Verb

TIMEOUT_S: Final = 60.0
MEMORY_BYTES: Final = 192 << 20


async def create(driver: Driver) -> None:
    await driver.api.create("demo", exist_ok=True, timeout_s=TIMEOUT_S)
    await driver.api.wait_available("demo", TIMEOUT_S)


def exists(driver: Driver) -> bool:
    return any(cluster.name == "demo" for cluster in driver.fleet.clusters)


async def delete(driver: Driver) -> None:
    driver.world.asked_to_delete.add("demo")
    await driver.api.delete("demo", TIMEOUT_S)


async def start(driver: Driver) -> None:
    await driver.api.wait_open(TIMEOUT_S)


async def failover(driver: Driver) -> None:
    await driver.api.failover("demo", None, TIMEOUT_S)


async def engine_ends(driver: Driver) -> None:
    driver.world.instances["demo-1"].end_incarnation("the engine was killed")
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def process_ends(driver: Driver) -> None:
    driver.world.instances["demo-1"].kill()
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def process_hangs(driver: Driver) -> None:
    hung = driver.world.instances["demo-1"]
    hung.hangs = True
    await hung.gone.wait()


async def node_ends(driver: Driver) -> None:
    driver.world.nodes["b-1"].kill()
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def node_ends_for_good(driver: Driver) -> None:
    driver.world.broken.add("b-1")
    driver.world.nodes["b-1"].kill()
    await asyncio.sleep(3 * REPLACE_AFTER_S)  # not synchronisation: the clock is virtual


def replaced(driver: Driver) -> bool:
    return all(node.node_id != "b-1" for node in driver.fleet.nodes)


async def node_comes_back(driver: Driver) -> None:
    """After its replacement was declared, and before anything was moved."""
    driver.world.broken |= {"b-1", "b-3"}
    driver.world.nodes["b-1"].kill()
    await asyncio.sleep(REPLACE_AFTER_S + 2)  # not synchronisation: the clock is virtual
    driver.world.broken -= {"b-1", "b-3"}


async def grow(driver: Driver) -> None:
    driver.world.instances["demo-1"].free_bytes = GROUP_BYTES // 10
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


def grown(driver: Driver) -> bool:
    return len(driver.fleet.cluster("demo").volume.groups) == 2


async def endpoints_end(driver: Driver) -> None:
    assert driver.world.endpoints is not None
    driver.world.endpoints.kill()
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def port_is_taken(driver: Driver) -> None:
    driver.world.taken_ports.add(driver.fleet.cluster("demo").writer().port)
    driver.world.instances["demo-1"].kill()
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


def listens_elsewhere(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").writer().port not in driver.world.taken_ports


async def delete_for_good(driver: Driver) -> None:
    """Deleted clusters are kept for no time."""
    driver.graveyard_s = 0.0
    await driver.vanish()
    driver.begin()
    await create(driver)


def is_gone(driver: Driver) -> bool:
    return not exists(driver) and not driver.fleet.deleted and not driver.fleet.dropped_volumes


async def create_and_delete(driver: Driver) -> None:
    await create(driver)
    await driver.at_rest()
    await delete(driver)


async def restore(driver: Driver) -> None:
    await driver.api.restore("demo", "", TIMEOUT_S)
    await driver.api.wait_available("demo", TIMEOUT_S)


async def purge(driver: Driver) -> None:
    await driver.api.purge("demo", TIMEOUT_S)


async def set_parameters(driver: Driver) -> None:
    await driver.api.set_parameters("demo", {"work_mem": "8MB"})


async def modify(driver: Driver) -> None:
    await driver.api.modify("demo", MEMORY_BYTES, False, TIMEOUT_S)


def is_modified(driver: Driver) -> bool:
    config = driver.world.instances["demo-1"].config
    return config is not None and config.memory_bytes == MEMORY_BYTES


async def modify_at_next_start(driver: Driver) -> None:
    await driver.api.modify("demo", MEMORY_BYTES, True, TIMEOUT_S)
    await process_ends(driver)


def has_parameters(driver: Driver) -> bool:
    return dict(driver.fleet.cluster("demo").parameters) == {"work_mem": "8MB"}


async def repair(driver: Driver) -> None:
    await driver.api.repair("demo", ["roles"], TIMEOUT_S)


def is_repaired(driver: Driver) -> bool:
    return not driver.fleet.cluster("demo").repairs


async def endpoints_port_is_taken(driver: Driver) -> None:
    driver.world.taken_ports.add(driver.fleet.cluster("demo").port)
    await endpoints_end(driver)


def endpoint_moved(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").port not in driver.world.taken_ports


VERBS: Final = (
    Verb("start for the first time", start),
    Verb("create", create, exists, prepare=start, api="create"),
    Verb("delete", delete, lambda d: not exists(d), prepare=create, api="delete"),
    Verb("the end of a deleted cluster's time", delete, is_gone, prepare=delete_for_good),
    Verb("restore", restore, exists, prepare=create_and_delete, api="restore"),
    Verb("purge", purge, is_gone, prepare=create_and_delete, api="purge"),
    Verb("parameters", set_parameters, has_parameters, prepare=create, api="set_parameters"),
    Verb("another size", modify, is_modified, prepare=create, api="modify"),
    Verb("another size at the next start", modify_at_next_start, is_modified, prepare=create),
    Verb("repair of a cluster", repair, is_repaired, prepare=create, api="repair"),
    Verb("down and up", lambda d: d.down_and_up(), exists, prepare=create),
    Verb("failover that is asked for", failover, prepare=create, api="failover"),
    Verb("failover after an engine's end", engine_ends, prepare=create),
    Verb("failover after a process's end", process_ends, prepare=create),
    Verb("failover of a process that hangs", process_hangs, prepare=create),
    Verb("restart of a storage node", node_ends, prepare=create),
    Verb("replacement of a storage node", node_ends_for_good, replaced, prepare=create, again=False),
    Verb("replacement that is taken back", node_comes_back, prepare=create, again=False),
    Verb("growth by a group", grow, grown, prepare=create),
    Verb("restart of the endpoints", endpoints_end, prepare=create),
    Verb("another port for an endpoint", endpoints_port_is_taken, endpoint_moved, prepare=create, again=False),
    Verb("another port for an instance", port_is_taken, listens_elsewhere, prepare=create, again=False),
)

# Calls of ControlApi that change nothing.
LOOKS: Final = {"wait_open", "wait_available", "clusters", "status", "secret", "trail", "graveyard", "look_at_state"}

# Repairs of the control state itself, by hand and of what is broken already: not enumerated.
REPAIRS: Final = {"repair_state"}
