"""The past, on a whole fleet: a table is dropped, looked at, cloned, brought back, and the rewind undone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.fleet import CliFleet, fleet_at, kill, parent_of, pids_titled
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
NUMBERS = "select count(*), sum(number) from numbers"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "fork") as found:
        yield found


def rows(fleet: CliFleet, name: str, statement: str) -> Any:
    return fleet.json("sql", name, "-c", statement)["rows"]


def test_a_mistake_is_seen_cloned_taken_back_and_the_rewind_undone(fleet: CliFleet) -> None:
    fleet.sql("create table numbers as select generate_series(1, 1000) as number")
    before = rows(fleet, "demo", NUMBERS)
    fleet.check("mark", "demo", "good")
    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    with psycopg.connect(dsn, autocommit=True) as session:
        fleet.sql("drop table numbers")

        seen = fleet.json("as-of", "demo", "mark:good", "--sql", NUMBERS)
        assert seen["rows"] == before

        clone = fleet.json("clone", "demo", "copy", "--at", "mark:good")
        assert rows(fleet, "copy", NUMBERS) == before
        rows(fleet, "copy", "delete from numbers")
        assert clone["endpoints"]["cluster"]["dsn"] != dsn

        done = fleet.json("backtrack", "demo", "--to", "mark:good")
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    assert rows(fleet, "demo", NUMBERS) == before
    assert fleet.status()["endpoints"]["cluster"]["dsn"] == dsn

    fleet.check("backtrack", "demo", "--to", done["undo"])
    assert fleet.sql("select to_regclass('numbers')") == [[None]]
    assert rows(fleet, "copy", "select count(*) from numbers") == [[0]]

    known = fleet.status()["backtrack"]
    assert (known["rewound"], known["marks"][0]["label"]) == (2, "good")
    assert known["earliest"] < known["latest"]


def test_a_clone_takes_the_process_in_waiting_and_the_next_control_plane_finds_it(fleet: CliFleet) -> None:
    log = fleet.data_dir / "logs" / "control.log"

    def processes() -> list[int]:
        return pids_titled("ray::InstanceActor", fleet.data_dir)

    def clone(name: str) -> int:
        """Its instance's process, if that was there before; else waits for the next in waiting."""
        before, said = processes(), len(log.read_text())
        fleet.json("clone", "demo", name)
        pid = parent_of(fleet.status(name)["instances"][0]["pid"])
        if pid not in before:
            made = "a process is in waiting for whoever"
            poll_until_blocking(lambda: made in log.read_text()[said:], timeout_s=60, what=made)
            return 0
        return pid

    # On a busy machine it may not answer in time, and another one is started.
    name, pid = next((name, pid) for name in ("q1", "q2", "q3", "q4") if (pid := clone(name)))
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    kill(control)
    fleet.until(lambda status: status["state"] == "available", "a control plane answers")
    assert rows(fleet, name, "select 1") == [[1]]
    assert parent_of(fleet.status(name)["instances"][0]["pid"]) == pid
    fleet.check("delete", name, "--yes")
    poll_until_blocking(lambda: pid not in processes(), 30, what="its process goes with its cluster")


def test_what_cannot_be_had_is_refused_with_the_range(fleet: CliFleet) -> None:
    for moment in ("2020-01-01T00:00:00Z", "lsn:999999999999", "mark:nothing", "yesterday", "2999-01-01T00:00:00Z"):
        refused = fleet.run("clone", "demo", "never", "--at", moment)
        assert refused.returncode in (1, 2), moment
        assert any(word in refused.stderr for word in ("can be had", "no mark", "no moment", "in the future"))
    assert "never" not in [each["cluster"] for each in fleet.json("list")]


def test_a_look_at_the_past_is_read_only_and_a_deleted_parent_takes_nothing_along(fleet: CliFleet) -> None:
    fleet.sql("create table here as select 1 as number")
    fleet.json("clone", "demo", "child")
    look = fleet.json("as-of", "child", "-1ms")
    name = look["cluster"]
    with pytest.raises(AssertionError, match="read-only"):
        rows(fleet, name, "create table more (number int)")
    rows(fleet, "child", "insert into here values (2)")
    fleet.check("delete", "child", "--yes")
    assert rows(fleet, name, "select number from here") == [[1]]
    fleet.json("clone", "child", "again", "--at", "-1ms")  # after its last commit, which is what there is then
    assert rows(fleet, "again", "select max(number) from here") == [[2]]
    fleet.check("delete", "again", "--yes")
    fleet.check("delete", name, "--yes")
    poll_until_blocking(
        lambda: name not in json.dumps(fleet.json("graveyard", "list")), 30, what="nothing is kept of a temporary one"
    )


@pytest.mark.long
def test_what_came_went_and_changed_between_two_moments(fleet: CliFleet) -> None:
    fleet.sql(
        "create table ledger (id int primary key, note text); insert into ledger select n, 'old' from"
        " generate_series(1, 2500) n; create table loose (note text); insert into loose values ('twice'), ('twice')"
    )
    fleet.check("mark", "demo", "then")
    fleet.sql("delete from ledger where id <= 2; update ledger set note = E'new \\u00e9' where id = 3")
    fleet.sql("insert into ledger values (9999, null); delete from loose; insert into loose values ('twice')")
    fleet.check("mark", "demo", "later")
    fleet.sql("drop table ledger")
    fleet.check("mark", "demo", "gone")

    found = fleet.json("as-of", "demo", "--diff", "mark:then", "mark:later", "ledger")
    assert (found["came"], found["went"], found["changed"]) == (1, 2, 1)
    rows = {row["kind"]: row for row in found["rows"]}
    assert rows["came"]["after"] == {"id": 9999, "note": None}
    assert (rows["changed"]["before"]["note"], rows["changed"]["after"]["note"]) == ("old", "new \u00e9")
    text = fleet.check("as-of", "demo", "--diff", "mark:then", "mark:later", "loose")
    assert text.splitlines() == ['- {"note":"twice"}', "0 came, 1 went, 0 changed"]
    dropped = fleet.json("as-of", "demo", "--diff", "mark:later", "mark:gone", "ledger")
    assert (dropped["came"], dropped["went"], dropped["changed"]) == (0, 2499, 0)

    refused = fleet.run("as-of", "demo", "--diff", "mark:later", "mark:gone", "nothing")
    assert "no table nothing" in refused.stderr
    assert "--database" in refused.stderr
    poll_until_blocking(
        lambda: not [each for each in fleet.json("list") if "-as-of-" in each["cluster"]], 60, what="the looks are gone"
    )
