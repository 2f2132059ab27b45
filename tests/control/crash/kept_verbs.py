"""A storage node is replaced while volumes are kept that nobody serves: what a rewind left, what a deleted cluster had.
Their copies move as well."""

from __future__ import annotations

from typing import Final

from tests.control.crash import verbs
from tests.control.crash.driver import Driver, Verb


async def create_and_backtrack(driver: Driver) -> None:
    await verbs.create(driver)
    await driver.at_rest()
    await verbs.backtrack(driver)


KEPT: Final = tuple(
    Verb(f"replacement {what}", act, reached, prepare=prepare, again=False)
    for what, act, reached, prepare in (
        ("after a rewind", verbs.node_ends_for_good, verbs.replaced, create_and_backtrack),
        ("after a deletion", verbs.node_ends_for_good, verbs.replaced, verbs.create_and_delete),
        ("that is taken back after a rewind", verbs.node_comes_back, lambda _: True, create_and_backtrack),
    )
)
