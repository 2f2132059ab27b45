"""A primary that no majority reaches acknowledges nothing; a failover waits for that, or says that it is not sure."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from aurora_ray.control.api import acknowledging
from aurora_ray.control.model.regional import Peer
from aurora_ray.control.model.views import NOTHING
from aurora_ray.errors import QuorumLostError, UsageError
from aurora_ray.replication.lease import DRIFT, GIVE_UP_S, LEASE_MIN_S
from aurora_ray.replication.turnover import Turnover, Way
from aurora_ray.rpc.admission import OURS
from tests.control.crash.abroad import GLOBAL, HERE, THERE
from tests.control.crash.driver import Driver, Verb
from tests.control.crash.handles import LSN
from tests.control.crash.regional_verbs import (
    LEASE_S,
    PROMOTED,
    be_primary,
    fail_over,
    follow_with_a_lease,
    follow_with_a_rule,
    hear_nothing,
    invite,
    is_leased_again,
    is_promoted,
    limit,
)
from tests.control.crash.test_crash_points import Enumeration
from tests.control.crash.verbs import TIMEOUT_S
from tests.control.crash.world import Crash, Ends

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = [pytest.mark.allowed_logs(r".*"), pytest.mark.timeout(60)]


@pytest.fixture
def enumeration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enumeration:
    return Enumeration(tmp_path, monkeypatch)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def acknowledges(driver: Driver) -> float | None:
    """For how much longer, in seconds; None: without a limit."""
    until_s = driver.world.instances["demo-1"].gate._until_s
    return None if until_s is None else until_s - now_s()


async def be_followed(driver: Driver) -> None:
    await be_primary(driver)
    driver.region.view = replace(driver.region.view, following=True)


def run(
    enumeration: Enumeration, act: Callable[[Driver], Awaitable[object]], prepare: Callable[[Driver], Awaitable[object]]
) -> None:
    async def acts(driver: Driver) -> None:
        await act(driver)

    enumeration.run(Verb("a lease", acts, prepare=prepare, again=False), Crash(Ends.CONTROL))


def test_a_primary_that_is_cut_off_stops_to_acknowledge_in_time_and_goes_on_when_it_is_heard(
    enumeration: Enumeration,
) -> None:
    async def act(driver: Driver) -> None:
        assert acknowledges(driver) is None
        await limit(driver)
        await asyncio.sleep(20)  # not synchronisation: the clock is virtual
        left_s = acknowledges(driver)
        assert left_s is not None
        assert LEASE_S - 3 < left_s <= LEASE_S, "it is renewed all the time"
        driver.region.silent = True
        began_s = now_s()
        while (left_s := acknowledges(driver)) is not None and left_s > 0:
            assert now_s() - began_s <= LEASE_S
            await asyncio.sleep(0.1)  # not synchronisation: the clock is virtual
        await asyncio.sleep(30)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) < 0
        driver.region.silent = False
        await asyncio.sleep(3)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) > 0
        await driver.api.set_limits(GLOBAL, 0.0, 0.0, timeout_s=TIMEOUT_S)
        await asyncio.sleep(2)  # not synchronisation: the clock is virtual
        assert acknowledges(driver) is None

    run(enumeration, act, be_followed)


def test_a_control_plane_that_ends_takes_the_lease_with_it_and_its_successor_renews_it(
    enumeration: Enumeration,
) -> None:
    async def act(driver: Driver) -> None:
        await limit(driver)
        await asyncio.sleep(3)  # not synchronisation: the clock is virtual
        await driver.vanish()
        await asyncio.sleep(LEASE_S)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) <= 0
        driver.begin()
        await asyncio.sleep(5)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) > 0

    run(enumeration, act, be_followed)


def test_a_failover_waits_for_what_was_granted(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        cluster = driver.fleet.cluster("demo")
        assert cluster.membership is not None
        asks = replace(driver.region.view, lease_s=LEASE_S)
        await asyncio.sleep(2 * LEASE_S)  # not synchronisation: the clock is virtual
        began_s = now_s()
        assert driver.plane.regions.answer(cluster, cluster.membership, asks).grants == asks.generation
        driver.region.silent = True
        await fail_over(driver)
        took_s = now_s() - began_s
        assert promotion(driver)["fenced"] is True
        assert LEASE_S * (1 + DRIFT) <= took_s < LEASE_S * (1 + DRIFT) + GIVE_UP_S + 5

    run(enumeration, act, follow_with_a_lease)


def promotion(driver: Driver) -> dict[str, Any]:
    known = driver.fleet.cluster("demo").membership
    assert known is not None
    assert known.promotion is not None
    return known.promotion


def test_what_a_failover_refused_stays_refused_when_something_else_is_asked_for(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        cluster = driver.fleet.cluster("demo")
        assert cluster.membership is not None
        asks = replace(driver.region.view, lease_s=LEASE_S)
        taken = cluster.membership.turning(Turnover(Way.FAILOVER, THERE, HERE, PROMOTED))
        after = taken.turning(Turnover(Way.SWITCHOVER, THERE, HERE, PROMOTED + 16))
        assert driver.plane.regions.leases.grant(cluster, cluster.membership, asks) == asks.generation
        assert driver.plane.regions.leases.grant(cluster, after, asks) == NOTHING

    run(enumeration, act, follow_with_a_lease)


def test_a_failover_that_cannot_be_sure_says_so(enumeration: Enumeration) -> None:
    """Of four regions, two that nobody reaches may be a majority with the old primary."""

    async def act(driver: Driver) -> None:
        others = tuple(
            Peer(f"far-{n}", n, str(UUID(int=n)), "127.0.0.1:9", "/nowhere", OURS.secret.to_text()) for n in (2, 3)
        )
        me = Peer(HERE, 1, str(UUID(int=11)), "127.0.0.1:7", "/nowhere", OURS.secret.to_text())
        driver.region.view = replace(driver.region.view, members=(me, *others))
        await driver.plane.wait_until(
            lambda: len(driver.fleet.cluster("demo").membership.peers) == 3,  # type: ignore[union-attr]
            TIMEOUT_S,
            "all are known",
        )
        driver.region.silent = True
        began_s = now_s()
        await fail_over(driver)
        assert promotion(driver)["fenced"] is False
        assert now_s() - began_s >= LEASE_S * (1 + DRIFT) + GIVE_UP_S

    run(enumeration, act, follow_with_a_lease)


def test_a_rule_begins_a_failover_when_the_primary_is_silent_and_waits_until_it_is_sure(
    enumeration: Enumeration,
) -> None:
    async def act(driver: Driver) -> None:
        await asyncio.sleep(60)  # not synchronisation: the clock is virtual
        assert driver.fleet.cluster("demo").is_secondary, "it is heard of"
        began_s = now_s()
        await hear_nothing(driver)
        assert promotion(driver)["fenced"] is True
        assert now_s() - began_s >= LEASE_S, "its silence"

    run(enumeration, act, follow_with_a_rule)


def test_one_of_two_regions_that_takes_over_acknowledges_alone_until_the_other_one_follows(
    enumeration: Enumeration,
) -> None:
    async def act(driver: Driver) -> None:
        driver.region.silent = True
        await driver.plane.wait_until(lambda: is_promoted(driver), TIMEOUT_S, "a failover by the rule")
        await asyncio.sleep(60)  # not synchronisation: the clock is virtual
        known = driver.fleet.cluster("demo").membership
        assert known is not None
        assert (known.lease_s, known.lease_later_s) == (0.0, LEASE_S)
        assert acknowledges(driver) is None
        assert "once all regions follow" in acknowledging.describe(known)

        driver.region.silent = False
        await driver.plane.wait_until(lambda: is_leased_again(driver), TIMEOUT_S, "a lease")
        left_s = acknowledges(driver)
        assert left_s is not None, "bound before anybody may rely on it"
        assert 0 < left_s <= LEASE_S
        await asyncio.sleep(2 * LEASE_S)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) > 0, "it is renewed"
        driver.region.silent = True
        await asyncio.sleep(2 * LEASE_S)  # not synchronisation: the clock is virtual
        assert (acknowledges(driver) or 0) < 0

    run(enumeration, act, follow_with_a_rule)


def test_who_has_asked_the_primary_to_make_way_never_acknowledges_alone(enumeration: Enumeration) -> None:
    """That one may take its place back, and nobody else would fence it."""

    async def act(driver: Driver) -> None:
        asked = asyncio.ensure_future(driver.api.turn_global(GLOBAL, HERE, "switchover", TIMEOUT_S))
        await driver.plane.wait_until(lambda: is_turning(driver), TIMEOUT_S, "a switchover")
        driver.region.silent = True
        asked.cancel()
        await fail_over(driver)
        known = driver.fleet.cluster("demo").membership
        assert known is not None
        assert (known.lease_s, known.lease_later_s) == (LEASE_S, 0.0)

    run(enumeration, act, follow_with_a_lease)


def is_turning(driver: Driver) -> bool:
    known = driver.fleet.cluster("demo").membership
    return known is not None and known.turnover is not None


def test_a_primary_that_steps_down_knows_at_once_that_its_successor_has_no_lease(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        await limit(driver)
        driver.region.is_promoted(LSN, PROMOTED)
        driver.region.view = replace(driver.region.view, lease_s=0.0, lease_later_s=LEASE_S)
        await driver.plane.wait_until(lambda: driver.fleet.cluster("demo").is_secondary, TIMEOUT_S, "it steps down")
        known = driver.fleet.cluster("demo").membership
        assert known is not None
        assert (known.lease_s, known.lease_later_s) == (0.0, LEASE_S)

    run(enumeration, act, be_followed)


def test_a_rule_does_nothing_where_too_few_agree(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        third = Peer("far", 2, str(UUID(int=2)), "127.0.0.1:9", "/nowhere", OURS.secret.to_text())
        me = Peer(HERE, 1, str(UUID(int=11)), "127.0.0.1:7", "/nowhere", OURS.secret.to_text())
        driver.region.view = replace(driver.region.view, members=(me, third))
        await asyncio.sleep(5)  # not synchronisation: the clock is virtual
        driver.region.silent = True
        await asyncio.sleep(120)  # not synchronisation: the clock is virtual
        cluster = driver.fleet.cluster("demo")
        assert cluster.membership is not None
        assert (cluster.is_secondary, len(cluster.membership.peers), cluster.membership.turnover) == (True, 2, None)

    run(enumeration, act, follow_with_a_rule)


def test_limits_that_make_no_sense_are_refused(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        for lease_s, rpo_s, words in ((1.0, None, f"a lease is of {LEASE_MIN_S:g} "), (None, 5.0, "RPO is of 20")):
            with pytest.raises(UsageError, match=words):
                await driver.api.set_limits(GLOBAL, lease_s, rpo_s, timeout_s=TIMEOUT_S)
        with pytest.raises(UsageError, match="needs one"):
            await driver.api.set_limits(GLOBAL, failover_after_s=30.0, timeout_s=TIMEOUT_S)
        driver.region.silent = True
        await asyncio.sleep(10)  # not synchronisation: the clock is virtual
        with pytest.raises(QuorumLostError, match="would not hear of it"):
            await limit(driver)
        driver.region.silent = False
        await limit(driver)
        with pytest.raises(UsageError, match="no region can be removed meanwhile"):
            await driver.api.remove_region(GLOBAL, THERE, keep=False, timeout_s=TIMEOUT_S)
        await invite(driver)  # once more the one that is there
        known = driver.fleet.cluster("demo").membership
        assert known is not None
        told = "the primary needs a lease of 10 s, commits wait for an RPO of 20 s, no failover by itself"
        assert acknowledging.describe(known) == told

    run(enumeration, act, be_followed)
