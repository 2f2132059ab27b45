"""The verbs of who has to make anew what a fleet lost: its declared state, its file."""

from __future__ import annotations

from aurora_ray.control.api import repair_file
from aurora_ray.control.model import bootstrap
from aurora_ray.errors import ConfigurationError
from aurora_ray.log.segment_rules import Membership
from tests.control.crash.driver import Driver

OPEN_TIMEOUT_S = 60.0


async def rebuild(driver: Driver) -> None:
    """No version of the state can be used any more: somebody asks for a new one until there is one."""
    await driver.vanish()
    driver.world.unreadable = True
    driver.begin()
    driver.rescue = lambda: driver.api.repair_state(None)
    await driver.at_rest()


async def make_file_anew(driver: Driver) -> None:
    """The fleet is stopped, its file is damaged, somebody has it made anew until it is there, and starts the fleet."""
    await driver.plane.shutdown()
    await driver.vanish()
    path, control = driver.directory / bootstrap.FILE_NAME, driver.fleet.control_volume
    path.write_text("fleet_id = 'cut o")
    (group,) = control.groups
    held = Membership(1, group.node_ids, ())
    found = repair_file.Survey(group.node_ids, dict.fromkeys(group.node_ids, held), {}, {}, (control.volume_id,))

    def has_file_made() -> None:
        try:
            missing = bootstrap.load(driver.directory) is None
        except ConfigurationError:
            missing = True
        if missing:
            repair_file.write_fleet_file(driver.directory, repair_file.fleet_of(found, {}, "somewhere"))

    driver.before_start = has_file_made
    driver.begin()
    await driver.api.wait_open(OPEN_TIMEOUT_S)


def has_own_file(driver: Driver) -> bool:
    """That of its own fleet, and what was there instead was kept."""
    loaded = bootstrap.load(driver.directory)
    kept = list(driver.directory.glob(f"{bootstrap.FILE_NAME}.damaged-*"))
    return loaded is not None and loaded.fleet_id == driver.fleet.fleet_id and len(kept) == 1
