"""A serverless cluster as its user sees it: its capacity follows, it pauses, and clients wake it and see no error."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.cli.fleet import CliFleet, fleet_at, kill, pids_titled

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
SPIN = "select count(*) from generate_series(1, 200000) a, generate_series(1, 40) b"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "serverless") as cli:
        yield cli


def paused(fleet: CliFleet) -> str:
    """The DSN of its cluster endpoint, when the cluster is paused."""
    status = fleet.until(
        lambda status: status["state"] == "paused" and not any(i["pid"] for i in status["instances"]), "it is paused"
    )
    return str(status["endpoints"]["cluster"]["dsn"])


class Comer(threading.Thread):
    """Somebody who connects and asks; for how long that took, or what went wrong."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self.took_s = 0.0
        self.problem: Exception | None = None
        self.start()

    def run(self) -> None:
        began_s = time.monotonic()
        try:
            with psycopg.connect(self._dsn, connect_timeout=60) as session:
                session.execute("select 1")
        except psycopg.Error as error:
            self.problem = error
        self.took_s = time.monotonic() - began_s

    def served(self) -> float:
        self.join(90)
        assert not self.is_alive()
        if self.problem is not None:
            raise self.problem
        return self.took_s


def test_capacity_follows_the_load_and_no_session_ends_for_it(fleet: CliFleet) -> None:
    refused = fleet.run("scale", "demo", "--min", "4", "--max", "1")
    assert refused.returncode == 2
    assert "minimum of 4 ACU is above the maximum of 1" in refused.stderr
    scaled = fleet.json("scale", "demo", "--min", "0.5", "--max", "4")["capacity"]
    assert (scaled["min"], scaled["max"], scaled["acu"], scaled["paused_since"]) == (0.5, 4, 0.5, None)
    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    with psycopg.connect(dsn, autocommit=True) as session:
        pid = session.info.backend_pid
        ends_s = time.monotonic() + 15
        while time.monotonic() < ends_s and fleet.status()["capacity"]["acu"] < 2:
            session.execute(SPIN)
        now = fleet.status()["capacity"]
        assert now["acu"] >= 2, now
        assert "ACU" in now["reason"]
        assert session.info.backend_pid == pid
    assert any(event["kind"] == "capacity" for event in fleet.json("events"))
    assert 'aurora_serverless_acu{cluster="demo"' in fleet.check("status", "--metrics")


def test_it_pauses_when_nobody_uses_it_and_whoever_comes_wakes_it(fleet: CliFleet) -> None:
    fleet.check("scale", "demo", "--min", "0", "--pause-after", "10")
    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    with psycopg.connect(dsn, connect_timeout=60, autocommit=True) as session:
        session.execute("create table if not exists kept as select 1 as one")
    dsn = paused(fleet)
    comers = [Comer(dsn) for _ in range(10)]
    took_s = [comer.served() for comer in comers]
    logging.getLogger(__name__).info("first queries after a pause: %s", [round(each, 2) for each in sorted(took_s)])
    with psycopg.connect(dsn, autocommit=True) as session:
        assert session.execute("select one from kept").fetchall() == [(1,)]
        ends_s = time.monotonic() + 14
        while time.monotonic() < ends_s:
            assert fleet.status()["state"] == "available", "a session keeps it awake"
            time.sleep(1)  # not synchronisation: it shall not be paused in this time
        session.execute("select 1")


def test_what_is_used_is_counted_and_nothing_while_it_is_paused(fleet: CliFleet) -> None:
    paused(fleet)
    before = fleet.json("usage", "demo")
    assert before["acu_seconds"] > 1, before
    assert before["io"]["redo_bytes"] > 0, before
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    kill(control)  # the meter
    fleet.until(lambda status: status["state"] == "paused", "it answers again")
    after = fleet.json("usage", "demo")
    assert after["acu_seconds"] == pytest.approx(before["acu_seconds"], abs=0.2)
    assert after["from"] == before["from"]
    assert after["storage"]["byte_hours"] > before["storage"]["byte_hours"]
    assert fleet.json("usage", "demo", "--since", "-1s")["acu_seconds"] <= after["acu_seconds"]
    assert "say --since -1h" in fleet.run("usage", "demo", "--since", "lsn:5").stderr
    assert 'aurora_usage_acu_seconds_total{cluster="demo"}' in fleet.check("status", "--metrics")


def test_who_waits_is_served_though_the_control_plane_is_killed(fleet: CliFleet) -> None:
    dsn = paused(fleet)
    comer = Comer(dsn)
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    kill(control)
    logging.getLogger(__name__).info("with the control plane killed: %.2f s", comer.served())
    fleet.check("scale", "demo", "--min", "1", "--max", "4")
    assert fleet.status()["capacity"]["acu"] >= 1
