"""A serverless cluster's day, as its user sees it: it is paused, psql wakes it, pgbench drives it up, it comes down by
half ACUs with a session open all the while, and each step is a trace."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.engine.registry import DEFAULT_ENGINE, adapter
from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
PAUSE_AFTER_S = 30.0
WOKEN_WITHIN_S = 6.0  # on a machine that others use: the goal is 2 s, and the benchmark measures it
LOAD_S = 20
WORK = "select count(*) from generate_series(1, 50000);"  # it uses CPU also where others use the machine
DOWN_WITHIN_S = 150.0
LEAST_ACU = 1.0


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "day", up=False) as cli:
        yield cli


class Watcher(threading.Thread):
    """What `status --watch` shows: states and capacities, each when it is another one."""

    def __init__(self, fleet: CliFleet) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[str, float]] = []
        self._fleet, self._stopping = fleet, threading.Event()
        self.start()

    def run(self) -> None:
        with self._fleet.watching("web") as next_status:
            while not self._stopping.is_set():
                status = next_status()
                if status and status["capacity"] is not None:
                    now = (str(status["state"]), float(status["capacity"]["acu"]))
                    if not self.seen or self.seen[-1] != now:
                        self.seen.append(now)

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    @property
    def acus(self) -> list[float]:
        return [acu for state, acu in self.seen if state == "available"]


def pgbench(dsn: str, *words: str) -> None:
    program = adapter(DEFAULT_ENGINE).find(None, None).bin_dir / "pgbench"
    done = subprocess.run([program, *words, dsn], capture_output=True, text=True, check=False, timeout=scaled(120))
    assert done.returncode == 0, done.stderr


def traced(fleet: CliFleet, name: str) -> dict[str, Any]:
    """The newest whole trace of that name, drawn."""

    def newest() -> str:
        whole = [t for t in fleet.json("trace", "list", "--capacity", "-n", "200") if t["whole"] and t["name"] == name]
        return str(whole[-1]["trace_id"]) if whole else ""

    shown: dict[str, Any] = fleet.json("trace", "show", poll_until_blocking(newest, 20, interval_s=0.5, what=name))
    return shown


def comes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it does."""
    ends_s = time.monotonic() + scaled(timeout_s)
    while not (holds := condition()) and time.monotonic() < ends_s:
        time.sleep(0.2)  # not synchronisation: it is looked at again
    return holds


def stages(shown: dict[str, Any]) -> list[str]:
    return [row["name"] for row in shown["rows"] if row["name"] is not None]


def test_a_day(fleet: CliFleet, tmp_path: Path) -> None:
    work = tmp_path / "work.sql"
    work.write_text(WORK)
    dsn = fleet.up("--name", "web")["endpoints"]["cluster"]["dsn"]
    fleet.check("scale", "web", "--min", "0", "--max", "4", "--pause-after", f"{PAUSE_AFTER_S:g}")
    pgbench(dsn, "-i", "-q", "-s", "2")
    watcher = Watcher(fleet)
    poll_until_blocking(lambda: watcher.seen and watcher.seen[-1][0] == "paused", 120, what="it is paused")
    began_s = time.monotonic()
    with psycopg.connect(dsn, autocommit=True, connect_timeout=60) as session:
        assert session.execute("select count(*) from pgbench_branches").fetchall() == [(2,)]
        woken_s = time.monotonic() - began_s
        process = session.info.backend_pid
        pgbench(dsn, "-n", "-f", str(work), "-c", "8", "-T", str(LOAD_S))
        top = max(watcher.acus)
        # A vacuum in between is a reason to keep a step more.
        came_down = comes_true(lambda: watcher.acus[-1] <= LEAST_ACU, DOWN_WITHIN_S)
        assert came_down, f"{watcher.seen}\n{fleet.check('events')}"
        session.execute("select 1")
        assert session.info.backend_pid == process, "no session ended for it"
    poll_until_blocking(lambda: watcher.seen[-1][0] == "paused", 120, interval_s=0.2, what="it is paused again")
    watcher.stop()
    logging.getLogger(__name__).info("woken after %.2f s; capacities: %s", woken_s, watcher.acus)
    assert woken_s < scaled(WOKEN_WITHIN_S)
    assert top >= 2, watcher.seen
    assert all(acu % 0.5 == 0 for acu in watcher.acus)
    coming_down = watcher.acus[len(watcher.acus) - watcher.acus[::-1].index(top) - 1 :]
    assert all(before - after <= 1 for before, after in pairwise(coming_down)), (
        "by half ACUs, of which a look may miss one"
    )
    step = stages(traced(fleet, "capacity.step"))
    assert step[:3] == ["capacity.step", "capacity.decide", "control.ScaleInstance"]
    assert {"capacity.give", "instance.scale"} <= set(step)
    resume = stages(traced(fleet, "capacity.resume"))
    assert resume[:3] == ["capacity.resume", "capacity.decide", "control.ResumeCluster"]
    assert {"control.OpenInstance", "writer.open", "capacity.lead"} <= set(resume)
    placed = [
        t["trace_id"] for t in fleet.json("trace", "list", "--capacity", "-n", "200") if t["name"] == "capacity.step"
    ]
    assert any("capacity.place" in stages(fleet.json("trace", "show", each)) for each in placed)
    assert fleet.json("usage", "web")["acu_seconds"] > top
