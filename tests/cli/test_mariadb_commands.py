"""What a cluster can do beside serving, with MariaDB: by the same commands as with PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.engine.mariadb.connection import connect
from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.long,  # two regions, a restore
    pytest.mark.ray,
    pytest.mark.mariadb,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
CONTENT = "select count(*), sum(i), md5(group_concat(s order by i)) from shop.t where i < 200"
EAST, WEST = "us-east-1", "eu-west-1"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "mysql-all", up=False) as cli:
        cli.up("--engine", "mysql")
        ask(cli, "create database shop", "create table shop.t (i int primary key, s varchar(40))")
        ask(cli, "insert into shop.t select seq, md5(seq) from shop.seq_1_to_20000")
        yield cli


def dsn(fleet: CliFleet, name: str = "demo", endpoint: str = "cluster") -> str:
    return str(fleet.status(name)["endpoints"][endpoint]["dsn"])


def run(where: str, *statements: str) -> list[list[Any]]:
    with connect(where) as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return [list(row) for row in cursor.fetchall()]


def ask(fleet: CliFleet, *statements: str, name: str = "demo") -> list[list[Any]]:
    return run(dsn(fleet, name), *statements)


def test_it_is_backed_up_and_restored(fleet: CliFleet, run_dir: Path) -> None:
    bucket = run_dir / "mysql-bucket"
    fleet.check("backup", "demo", "--to", str(bucket))

    def done() -> bool:
        status = fleet.status()
        now = status["backup"]
        return bool(now and now["restorable_from_lsn"] and now["lsn"] >= status["vdl"])

    poll_until_blocking(done, scaled(120), what="all is backed up")
    before = ask(fleet, CONTENT)
    mark = fleet.json("mark", "demo", "good")
    ask(fleet, "delete from shop.t where i < 100")
    poll_until_blocking(lambda: fleet.status()["backup"]["lsn"] > mark["lsn"], scaled(90), what="that is there, too")
    poll_until_blocking(done, scaled(120), what="all is backed up")
    fleet.json("restore", str(bucket), "back", "--at", "mark:good", timeout_s=300)
    poll_until_blocking(lambda: fleet.status("back")["state"] == "available", scaled(120), what="it takes writes")
    assert ask(fleet, CONTENT, name="back") == before
    ask(fleet, "insert into shop.t values (0, 'new')", name="back")
    assert ask(fleet, "check table shop.t extended", name="back") == [["shop.t", "check", "status", "OK"]]
    fleet.check("delete", "back", "--yes")
    fleet.check("backup", "demo", "--off")


def test_it_pauses_and_whoever_comes_wakes_it(fleet: CliFleet) -> None:
    before, address = ask(fleet, CONTENT), dsn(fleet)
    fleet.check("scale", "demo", "--min", "0", "--max", "2", "--pause-after", "10")
    fleet.until(lambda s: s["state"] == "paused" and not any(i["pid"] for i in s["instances"]), "it is paused", 120)
    found: list[Any] = []
    comers = [threading.Thread(target=lambda: found.append(run(address, CONTENT))) for _ in range(5)]
    for each in comers:
        each.start()
    for each in comers:
        each.join(scaled(60))
    assert found == [before] * 5
    fleet.check("scale", "demo", "--off")


def test_a_second_region_follows_and_takes_the_first_ones_place(fleet: CliFleet) -> None:
    west = CliFleet(fleet.data_dir / "regions" / WEST, fleet.environment)

    def own(there: CliFleet) -> dict[str, Any]:
        asked = there.json("global", "status", "g")
        return dict(next(row for row in asked["regions"] if row["region"] == asked["asked"]))

    def rows(there: CliFleet, endpoint: str, statement: str) -> list[list[Any]]:
        return run(own(there)["endpoints"][endpoint]["dsn"], statement)

    def until(there: CliFleet, statement: str, wanted: list[Any]) -> None:
        poll_until_blocking(
            lambda: rows(there, "reader", statement) == wanted, 120, interval_s=0.5, what=f"{statement}: {wanted}"
        )

    try:
        fleet.check("global", "create", "g", "--primary", "demo")
        fleet.json("global", "add-region", "g", WEST, timeout_s=400)
        until(west, CONTENT, ask(fleet, CONTENT))
        ask(fleet, "insert into shop.t values (30001, 'here')")
        until(west, "select s from shop.t where i = 30001", [["here"]])
        assert rows(west, "reader", "select @@read_only, @@innodb_read_only") == [[1, 1]]
        done = fleet.json("global", "switchover", "g", "--to", WEST, timeout_s=200)
        assert (done["primary"], done["rpo_bytes"]) == (WEST, 0)
        rows(west, "cluster", "insert into shop.t values (30002, 'there')")
        fleet.check("global", "switchover", "g", "--to", EAST, timeout_s=200)
        assert ask(fleet, "select i from shop.t where i > 30000") == [[30001], [30002]]
    finally:
        west.destroy()
