"""A serverless cluster whose processes are killed in the middle of a step, or of a resume: what is in force, what is
held of the machine and what is billed agree again by themselves, and nobody who waits is forgotten.

(Every single point of them is cut off in tests/control/crash; here all is real.)
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.fleet import CliFleet, fleet_at, kill, parent_of, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
MOST = 4.0
WORK = "select count(*) from generate_series(1, 100000)"
MIGRATION = ("create table {0} (i int)", "insert into {0} values (1)", "alter table {0} add column j int default 7")
MIGRATED = "select i, j from {0}"
RAY = """
import asyncio, json, sys
from pathlib import Path
from aurora_ray.control.model import bootstrap
from aurora_ray.ray.fleet import connect_ray

data_dir = Path(sys.argv[1])
connect_ray(data_dir)  # before Ray is imported, which takes its token from the environment
from aurora_ray.ray.pool import Pools
from aurora_ray.ray.runtime import namespace_of

pools = Pools(namespace_of(str(bootstrap.load(data_dir).fleet_id)))
if "lose" in sys.argv:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for group_id, group in placement_group_table().items():
        if group["state"] != "REMOVED":  # (by its name it is found in its own namespace alone)
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))
print(json.dumps(asyncio.run(pools.held())))
"""


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "kills") as cli:
        yield cli


def held(fleet: CliFleet, *words: str) -> dict[str, float]:
    """ACUs that Ray has given to instances."""
    command = [sys.executable, "-c", RAY, str(fleet.data_dir), *words]
    done = subprocess.run(command, check=True, timeout=scaled(60), env=os.environ, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def control_plane(fleet: CliFleet) -> int:
    (pid,) = pids_titled("ray::ControlActor", fleet.data_dir)
    return pid


def engine(fleet: CliFleet) -> int:
    """Waits for one, as its cluster may be on its way up."""
    return poll_until_blocking(lambda: _engine(fleet), 60, interval_s=0.005, what="an engine")


def _engine(fleet: CliFleet) -> int:
    for process in pids_titled("ray::InstanceActor", fleet.data_dir):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process}/task").iterdir():  # whichever thread started it
                for child in (thread / "children").read_text().split():
                    if b"postgres" in (Path("/proc") / child / "cmdline").read_bytes():
                        return int(child)
    return 0


def process_of_the_instance(fleet: CliFleet) -> int:
    return parent_of(engine(fleet))


VICTIMS = pytest.mark.parametrize(
    "victim",
    [
        pytest.param(control_plane, marks=pytest.mark.chaos),
        pytest.param(engine, marks=pytest.mark.chaos),
        pytest.param(process_of_the_instance, marks=pytest.mark.long),
    ],
)


class Clients:
    """Sessions that compute all the time, and come back when theirs is cut."""

    def __init__(self, dsn: str, count: int = 4) -> None:
        self.answers = 0
        self._dsn, self._stopping = dsn, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self._dsn, autocommit=True, connect_timeout=60) as session,
            ):
                while not self._stopping.is_set():
                    session.execute(WORK)
                    self.answers += 1


class Migration(threading.Thread):
    """Each statement by a session of its own, none of which is tried again."""

    def __init__(self, dsn: str, table: str) -> None:
        super().__init__(daemon=True)
        self._dsn, self._table = dsn, table
        self.problem: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for statement in MIGRATION:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=60) as session:
                    session.execute(statement.format(self._table).encode())
        except psycopg.Error as error:
            self.problem = error

    def is_whole(self, fleet: CliFleet) -> None:
        self.join(scaled(90))
        assert not self.is_alive()
        assert self.problem is None, f"{self.problem}\n{fleet.trail()}"
        with psycopg.connect(self._dsn, autocommit=True) as session:
            assert session.execute(MIGRATED.format(self._table).encode()).fetchall() == [(1, 7)]


def in_force(status: dict[str, Any]) -> float:
    serves = status["state"] == "available" and status["capacity"] is not None
    return float(status["capacity"]["acu"]) if serves else 0.0


def billed(fleet: CliFleet) -> tuple[float, float]:
    """When, and ACU-seconds by then."""
    used = float(fleet.json("usage", "demo")["acu_seconds"])
    return time.monotonic(), used


@VICTIMS
def test_killed_in_the_middle_of_a_step_all_agree_again(fleet: CliFleet, victim: Callable[[CliFleet], int]) -> None:
    fleet.check("scale", "demo", "--off")
    fleet.check("scale", "demo", "--min", "0.5", "--max", f"{MOST:g}")
    began = billed(fleet)
    with Clients(fleet.status()["endpoints"]["cluster"]["dsn"]) as clients:
        fleet.until(lambda status: in_force(status) > 0.5, "it is on its way up")
        kill(victim(fleet))
        answers = clients.answers
        poll_until_blocking(lambda: clients.answers > answers + 10, 60, what="clients are answered")
        fleet.check("scale", "demo", "--min", f"{MOST:g}")  # so that it stays the same while it is looked at
        assert in_force(fleet.status()) == MOST
        poll_until_blocking(lambda: held(fleet) == {"demo-1": MOST}, 60, what="what is in force is held")
        first = billed(fleet)
        time.sleep(10)  # not synchronisation: this is what is billed
        second = billed(fleet)
    rate = (second[1] - first[1]) / (second[0] - first[0])
    assert rate == pytest.approx(MOST, rel=0.15)
    assert began[1] < first[1] <= began[1] + MOST * (first[0] - began[0] + 1)


@pytest.mark.long
def test_what_is_held_and_was_lost_is_held_again(fleet: CliFleet) -> None:
    fleet.check("scale", "demo", "--off")
    fleet.check("scale", "demo", "--min", "1", "--max", f"{MOST:g}")
    poll_until_blocking(lambda: held(fleet) == {"demo-1": 1}, 30, what="it is held")
    assert held(fleet, "lose") == {}
    poll_until_blocking(lambda: held(fleet) == {"demo-1": 1}, 90, what="it is held again")


@VICTIMS
def test_killed_in_the_middle_of_a_resume_nobody_who_waits_is_forgotten(
    fleet: CliFleet, victim: Callable[[CliFleet], int]
) -> None:
    fleet.check("scale", "demo", "--min", "0", "--max", f"{MOST:g}", "--pause-after", "10")
    dsn = fleet.status()["endpoints"]["cluster"]["dsn"]
    fleet.until(lambda now: now["state"] == "paused" and not any(i["pid"] for i in now["instances"]), "it is paused")
    assert held(fleet) == {}
    began = billed(fleet)
    comers = [Migration(dsn, f"{victim.__name__}_{number}") for number in range(5)]
    kill(victim(fleet))
    for comer in comers:
        comer.is_whole(fleet)
    fleet.check("scale", "demo", "--min", "0.5")  # so that it is not paused again while it is looked at
    now = fleet.until(lambda status: in_force(status) > 0, "it serves")
    poll_until_blocking(lambda: held(fleet) == {"demo-1": in_force(fleet.status())}, 60, what="it is held")
    ended = billed(fleet)
    assert began[1] < ended[1] <= began[1] + MOST * (ended[0] - began[0] + 1), now["capacity"]
