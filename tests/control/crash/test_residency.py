"""Every place where data could move asks the policy of residency first, and what it said stands in the audit log.

Each call of the control plane stands in one of two tables. One that is new fails a test until somebody has said what it
does to data.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from aurora_ray.control.api import backups as backups_api
from aurora_ray.control.api import residency
from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.backups import DAY_S
from aurora_ray.control.report import audit
from aurora_ray.errors import QuorumLostError, ResidencyError, UsageError
from aurora_ray.replication.residency import Policy, Purpose, judge
from tests.control.crash import regional_verbs
from tests.control.crash.abroad import GLOBAL, HERE, THERE
from tests.control.crash.driver import Driver, Verb
from tests.control.crash.regional_verbs import be_primary, declare, invite, restrict
from tests.control.crash.test_crash_points import Enumeration, looks_up
from tests.control.crash.verbs import TIMEOUT_S, start
from tests.control.crash.world import Crash, Ends

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Act = Callable[[Driver], Awaitable[object]]

pytestmark = [pytest.mark.allowed_logs(r".*"), pytest.mark.timeout(60)]


async def add_a_region(driver: Driver) -> None:
    await invite(driver)


async def be_added(driver: Driver) -> None:
    await regional_verbs.join(driver)


async def back_up_nobody_knows_where(driver: Driver) -> None:
    await driver.api.set_backup("demo", "s3://bucket/backups", "", DAY_S)


async def back_up_elsewhere(driver: Driver) -> None:
    await driver.api.set_backup("demo", "/backups", "", DAY_S, THERE)


async def back_up_elsewhere_by_the_url(driver: Driver) -> None:
    await driver.api.set_backup("demo", f"s3://bucket/backups?region={THERE}", "", DAY_S)


async def restore(driver: Driver) -> None:
    await driver.api.restore_backup("/backups", "copy", cluster="", at="", key_file="", timeout_s=TIMEOUT_S)


async def restrict_to_here(driver: Driver) -> None:
    await driver.api.set_residency(GLOBAL, [HERE], [], timeout_s=TIMEOUT_S)


async def be_here_alone(driver: Driver) -> None:
    await declare(driver)
    await restrict_to_here(driver)


async def be_primary_with_a_backup(driver: Driver) -> None:
    await be_primary(driver)
    await driver.api.set_backup("demo", "/backups", "", DAY_S, "farther")


async def be_primary_of_one_with_a_backup(driver: Driver) -> None:
    await be_primary(driver)
    driver.region.view = replace(driver.region.view, backs_up_to="s3://bucket")


# Calls that bring data to another place: when they are refused, for what purpose, and to where.
FORBIDDEN: Final[dict[str, tuple[str, Act, Act, Purpose, str]]] = {
    "a region more": ("invite_region", be_here_alone, add_a_region, Purpose.ADD_REGION, THERE),
    "this region": ("join_global", start, be_added, Purpose.ADD_REGION, HERE),
    "a bucket": (
        "set_backup",
        be_here_alone,
        back_up_nobody_knows_where,
        Purpose.BACKUP,
        "a place that nobody has named",
    ),
    "a directory": ("set_backup", be_here_alone, back_up_elsewhere, Purpose.BACKUP, THERE),
    "a bucket's region": ("set_backup", be_here_alone, back_up_elsewhere_by_the_url, Purpose.BACKUP, THERE),
    "a restore": ("restore_backup", start, restore, Purpose.RESTORE, HERE),
    "a region that is there": ("set_residency", be_primary, restrict_to_here, Purpose.POLICY, THERE),
    "a backup that is there": ("set_residency", be_primary_with_a_backup, restrict, Purpose.BACKUP, "farther"),
    "a backup there": ("set_residency", be_primary_of_one_with_a_backup, restrict, Purpose.BACKUP, "s3://bucket"),
}

WITHIN: Final = "within the region"
MEMBER: Final = "to a region that has the data already"
NOTHING: Final = "moves no data"
STAYS: Final = {
    **dict.fromkeys(("create", "clone", "backtrack", "add_readers", "restore", "repair_state", "repair"), WITHIN),
    **dict.fromkeys(("failover", "autoscale_readers", "modify", "scale", "leave_global", "remove_region"), WITHIN),
    **dict.fromkeys(("turn_global", "make_way", "set_forwarding"), MEMBER),
    **dict.fromkeys(("create_global", "delete", "purge", "mark", "set_window", "set_parameters"), NOTHING),
    **dict.fromkeys(("set_limits", "remove_reader", "create_endpoint", "delete_endpoint"), NOTHING),
}


@pytest.fixture
def enumeration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enumeration:
    return Enumeration(tmp_path, monkeypatch)


def test_every_call_that_changes_something_is_known_to_move_data_or_not() -> None:
    looks = {"wait_open", "wait_available", "wait_copied", "status", "clusters", "graveyard", "look_at_state"}
    looks |= {"describe_region", "describe_residency", "global_status", "exchange_views", "trail", "secret", "usage"}
    calls = {name for name, _ in inspect.getmembers(ControlApi, inspect.isfunction) if not name.startswith("_")}
    assert STAYS.keys() <= calls
    asked = {call for call, *_ in FORBIDDEN.values()}
    assert calls - looks - STAYS.keys() - asked == set(), "say whether it moves data, and if so, have it ask"
    assert {purpose for *_, purpose, _ in FORBIDDEN.values()} | {Purpose.DIAGNOSTICS} == {*Purpose}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_forbidden_is_refused_by_its_rule_and_stands_in_the_log(
    enumeration: Enumeration, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    _, prepare, act, purpose, to = FORBIDDEN[what]
    there_alone = ((THERE,), ())

    async def looks_up_there(*given: Any) -> backups_api.Source:
        source = await looks_up(*given)
        return replace(source, subject=replace(source.subject, region=THERE, residency=there_alone))

    async def is_refused(driver: Driver) -> None:
        before = driver.fleet.revision
        with pytest.raises(ResidencyError, match=rf"to {to} is forbidden: data stays in regions "):
            await act(driver)
        assert driver.fleet.revision == before
        line = audit.read(driver.directory)[-1]
        assert (line["verdict"], line["purpose"], line["to"]) == ("refused", purpose, to)

    monkeypatch.setattr(backups_api, "look_up", looks_up_there)
    monkeypatch.setitem(regional_verbs.RESIDENCY, "regions", [THERE])
    enumeration.run(Verb(what, is_refused, prepare=prepare, again=False), Crash(Ends.CONTROL))


def test_what_is_allowed_is_done_and_stands_in_the_log_and_the_policy_goes_with_the_data(
    enumeration: Enumeration,
) -> None:
    async def act(driver: Driver) -> None:
        await restrict(driver)
        await driver.api.set_backup("demo", "/backups", "", DAY_S, THERE)
        await driver.api.clone("demo", "copy", "", timeout_s=TIMEOUT_S)
        assert driver.fleet.cluster("copy").residency == regional_verbs.POLICY
        assert bootstrap.policies(driver.directory) == [regional_verbs.POLICY]
        lines = audit.read(driver.directory)
        assert [(line["verdict"], line["purpose"], line["to"]) for line in lines][-1] == ("allowed", "backup", THERE)
        told = await driver.api.describe_residency(GLOBAL)
        assert (told["rule"], told["audit"]) == ("data stays in regions elsewhere, somewhere", lines)
        await driver.api.set_residency(GLOBAL, [], [], timeout_s=TIMEOUT_S)
        await driver.api.set_backup("demo", "s3://bucket", "", DAY_S)

    enumeration.run(Verb("allowed", act, prepare=be_primary, again=False), Crash(Ends.CONTROL))


def test_a_region_that_would_not_hear_of_it_keeps_a_policy_from_being_made(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        driver.region.silent = True
        await asyncio.sleep(residency.HEARD_S + 3)  # not synchronisation: the clock is virtual
        with pytest.raises(QuorumLostError, match="elsewhere of g cannot be reached"):
            await restrict(driver)
        assert not driver.fleet.cluster("demo").residency.restricts
        driver.region.silent = False

    enumeration.run(Verb("silent", act, prepare=be_primary, again=False), Crash(Ends.CONTROL))


def test_exported_traces_keep_to_the_policy(enumeration: Enumeration) -> None:
    async def act(driver: Driver) -> None:
        await driver.vanish()
        driver.exports_to = ""
        driver.begin()
        with pytest.raises(ResidencyError, match="diagnostics of g from somewhere to a place that nobody has named"):
            await restrict(driver)
        await driver.vanish()
        driver.exports_to = THERE
        driver.begin()
        await restrict(driver)

    enumeration.run(Verb("traces", act, prepare=be_primary, again=False), Crash(Ends.CONTROL))


def test_a_backup_that_says_two_regions_is_refused() -> None:
    with pytest.raises(UsageError, match="is in a by its own word, not in b"):
        backups_api.located("s3://bucket?region=a", "b")
    assert [backups_api.located("s3://bucket?region=a", ""), backups_api.located("/x", "b")] == ["a", "b"]


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LINES_MAX", 10)
    verdict = judge(Policy(frozenset({HERE})), "g", Purpose.BACKUP, HERE, THERE)
    for _ in range(25):
        audit.note(tmp_path, [verdict])
    assert 5 <= len(audit.read(tmp_path)) <= 10
    assert (tmp_path / audit.FILE_NAME).stat().st_mode & 0o777 == 0o600
