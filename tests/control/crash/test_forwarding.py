"""Whether readers forward writes: said in the primary, and known to the regions that can be reached."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.control.api import forwarding
from aurora_ray.errors import UsageError
from tests.control.crash.abroad import GLOBAL, THERE
from tests.control.crash.regional_verbs import be_primary, forwards, hear_of_forwarding, is_told_where, join
from tests.control.crash.test_crash_points import Enumeration
from tests.control.crash.test_leases import enumeration, run  # noqa: F401  (a fixture)
from tests.control.crash.verbs import TIMEOUT_S

if TYPE_CHECKING:
    from tests.control.crash.driver import Driver

pytestmark = [pytest.mark.allowed_logs(r".*"), pytest.mark.timeout(60)]


def test_a_region_that_is_silent_hears_of_it_later(enumeration: Enumeration) -> None:  # noqa: F811
    async def act(driver: Driver) -> None:
        driver.region.silent = True
        await asyncio.sleep(10)  # not synchronisation: the clock is virtual
        done = await forwarding.set_forwarding(driver.plane, GLOBAL, on=True, timeout_s=TIMEOUT_S)
        assert (done["forwarding"], done["not_told"]) == (True, [THERE])
        assert not forwards(driver)
        driver.region.silent = False
        await driver.plane.wait_until(lambda: forwards(driver), TIMEOUT_S, "it hears of it")
        done = await driver.api.set_forwarding(GLOBAL, on=False, timeout_s=TIMEOUT_S)
        assert (done["rule"], done["not_told"]) == ("readers forward no writes", [])
        assert driver.plane.regions.writers() == {}

    run(enumeration, act, be_primary)


def test_an_engine_that_cannot_is_refused(enumeration: Enumeration) -> None:  # noqa: F811
    async def act(driver: Driver) -> None:
        for engine, version in (("postgres", "16.14"), ("mysql", "10.11")):

            def change(fleet: Any, engine: str = engine, version: str = version) -> Any:
                return fleet.with_cluster(replace(fleet.cluster("demo"), engine=engine, engine_version=version))

            before = driver.fleet.cluster("demo")
            await driver.plane.commit(change)
            with pytest.raises(UsageError, match="cannot forward writes"):
                await driver.api.set_forwarding(GLOBAL, on=True, timeout_s=TIMEOUT_S)
            await driver.plane.commit(lambda fleet, before=before: fleet.with_cluster(before))

    run(enumeration, act, be_primary)


def test_a_secondary_region_is_told_by_the_primary_alone(enumeration: Enumeration) -> None:  # noqa: F811
    async def act(driver: Driver) -> None:
        with pytest.raises(UsageError, match="that is set in"):
            await driver.api.set_forwarding(GLOBAL, on=True, timeout_s=TIMEOUT_S)
        await hear_of_forwarding(driver)
        assert is_told_where(driver)
        driver.region.view = replace(driver.region.view, forwards=False)
        await driver.plane.wait_until(
            lambda: driver.plane.regions.writers() == {}, TIMEOUT_S, "it is known to be turned off"
        )

    run(enumeration, act, join)
