"""Every verb of the control plane: what users ask for, and what it does by itself when something ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from aurora_ray.control.model.backups import DAY_S
from aurora_ray.control.model.custom_endpoints import CustomEndpoint, CustomKind
from aurora_ray.control.model.scaling import ReaderScaling, ScalingMetric
from tests.control.crash.driver import GROUP_BYTES, REPLACE_AFTER_S, Driver, Verb
from tests.control.crash.rescues import has_own_file, make_file_anew, rebuild

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


async def delete_while_it_starts(driver: Driver) -> None:
    """Its process has ended, and another one is on its way when the cluster is to go."""
    driver.world.asked_to_delete.add("demo")
    driver.world.instances["demo-1"].kill()
    await driver.plane.wait_until(lambda: "demo-1" not in driver.plane.processes.instances, TIMEOUT_S, "its end")
    await driver.api.delete("demo", TIMEOUT_S)


async def remove_reader_while_it_starts(driver: Driver) -> None:
    driver.world.instances["demo-2"].kill()
    await driver.plane.wait_until(lambda: "demo-2" not in driver.plane.processes.instances, TIMEOUT_S, "its end")
    await driver.api.remove_reader("demo-2", TIMEOUT_S)


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


async def create_with_readers(driver: Driver) -> None:
    await driver.api.create("demo", reader_count=2, exist_ok=True, timeout_s=TIMEOUT_S)
    await driver.api.wait_available("demo", TIMEOUT_S, all_readers=True)


async def create_with_reader(driver: Driver) -> None:
    await driver.api.create("demo", reader_count=1, exist_ok=True, timeout_s=TIMEOUT_S)
    await driver.api.wait_available("demo", TIMEOUT_S, all_readers=True)


def readers_of(driver: Driver) -> list[str]:
    return [reader.instance_id for reader in driver.fleet.cluster("demo").readers()]


async def add_reader(driver: Driver) -> None:
    await driver.api.add_readers("demo", 1, tier=2, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S)


async def remove_reader(driver: Driver) -> None:
    await driver.api.remove_reader("demo-2", TIMEOUT_S)


async def failover_to_target(driver: Driver) -> None:
    await driver.api.failover("demo", "demo-3", TIMEOUT_S)


async def failover_to_the_best(driver: Driver) -> None:
    await driver.api.failover("demo", None, TIMEOUT_S)


def writes_elsewhere(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").writer().instance_id != "demo-1"


def demo_3_writes(driver: Driver) -> bool:
    """The reader that was not meant has lost nobody."""
    cluster = driver.fleet.cluster("demo")
    return cluster.writer().instance_id == "demo-3" and readers_of(driver) == ["demo-1", "demo-2"]


RULE: Final = ReaderScaling(2, 4, ScalingMetric.CPU, 50.0, 0.0, 0.0)


async def autoscale(driver: Driver) -> None:
    await driver.api.autoscale_readers("demo", RULE)
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


async def create_scaled(driver: Driver) -> None:
    await create_with_reader(driver)
    await driver.at_rest()
    await autoscale(driver)


async def scale_in(driver: Driver) -> None:
    """There shall be one reader less; the one that was added goes."""
    await driver.api.autoscale_readers("demo", replace(RULE, min_readers=1, max_readers=1))
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


REPORTS: Final = CustomEndpoint("reports", 0, members=("demo-2",))
ANY: Final = CustomEndpoint("any", 0, CustomKind.ANY, excluded=("demo-2",))


async def create_endpoint(driver: Driver) -> None:
    await driver.api.create_endpoint("demo", ANY, TIMEOUT_S)


async def create_with_endpoints(driver: Driver) -> None:
    await create_with_reader(driver)
    await driver.at_rest()
    await driver.api.create_endpoint("demo", REPORTS, TIMEOUT_S)
    await driver.api.create_endpoint("demo", ANY, TIMEOUT_S)


def endpoints_of(driver: Driver) -> list[str]:
    return [endpoint.name for endpoint in driver.fleet.cluster("demo").custom_endpoints]


async def delete_endpoint(driver: Driver) -> None:
    await driver.api.delete_endpoint("demo", "reports", TIMEOUT_S)


async def reader_ends(driver: Driver) -> None:
    driver.world.instances["demo-2"].kill()
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def reader_hangs(driver: Driver) -> None:
    hung = driver.world.instances["demo-2"]
    hung.hangs = True
    await hung.gone.wait()


async def create_and_change(driver: Driver) -> None:
    await create(driver)
    await driver.at_rest()
    driver.version = len(driver.world.saved) - 1
    await set_parameters(driver)


async def go_back(driver: Driver) -> None:
    await driver.api.repair_state(driver.version)


def went_back(driver: Driver) -> bool:
    return not driver.fleet.cluster("demo").parameters


async def endpoints_port_is_taken(driver: Driver) -> None:
    driver.world.taken_ports.add(driver.fleet.cluster("demo").port)
    await endpoints_end(driver)


def endpoint_moved(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").port not in driver.world.taken_ports


async def clone(driver: Driver) -> None:
    await driver.api.clone("demo", "copy", "", timeout_s=TIMEOUT_S)
    await driver.api.wait_available("copy", TIMEOUT_S)


def is_cloned(driver: Driver) -> bool:
    return {cluster.name for cluster in driver.fleet.clusters} == {"demo", "copy"}


def is_cloned_from_deleted(driver: Driver) -> bool:
    return {cluster.name for cluster in driver.fleet.clusters} == {"copy"} and bool(driver.fleet.deleted)


async def create_with_an_unfit_node(driver: Driver) -> None:
    await create(driver)
    driver.world.unfit.add("b-1")


async def look_at_the_past(driver: Driver) -> None:
    """Nobody is connected, and its time is over at once."""
    driver.world.asked_to_delete.add("copy")
    await driver.api.clone("demo", "copy", "", temporary_s=1e-6, timeout_s=TIMEOUT_S)
    await driver.plane.wait_until(lambda: not is_cloned(driver), TIMEOUT_S, "its end")


async def backtrack(driver: Driver) -> None:
    await driver.api.backtrack("demo", "lsn:8", TIMEOUT_S)
    await driver.api.wait_available("demo", TIMEOUT_S)


def is_rewound(driver: Driver) -> bool:
    return bool(driver.fleet.cluster("demo").past)


async def create_without_a_window(driver: Driver) -> None:
    """What it was before a rewind is kept for no time."""
    await create(driver)
    driver.world.asked_to_delete.add("demo")
    await driver.plane.commit(lambda fleet: fleet.with_cluster(replace(fleet.cluster("demo"), window_s=0)))


def is_rewound_for_good(driver: Driver) -> bool:
    origin = driver.fleet.cluster("demo").volume.origin
    return origin is not None and not is_rewound(driver) and not driver.fleet.dropped_volumes


async def mark(driver: Driver) -> None:
    await driver.api.mark("demo", "here", TIMEOUT_S)


def is_marked(driver: Driver) -> bool:
    return [each.label for each in driver.fleet.cluster("demo").marks] == ["here"]


async def set_window(driver: Driver) -> None:
    await driver.api.set_window("demo", 3600, 1 << 20)


def has_window(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").window_s == 3600


async def back_up(driver: Driver) -> None:
    await driver.api.set_backup("demo", "/backups", "", DAY_S)
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


def backups_of(driver: Driver) -> list[str]:
    instances = driver.fleet.cluster("demo").instances
    return [each.instance_id for each in instances if each.role.traits.archives]


def is_backed_up(driver: Driver) -> bool:
    runs = [driver.world.instances.get(each) for each in backups_of(driver)]
    return len(runs) == 1 and runs[0] is not None and runs[0].config is not None and runs[0].config.backup is not None


async def create_backed_up(driver: Driver) -> None:
    await create(driver)
    await back_up(driver)


async def back_up_elsewhere(driver: Driver) -> None:
    await driver.api.set_backup("demo", "/elsewhere", "", DAY_S)
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


def goes_elsewhere(driver: Driver) -> bool:
    config = driver.world.instances[backups_of(driver)[0]].config
    return config is not None and config.backup is not None and config.backup.url == "/elsewhere"


async def back_up_no_more(driver: Driver) -> None:
    await driver.api.set_backup("demo", "", "", 0)
    await asyncio.sleep(2)  # not synchronisation: the clock is virtual


async def backup_ends(driver: Driver) -> None:
    driver.world.instances[backups_of(driver)[0]].kill()
    await asyncio.sleep(1)  # not synchronisation: the clock is virtual


async def restore_backup(driver: Driver) -> None:
    await driver.api.restore_backup("/backups", "copy", cluster="", at="", key_file="", timeout_s=TIMEOUT_S)
    await driver.api.wait_available("copy", TIMEOUT_S)


def is_restored(driver: Driver) -> bool:
    cluster = next((each for each in driver.fleet.clusters if each.name == "copy"), None)
    if cluster is None:
        return False
    return cluster.volume.initialised and not cluster.repairs and len(cluster.readers()) == 1


VERBS: Final = (
    Verb("a backup", back_up, is_backed_up, prepare=create, api="set_backup"),
    Verb("a backup elsewhere", back_up_elsewhere, goes_elsewhere, prepare=create_backed_up, api="set_backup"),
    Verb("no backup", back_up_no_more, lambda d: not backups_of(d), prepare=create_backed_up, api="set_backup"),
    Verb("restart of a backup's process", backup_ends, is_backed_up, prepare=create_backed_up),
    Verb("delete with a backup", delete, lambda d: not exists(d), prepare=create_backed_up),
    Verb("backtrack with a backup", backtrack, is_rewound, prepare=create_backed_up),
    Verb("restore of a backup", restore_backup, is_restored, prepare=start, api="restore_backup"),
    Verb("start for the first time", start),
    Verb("create", create, exists, prepare=start, api="create"),
    Verb("delete", delete, lambda d: not exists(d), prepare=create, api="delete"),
    Verb("delete while a process starts", delete_while_it_starts, lambda d: not exists(d), prepare=create),
    Verb("the end of a deleted cluster's time", delete, is_gone, prepare=delete_for_good),
    Verb("restore", restore, exists, prepare=create_and_delete, api="restore"),
    Verb("purge", purge, is_gone, prepare=create_and_delete, api="purge"),
    Verb("parameters", set_parameters, has_parameters, prepare=create, api="set_parameters"),
    Verb("another size", modify, is_modified, prepare=create, api="modify"),
    Verb("another size at the next start", modify_at_next_start, is_modified, prepare=create),
    Verb("repair of a cluster", repair, is_repaired, prepare=create, api="repair"),
    Verb("an older version of the control state", go_back, went_back, prepare=create_and_change, api="repair_state"),
    Verb("a control state made anew", rebuild, exists, prepare=create, api="repair_state"),
    Verb("the fleet's file made anew", make_file_anew, lambda d: exists(d) and has_own_file(d), prepare=create),
    Verb("down and up", lambda d: d.down_and_up(), exists, prepare=create),
    Verb("failover that is asked for", failover, prepare=create, api="failover"),
    Verb("failover after an engine's end", engine_ends, prepare=create),
    Verb("failover after a process's end", process_ends, prepare=create),
    Verb("failover of a process that hangs", process_hangs, prepare=create),
    Verb("restart of a storage node", node_ends, prepare=create),
    Verb("replacement of a storage node", node_ends_for_good, replaced, prepare=create, again=False),
    Verb("replacement that is taken back", node_comes_back, prepare=create, again=False),
    Verb("growth by a group", grow, grown, prepare=create),
    Verb("create with readers", create_with_readers, lambda d: exists(d) and len(readers_of(d)) == 2, prepare=start),
    Verb("a reader more", add_reader, lambda d: len(readers_of(d)) >= 1, prepare=create, api="add_readers"),
    Verb(
        "a reader less",
        remove_reader,
        lambda d: "demo-2" not in readers_of(d),
        prepare=create_with_reader,
        api="remove_reader",
    ),
    Verb(
        "a reader less while its process starts",
        remove_reader_while_it_starts,
        lambda d: "demo-2" not in readers_of(d),
        prepare=create_with_reader,
    ),
    Verb("a rule of scaling", autoscale, lambda d: len(readers_of(d)) == 2, prepare=create_with_reader),
    Verb(
        "a reader less by a rule",
        scale_in,
        lambda d: readers_of(d) == ["demo-2"],
        prepare=create_scaled,
        api="autoscale_readers",
    ),
    Verb(
        "a custom endpoint",
        create_endpoint,
        lambda d: endpoints_of(d) == ["any"],
        prepare=create_with_reader,
        api="create_endpoint",
    ),
    Verb(
        "a custom endpoint less",
        delete_endpoint,
        lambda d: endpoints_of(d) == ["any"],
        prepare=create_with_endpoints,
        api="delete_endpoint",
    ),
    Verb("failover with custom endpoints", failover_to_the_best, writes_elsewhere, prepare=create_with_endpoints),
    Verb("failover to a target", failover_to_target, demo_3_writes, prepare=create_with_readers),
    Verb("failover with a reader", failover_to_the_best, writes_elsewhere, prepare=create_with_reader),
    Verb("delete with a reader", delete, lambda d: not exists(d), prepare=create_with_reader),
    Verb("restart of a reader's process", reader_ends, prepare=create_with_reader),
    Verb("restart of a reader that hangs", reader_hangs, prepare=create_with_reader),
    Verb("failover after a process's end with a reader", process_ends, prepare=create_with_reader),
    Verb("growth by a group with a reader", grow, grown, prepare=create_with_reader),
    Verb("clone", clone, is_cloned, prepare=create, api="clone"),
    Verb("clone of a deleted cluster", clone, is_cloned_from_deleted, prepare=create_and_delete),
    Verb("clone where a node cannot fork", clone, is_cloned, prepare=create_with_an_unfit_node),
    Verb("a look at the past", look_at_the_past, lambda d: not is_cloned(d), prepare=create, again=False),
    Verb("backtrack", backtrack, is_rewound, prepare=create, api="backtrack"),
    Verb("backtrack with a reader", backtrack, is_rewound, prepare=create_with_reader),
    Verb("the end of a past's time", backtrack, is_rewound_for_good, prepare=create_without_a_window),
    Verb("mark", mark, is_marked, prepare=create, api="mark"),
    Verb("another window", set_window, has_window, prepare=create, api="set_window"),
    Verb("restart of the endpoints", endpoints_end, prepare=create),
    Verb("another port for an endpoint", endpoints_port_is_taken, endpoint_moved, prepare=create, again=False),
    Verb("another port for an instance", port_is_taken, listens_elsewhere, prepare=create, again=False),
)

_ASKING = "wait_open wait_available clusters status secret trail graveyard look_at_state usage"
LOOKS: Final = frozenset(_ASKING.split())  # calls of ControlApi that change nothing
