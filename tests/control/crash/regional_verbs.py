"""Verbs of global clusters: what users and other regions ask for, and what a region does by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from aurora_ray.control.model.regional import SEALED, Peer
from aurora_ray.control.model.sealing import seal
from aurora_ray.replication.residency import Policy
from aurora_ray.replication.succession import next_generation, slot_of
from aurora_ray.replication.turnover import Turnover, Way
from aurora_ray.rpc.admission import OURS
from tests.control.crash.abroad import GLOBAL, HERE, THERE
from tests.control.crash.driver import Driver, Verb
from tests.control.crash.verbs import TIMEOUT_S, create, start

THERE_ID: Final = str(UUID(int=9))
PROMOTED: Final = next_generation(0, 1)  # the other region, in its first turn
POLICY: Final = Policy(frozenset({HERE, THERE}))
RESIDENCY: Final[dict[str, list[str]]] = {}  # that comes with an invitation
LEASE_S: Final = 10.0
BEFORE_THE_END: Final = 5  # of the LSNs here


async def declare(driver: Driver) -> None:
    await create(driver)
    await driver.api.create_global(GLOBAL, "demo")


def is_declared(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").membership is not None


async def invite(driver: Driver) -> None:
    secret = seal(SEALED, OURS.secret.to_text())
    guest = {"region": THERE, "fleet_id": THERE_ID, "address": "127.0.0.1:9", "data_dir": "/nowhere", "secret": secret}
    await driver.api.invite_region(GLOBAL, guest)


async def be_primary(driver: Driver) -> None:
    await declare(driver)
    await invite(driver)
    region = driver.region
    region.view = replace(region.view, primary=HERE, writes=False)


def peers_of(driver: Driver) -> list[str]:
    known = driver.fleet.cluster("demo").membership
    return [peer.region for peer in known.peers] if known is not None else []


async def join(driver: Driver) -> None:
    await start(driver)
    peer = {"region": THERE, "slot": 0, "fleet_id": THERE_ID, "address": "127.0.0.1:9", "data_dir": "/nowhere"}
    invitation: dict[str, Any] = {
        "global": GLOBAL,
        "cluster": "demo",
        "slot": 1,
        "primary": THERE,
        "peers": [{**peer, "secret": seal(SEALED, OURS.secret.to_text())}],
        "engine": "postgres",
        "engine_version": "18",
        "password": seal(SEALED, "secret"),
        "parameters": [],
        "page_size": 8192,
        "group_bytes": 1 << 30,
        "groups": 1,
        "turns": [[0, 0]],
        "first_lsn": 3,
        "window_s": 3600,
        "window_log_bytes": 1 << 20,
        "residency": dict(RESIDENCY),
    }
    await driver.api.join_global(invitation, reader_count=1, timeout_s=TIMEOUT_S)
    await driver.api.wait_copied(GLOBAL, TIMEOUT_S)


def follows(driver: Driver) -> bool:
    clusters = {cluster.name: cluster for cluster in driver.fleet.clusters}
    return "demo" in clusters and clusters["demo"].is_secondary and clusters["demo"].volume.initialised


def is_primary(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    known = cluster.membership
    mine = known is not None and known.primary == HERE and slot_of(cluster.generation) == known.slot
    return mine and not cluster.is_secondary and cluster.generation > 0 and driver.region.view.primary == HERE


async def switch_over(driver: Driver) -> None:
    await driver.api.turn_global(GLOBAL, HERE, "switchover", TIMEOUT_S)
    await asyncio.sleep(3)  # not synchronisation: the clock is virtual


async def fail_over(driver: Driver) -> None:
    await driver.api.turn_global(GLOBAL, HERE, "failover", TIMEOUT_S)
    await asyncio.sleep(3)  # not synchronisation: the clock is virtual


async def make_way(driver: Driver) -> None:
    if driver.fleet.cluster("demo").generation < PROMOTED:
        await driver.api.make_way(GLOBAL, PROMOTED)
    await driver.plane.wait_until(lambda: follows_again(driver), TIMEOUT_S, "the old primary follows")


def follows_again(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    return cluster.is_secondary and cluster.generation == PROMOTED and not cluster.past


async def be_primary_beside_a_slow_one(driver: Driver) -> None:
    await be_primary(driver)
    driver.region.promoted_after_s = 30.0


async def take_back(driver: Driver) -> None:
    cluster = driver.fleet.cluster("demo")
    if cluster.generation == 0 and not cluster.is_secondary:
        await driver.api.make_way(GLOBAL, PROMOTED)
    await driver.api.turn_global(GLOBAL, HERE, "switchover", TIMEOUT_S)
    await asyncio.sleep(3)  # not synchronisation: the clock is virtual


async def another_is_promoted(driver: Driver) -> None:
    if driver.region.view.generation < PROMOTED:
        driver.region.is_promoted(BEFORE_THE_END, PROMOTED)
    await driver.plane.wait_until(lambda: keeps_a_tail(driver), TIMEOUT_S, "the old primary follows")


def keeps_a_tail(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    known = cluster.membership
    tails = [(t.after_lsn, t.end_lsn) for t in known.tails] if known is not None else []
    return cluster.is_secondary and tails == [(BEFORE_THE_END, 8)] and len(cluster.past) == 1


async def is_overtaken(driver: Driver) -> None:
    """A switchover to here was begun, and the other region takes a turn of its own."""
    driver.region.deaf = True
    mine = Turnover(Way.SWITCHOVER, THERE, HERE, next_generation(0, 1))

    def change(fleet: Any) -> Any:
        cluster = fleet.cluster("demo")
        if cluster.generation or cluster.membership.turnover is not None:
            return fleet
        return fleet.with_cluster(replace(cluster, membership=replace(cluster.membership, turnover=mine)))

    await driver.plane.commit(change)
    if driver.region.view.generation == 0:
        driver.region.is_promoted(8, next_generation(next_generation(0, 1), 0))


def gave_up(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    return follows(driver) and cluster.membership is not None and cluster.membership.turnover is None


async def remove(driver: Driver) -> None:
    await driver.api.remove_region(GLOBAL, THERE, keep=False, timeout_s=TIMEOUT_S)


async def leave(driver: Driver) -> None:
    await driver.api.leave_global(GLOBAL, keep=True, timeout_s=TIMEOUT_S)


def is_alone(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    return cluster.membership is None and not cluster.is_secondary


async def leave_and_be_deleted(driver: Driver) -> None:
    driver.world.asked_to_delete.add("demo")
    await driver.api.leave_global(GLOBAL, keep=False, timeout_s=TIMEOUT_S)


async def another_region_and_other_addresses(driver: Driver) -> None:
    third = Peer("farther", 2, str(UUID(int=10)), "127.0.0.1:8", "/nowhere", OURS.secret.to_text())
    me = Peer(HERE, 1, str(UUID(int=11)), "127.0.0.1:7", "/nowhere", OURS.secret.to_text())
    view = driver.region.view
    driver.region.view = replace(view, members=(me, third), nodes=(("x-0", "x", "127.0.0.1:2"),))
    await driver.plane.wait_until(lambda: peers_of(driver) == [THERE, "farther"], TIMEOUT_S, "the regions are known")


def knows_where(driver: Driver) -> bool:
    owner = driver.plane.processes.instances["demo-1"]
    return peers_of(driver) == [THERE, "farther"] and owner.seen.source_told == (("x-0", "127.0.0.1:2"),)


async def restrict(driver: Driver) -> None:
    await driver.api.set_residency(GLOBAL, [HERE, THERE], [], timeout_s=TIMEOUT_S)


async def limit(driver: Driver) -> None:
    await driver.api.set_limits(GLOBAL, LEASE_S, 20.0, timeout_s=TIMEOUT_S)


def is_limited(driver: Driver) -> bool:
    known = driver.fleet.cluster("demo").membership
    return known is not None and (known.lease_s, known.rpo_s) == (LEASE_S, 20.0)


async def forward(driver: Driver) -> None:
    await driver.api.set_forwarding(GLOBAL, on=True, timeout_s=TIMEOUT_S)


def forwards(driver: Driver) -> bool:
    known = driver.fleet.cluster("demo").membership
    return known is not None and known.forwards and driver.region.view.forwards


async def hear_of_forwarding(driver: Driver) -> None:
    driver.region.view = replace(driver.region.view, forwards=True, endpoint=("127.0.0.1", 5432))
    await driver.plane.wait_until(lambda: is_told_where(driver), TIMEOUT_S, "readers know where the writer is")


def is_told_where(driver: Driver) -> bool:
    return driver.plane.regions.writers() == {"demo": ("127.0.0.1", 5432)}


async def follow_with_a_lease(driver: Driver) -> None:
    driver.region.view = replace(driver.region.view, lease_s=LEASE_S)
    await join(driver)
    await driver.plane.wait_until(lambda: has_lease(driver), TIMEOUT_S, "the lease is known")


def has_lease(driver: Driver) -> bool:
    known = driver.fleet.cluster("demo").membership
    return known is not None and known.lease_s == LEASE_S


async def hear_of_a_failover(driver: Driver) -> None:
    driver.region.view = replace(driver.region.view, takes=PROMOTED)
    await driver.plane.wait_until(lambda: refuses(driver), TIMEOUT_S, "it is noted")


async def follow_with_a_rule(driver: Driver) -> None:
    driver.region.view = replace(driver.region.view, failover_after_s=LEASE_S)
    await follow_with_a_lease(driver)


async def hear_nothing(driver: Driver) -> None:
    driver.region.silent = True
    await driver.plane.wait_until(lambda: is_promoted(driver), 2 * TIMEOUT_S, "a failover by the rule")
    driver.region.silent = False
    await asyncio.sleep(3)  # not synchronisation: the clock is virtual


def is_promoted(driver: Driver) -> bool:
    cluster = driver.fleet.cluster("demo")
    return not cluster.is_secondary and cluster.generation > 0


def is_leased_again(driver: Driver) -> bool:
    """The old primary follows."""
    known = driver.fleet.cluster("demo").membership
    return known is not None and is_primary(driver) and (known.lease_s, known.lease_later_s) == (LEASE_S, 0.0)


def refuses(driver: Driver) -> bool:
    known = driver.fleet.cluster("demo").membership
    return known is not None and known.refuses_below == PROMOTED


async def hear_of_a_policy(driver: Driver) -> None:
    driver.region.view = replace(driver.region.view, residency=POLICY)
    await driver.plane.wait_until(lambda: is_restricted(driver), TIMEOUT_S, "the policy is known")


def is_restricted(driver: Driver) -> bool:
    return driver.fleet.cluster("demo").residency == POLICY


REGIONAL: Final = (
    Verb("a global cluster", declare, is_declared, prepare=create, api="create_global"),
    Verb("a region more", invite, lambda d: peers_of(d) == [THERE], prepare=declare, api="invite_region"),
    Verb("a copy of another region", join, follows, prepare=start, api="join_global"),
    Verb("switchover to here", switch_over, is_primary, prepare=join, api="turn_global"),
    Verb("failover to here", fail_over, is_primary, prepare=join),
    Verb("making way for another region", make_way, follows_again, prepare=be_primary, api="make_way"),
    Verb("making way that is taken back", take_back, is_primary, prepare=be_primary_beside_a_slow_one),
    Verb("a failover to another region", another_is_promoted, keeps_a_tail, prepare=be_primary),
    Verb("a switchover that is overtaken", is_overtaken, gave_up, prepare=join),
    Verb("limits of commits", limit, is_limited, prepare=be_primary, api="set_limits"),
    Verb("write forwarding", forward, forwards, prepare=be_primary, api="set_forwarding"),
    Verb("write forwarding, by the primary", hear_of_forwarding, is_told_where, prepare=join),
    Verb("a lease that is refused", hear_of_a_failover, refuses, prepare=follow_with_a_lease),
    Verb("a failover by a rule", hear_nothing, is_leased_again, prepare=follow_with_a_rule),
    Verb("where data may lie", restrict, is_restricted, prepare=be_primary, api="set_residency"),
    Verb("where data may lie, by the primary", hear_of_a_policy, is_restricted, prepare=join),
    Verb("a region less", remove, lambda d: peers_of(d) == [], prepare=be_primary, api="remove_region"),
    Verb("leaving with the data", leave, is_alone, prepare=join, api="leave_global"),
    Verb("leaving without", leave_and_be_deleted, lambda d: not d.fleet.clusters, prepare=join),
    Verb("news from the primary", another_region_and_other_addresses, knows_where, prepare=join),
)

# Calls of ControlApi that change nothing here.
REGIONAL_LOOKS: Final = {"describe_residency", "wait_copied", "describe_region", "global_status", "exchange_views"}
