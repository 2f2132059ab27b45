"""Readers on a running fleet: they serve, refuse writes, outlive the writer, take its place, come and go."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.engine.dirs import HAND_OVER_NAME
from tests.cli.fleet import CliFleet, fleet_at, kill, parent_of
from tests.cli.strangers import doors, walked_in
from tests.support.polling import poll_until_blocking
from tests.support.stranger import ask

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
WHO = "SELECT setting FROM pg_settings WHERE name = 'port'"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "readers", up=False) as cli:
        status = cli.up("--readers", "2")
        cli.execute(status["endpoints"]["cluster"]["dsn"], "CREATE TABLE seen (id int)")
        yield cli


def instances(status: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [instance for instance in status["instances"] if instance["role"] == role]


def session_on(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn, autocommit=True, connect_timeout=10)


def until_seen(session: psycopg.Connection[Any], number: int) -> None:
    """The session shows a row that was committed on the writer; raises if it has ended."""

    def shown() -> bool:
        return session.execute("SELECT FROM seen WHERE id = %s", (number,)).rowcount == 1

    poll_until_blocking(shown, 30, interval_s=0.01, what="the reader follows")


def test_readers_are_spread_serve_in_turn_and_refuse_writes(fleet: CliFleet) -> None:
    status = fleet.status()
    readers = instances(status, "reader")
    assert [reader["id"] for reader in readers] == ["demo-2", "demo-3"]
    assert len({instance["az"] for instance in status["instances"]}) == 3
    assert all(reader["state"] == "available" and reader["pid"] for reader in readers)
    fleet.execute(status["endpoints"]["cluster"]["dsn"], "INSERT INTO seen VALUES (1)")
    for reader in readers:
        with session_on(reader["dsn"]) as session:
            until_seen(session, 1)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                session.execute("INSERT INTO seen VALUES (2)")
    served_by = {fleet.execute(status["endpoints"]["reader"]["dsn"], WHO)[0][0] for _ in range(4)}
    assert served_by == {str(reader["port"]) for reader in readers}
    assert fleet.json("sql", "--reader", "-c", "SELECT pg_is_in_recovery()")["rows"] == [[True]]
    fleet.until(lambda s: all(r["lag_ms"] is not None for r in instances(s, "reader")), "lag is told")


def test_readers_keep_their_sessions_through_the_writers_end(fleet: CliFleet) -> None:
    status = fleet.status()
    writes = status["endpoints"]["cluster"]["dsn"]
    with ExitStack() as stack:
        sessions = [stack.enter_context(session_on(r["dsn"])) for r in instances(status, "reader")]
        at_endpoint = [stack.enter_context(session_on(status["endpoints"]["reader"]["dsn"])) for _ in range(4)]
        kill(instances(status, "writer")[0]["pid"])
        for session in sessions:
            assert session.execute("SELECT count(*) FROM seen").fetchone()
        fleet.until_writable(writes, "INSERT INTO seen VALUES (3)")
        for session in sessions:  # that of the reader that goes on as the writer, too
            until_seen(session, 3)
        kept = [session for session in at_endpoint if stays_a_reader(session)]
        now = fleet.status()
        moved = instances(now, "writer")[0]["id"] != instances(status, "writer")[0]["id"]
        assert len(kept) == (2 if moved else 4), "those on the writer of now are cut, the others live on"
        assert now["epoch"] == status["epoch"] + 1, "the writer's opening alone has raised it"


def test_a_reader_takes_the_writers_place_and_the_other_is_left_alone(fleet: CliFleet) -> None:
    status = fleet.until(lambda s: all(i["state"] == "available" for i in s["instances"]), "all serve again")
    ends, (writer,), (target, other) = status["endpoints"], instances(status, "writer"), instances(status, "reader")
    with ExitStack() as stack:
        untouched = stack.enter_context(session_on(other["dsn"]))
        reading = [stack.enter_context(session_on(ends["reader"]["dsn"])) for _ in range(4)]
        pooled = stack.enter_context(session_on(ends["cluster"]["dsn"]))
        with watching(status) as seen:
            done = fleet.json("failover", "demo", "--target", target["id"], timeout_s=120)
            fleet.until_writable(ends["cluster"]["dsn"], "INSERT INTO seen VALUES (7)")
        with pytest.raises(psycopg.OperationalError):  # cut; not 25006 for ever
            pooled.execute("INSERT INTO seen VALUES (8)")
        assert seen.two_writers == 0
        assert [a != b for a, b in itertools.pairwise(seen.served_by)].count(True) == 1, "it changes once"
        kept = [session for session in reading if stays_a_reader(session)]
        assert len(kept) == 2, "those on the target are cut, the others live on"
        assert {i["id"]: i["role"] for i in done["instances"]} == {
            writer["id"]: "reader",
            target["id"]: "writer",
            other["id"]: "reader",
        }
        fleet.execute(done["endpoints"]["cluster"]["dsn"], "INSERT INTO seen VALUES (4)")
        until_seen(untouched, 4)
    now = fleet.until(
        lambda s: all(i["state"] == "available" for i in s["instances"]), "the writer before is a reader now"
    )
    with session_on(instances(now, "reader")[0]["dsn"]) as session:
        until_seen(session, 4)


def test_readers_die_come_back_are_added_and_removed_and_no_other_session_ends(fleet: CliFleet) -> None:
    status = fleet.status()
    killed, other = instances(status, "reader")
    with session_on(other["dsn"]) as untouched, session_on(status["endpoints"]["cluster"]["dsn"]) as writing:
        kill(parent_of(killed["pid"]))
        fleet.until(
            lambda s: all(i["state"] == "available" for i in s["instances"]) and _pid(s, killed["id"]) != killed["pid"],
            "the reader is opened anew in a process of its own",
        )
        (added,) = fleet.json("add-reader", "demo", "--tier", "3", "--memory", "256MiB")["instances"]
        assert (added["id"], added["tier"], added["state"]) == ("demo-4", 3, "available")
        writing.execute("INSERT INTO seen VALUES (5)")
        with session_on(added["dsn"]) as session:
            until_seen(session, 5)
        assert fleet.json("remove-reader", "demo-4")["removed"]
        gone = fleet.run("remove-reader", "demo-4")
        assert gone.returncode == 2
        assert "there is no instance 'demo-4'" in gone.stderr
        until_seen(untouched, 5)
    assert [event["subject"] for event in fleet.json("events", "demo") if event["kind"] == "reader"].count(
        "demo-4"
    ) == 3


def stays_a_reader(session: psycopg.Connection[Any]) -> bool:
    """Whether it lives on; raises if it does so on a writer."""
    try:
        assert session.execute("SELECT pg_is_in_recovery()").fetchone() == (True,), "it is on the writer now"
    except psycopg.OperationalError:
        return False
    return True


@dataclass
class Seen:
    """What clients saw who looked all the while: how often two instances were writers at a time, and by which the
    cluster endpoint's new sessions were served."""

    two_writers: int = 0
    served_by: list[str] = field(default_factory=list)


@contextmanager
def watching(status: dict[str, Any]) -> Iterator[Seen]:
    seen, stopping = Seen(), threading.Event()
    dsns = [instance["dsn"] for instance in status["instances"]]

    def ask(dsn: str, statement: str) -> str | None:
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as session:
                return str((session.execute(statement.encode()).fetchone() or ("",))[0])
        except psycopg.Error:
            return None

    def look_for_writers() -> None:
        while not stopping.is_set():
            first = [dsn for dsn in dsns if ask(dsn, "SELECT pg_is_in_recovery()") == "False"]
            still = [dsn for dsn in first if len(first) > 1 and ask(dsn, "SELECT pg_is_in_recovery()") == "False"]
            seen.two_writers += len(still) > 1

    def look_who_serves() -> None:
        while not stopping.is_set():
            if (port := ask(status["endpoints"]["cluster"]["dsn"], WHO)) is not None:
                seen.served_by.append(port)

    threads = [threading.Thread(target=look, daemon=True) for look in (look_for_writers, look_who_serves)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)


def _pid(status: dict[str, Any], instance_id: str) -> int | None:
    found: int | None = next(i["pid"] for i in status["instances"] if i["id"] == instance_id)
    return found


def test_every_door_of_readers_endpoints_and_forks_is_closed_to_another_user(fleet: CliFleet) -> None:
    """What a fleet with readers, a custom endpoint and a look at the past listens at beside what any fleet does."""
    reader = instances(fleet.status(), "reader")[0]
    fleet.check("endpoint", "create", "demo", "reports", "--members", reader["id"])
    fleet.check("mark", "demo", "here")
    past = fleet.json("as-of", "demo", "mark:here", timeout_s=150)
    status = fleet.until(
        lambda status: all(instance["state"] == "available" for instance in status["instances"]), "all serve"
    )
    found = [
        door
        for door in doors(fleet.data_dir)
        if any(part in door.owner for part in ("Instance", "Endpoint", "postgres"))
    ]
    assert not [door for door in found if door.kind not in ("tcp", "unix") or not door.loopback]
    told, _ = ask(found)
    assert not walked_in(found, told)
    asked = {
        place.rpartition(":")[2]
        for place, answers in told.items()
        if answers.get("postgres", "").startswith("password wanted")
    }
    endpoints = [
        *(status["endpoints"][name] for name in ("cluster", "reader")),
        *status["endpoints"]["custom"],
        past["endpoints"]["cluster"],
    ]
    assert asked >= {str(each["port"]) for each in (*status["instances"], *endpoints)}
    sockets = {
        place.partition(" ")[2]: answers["connect"] for place, answers in told.items() if place.startswith("unix")
    }
    handed = [answer for path, answer in sockets.items() if f"/{HAND_OVER_NAME}/" in path]
    assert len(handed) == len(status["instances"]) + 1, "one an engine, the past's too"
    if os.geteuid() == 0:
        assert set(sockets.values()) == {"PermissionError"}, sockets
    fleet.check("delete", past["cluster"], "--yes")
    fleet.check("endpoint", "delete", "demo", "reports")
