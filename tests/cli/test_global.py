"""Two regions, two fleets, through the command: write here, read there, change places, lose one, take it back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.long,  # four fleets' starts: minutes
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
EAST, WEST = "us-east-1", "eu-west-1"
COUNT = "select count(*) from t"
DUMP = "select md5(string_agg(i::text || v, ',' order by i)) from t"


@pytest.fixture(scope="module")
def east(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "global") as found:
        yield found


@pytest.fixture(scope="module")
def west(east: CliFleet) -> Iterator[CliFleet]:
    """The second region, which lives below the first."""
    there = CliFleet(east.data_dir / "regions" / WEST, east.environment)
    try:
        east.check("global", "create", "g", "--primary", "demo")
        done = east.json("global", "add-region", "g", WEST, timeout_s=400)
        assert (done["region"], done["role"], done["state"]) == (WEST, "secondary", "following")
        yield there
    finally:
        there.destroy()


def rows_of(fleet: CliFleet, endpoint: str, statement: str) -> list[Any]:
    dsn = region_of(fleet)["endpoints"][endpoint]["dsn"]
    return [list(row) for row in fleet.execute(dsn, statement)]


def region_of(fleet: CliFleet) -> dict[str, Any]:
    asked = fleet.json("global", "status", "g")
    found: dict[str, Any] = next(row for row in asked["regions"] if row["region"] == asked["asked"])
    return found


def turns_in(fleet: CliFleet) -> list[dict[str, Any]]:
    return [trace for trace in fleet.json("trace", "list") if trace["name"] == "turn" and trace["whole"]]


def until(fleet: CliFleet, endpoint: str, statement: str, wanted: list[Any]) -> None:
    poll_until_blocking(
        lambda: rows_of(fleet, endpoint, statement) == wanted,
        120,
        interval_s=0.5,
        what=f"{statement} gives {wanted}\n{fleet.trail()}",
    )


def test_regions_change_places_and_one_that_was_lost_comes_back(east: CliFleet, west: CliFleet) -> None:
    east.sql("create table t (i int primary key, v text)")
    east.sql("insert into t select i, md5(i::text) from generate_series(1, 1000) i")
    until(west, "reader", COUNT, [[1000]])
    assert rows_of(west, "reader", "select pg_is_in_recovery()") == [[True]]

    done = east.json("global", "switchover", "g", "--to", WEST, timeout_s=150)
    assert (done["primary"], done["rpo_bytes"], done["rpo_ms"]) == (WEST, 0, 0.0)
    assert rows_of(west, "cluster", COUNT) == [[1000]]
    rows_of(west, "cluster", "insert into t values (1001, 'west')")
    poll_until_blocking(lambda: region_of(east)["role"] == "secondary", 60, what="the old primary follows")
    poll_until_blocking(lambda: turns_in(west), 60, what="a trace of the change of the primary")
    for fleet in (east, west):
        (turn,) = turns_in(fleet)
        names = {row["name"] for row in fleet.json("trace", "show", turn["trace_id"])["rows"]}
        assert {"turn", "turn.first_write", "control.Promote", "control.OpenInstance"} <= names, "the new primary's"
        assert {"control.AskToMakeWay", "control.Drain"} <= names, "and, because it was asked, the old one's"
    assert east.run("failover").returncode != 0  # there is no writer here to be moved

    east.check("global", "switchover", "g", "--to", EAST, timeout_s=150)
    assert east.sql(COUNT) == [[1001]]
    east.sql("insert into t values (1002, 'east')")
    until(west, "reader", COUNT, [[1002]])

    east.check("chaos", "kill", f"region:{EAST}")
    lost = east.json("global", "failover", "g", "--to", WEST, timeout_s=150)
    assert lost["primary"] == WEST
    assert lost["rto_s"] > 0
    assert {"rpo_ms", "rpo_bytes", "lost_after_lsn", "lost_known_lsn"} <= lost.keys()
    assert rows_of(west, "cluster", COUNT) == [[1002]]
    rows_of(west, "cluster", "insert into t values (1003, 'west')")
    whole = rows_of(west, "cluster", DUMP)

    east.check("up", timeout_s=200)
    poll_until_blocking(
        lambda: (found := region_of(east))["role"] == "secondary" and found["state"] == "following",
        120,
        what=f"the old primary follows\n{east.trail()}",
    )
    east.check("add-reader", "demo", timeout_s=150)
    until(east, "reader", COUNT, [[1003]])
    assert rows_of(east, "reader", DUMP) == whole
