"""A writer is lost in every way while clients write: it comes back by itself, nothing acknowledged is lost, and the
trace of each failover tells what the clients saw."""

import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.compute.signals import family
from aurora_ray.engine.postgres.install import find_install
from tests.cli.fleet import CliFleet, fleet_at, parent_of, pids_titled
from tests.support.collector import Collector, running_collector
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
SAME_OUTAGE = 0.10  # of it, and
SAME_OUTAGE_S = 0.6  # a client's own attempts, and the time between two of its writes


class Clients:
    """Three sessions that insert through the endpoint and try again for ever; what was acknowledged, and when."""

    def __init__(self, dsn: str) -> None:
        self.acknowledged: list[tuple[float, int, int]] = []
        self._dsn = dsn
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(3)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        poll_until_blocking(lambda: len(self.acknowledged) > 30, 30, what="the clients write")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        session, count = None, 0
        while not self._stopping.is_set():
            try:
                session = session or psycopg.connect(self._dsn, autocommit=True, connect_timeout=10)
                count += 1
                session.execute("insert into acknowledged values (%s, %s)", (number, count))
                self.acknowledged.append((time.time(), number, count))
            except psycopg.Error:
                if session is not None:
                    session.close()
                session = None
            self._stopping.wait(0.01)
        if session is not None:
            session.close()

    def outage_s(self, since_s: float) -> float:
        """The longest time without an acknowledgement that ended after `since_s`."""
        times = sorted(at for at, _, _ in list(self.acknowledged))
        return max((b - a for a, b in itertools.pairwise(times) if b > since_s), default=0.0)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as started:
        yield started


@pytest.fixture(scope="module")
def fleet(run_dir: Path, collector: Collector) -> Iterator[CliFleet]:
    """It sends its traces to a collector as well."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_METRICS_EXPORTER": "none"}
    with fleet_at(run_dir / "failover", environment) as cli:
        yield cli


def newest_failover(fleet: CliFleet, known: set[str]) -> dict[str, Any]:
    """The one that was not there before, once it is written."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        found[:] = [t for t in fleet.json("trace", "list") if t["trace_id"] not in known and t["whole"]]
        return bool(found)

    poll_until_blocking(written, 40, interval_s=0.5, what=f"a trace of the failover\n{fleet.trail()}")
    shown: dict[str, Any] = fleet.json("trace", "show", found[-1]["trace_id"])
    return shown


@pytest.mark.parametrize(
    ("victim", "signo", "cause"),
    [
        ("engine", signal.SIGKILL, "killed by signal 9"),
        ("engine", signal.SIGSTOP, "hung"),
        ("process", signal.SIGKILL, "process died"),
        ("process", signal.SIGSTOP, "hung"),
    ],
)
def test_a_lost_writer_comes_back_and_the_trace_tells_the_outage(
    fleet: CliFleet, victim: str, signo: signal.Signals, cause: str
) -> None:
    status = fleet.up()
    dsn = status["endpoints"]["cluster"]["dsn"]
    fleet.execute(dsn, "drop table if exists acknowledged; create table acknowledged (client int, number int)")
    known = {trace["trace_id"] for trace in fleet.json("trace", "list")}
    engine = status["instances"][0]["pid"]
    pid = engine if victim == "engine" else parent_of(engine)
    with Clients(dsn) as clients:
        struck_s = time.time()
        # A stopped main process alone would let the sessions that are there go on until it is replaced.
        for one in family(pid) if victim == "engine" and signo is signal.SIGSTOP else [pid]:
            os.kill(one, signo)
        poll_until_blocking(
            lambda: clients.outage_s(struck_s) > 0.4 and time.time() - clients.acknowledged[-1][0] < 0.2,
            40,
            what=f"writing works again\n{fleet.trail()}",
        )
        shown = newest_failover(fleet, known)
        outage_s = clients.outage_s(struck_s)
    rows = {tuple(row) for row in fleet.execute(dsn, "select client, number from acknowledged")}
    lost = {(number, count) for _, number, count in clients.acknowledged} - rows
    assert not lost
    assert cause in shown["attributes"]["aurora.why"]
    assert shown["attributes"]["aurora.first_write"] is True
    parts = [row for row in shown["rows"] if row["depth"] == 1]
    names = {row["name"] for row in parts}
    assert {"failover.detect", "failover.decide", "control.OpenInstance", "failover.first_write"} <= names
    gaps_ms = sum(row["duration_ms"] for row in parts if row["name"] is None)
    covered_s = (shown["duration_ms"] - gaps_ms) / 1000
    assert covered_s == pytest.approx(outage_s, rel=SAME_OUTAGE, abs=SAME_OUTAGE_S)


def test_a_process_in_waiting_takes_the_place_of_one_that_died(fleet: CliFleet) -> None:
    """And it is the only one that is left when the control plane has been replaced meanwhile."""
    status = fleet.up()
    dsn = status["endpoints"]["cluster"]["dsn"]
    writer = parent_of(status["instances"][0]["pid"])
    instances = "ray::InstanceActor"
    poll_until_blocking(lambda: len(pids_titled(instances, fleet.data_dir)) == 2, 60, what="a process is in waiting")
    (waiting,) = set(pids_titled(instances, fleet.data_dir)) - {writer}
    os.kill(writer, signal.SIGKILL)
    fleet.until_writable(dsn, "create table if not exists waited (what text); insert into waited values ('x')")
    after = fleet.until(lambda s: s["state"] == "available", "the cluster is available")
    assert parent_of(after["instances"][0]["pid"]) == waiting
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    poll_until_blocking(lambda: len(pids_titled(instances, fleet.data_dir)) == 2, 60, what="another one is in waiting")
    os.kill(control, signal.SIGKILL)
    poll_until_blocking(
        lambda: pids_titled(instances, fleet.data_dir) == [waiting],
        60,
        what=f"only the writer is left\n{fleet.trail()}",
    )
    assert parent_of(fleet.status()["instances"][0]["pid"]) == waiting


def test_a_lost_az_costs_no_commit_and_the_writer_moves(fleet: CliFleet) -> None:
    status = fleet.up()
    dsn = status["endpoints"]["cluster"]["dsn"]
    fleet.execute(dsn, "drop table if exists acknowledged; create table acknowledged (client int, number int)")
    az = status["instances"][0]["az"]
    with Clients(dsn) as clients:
        struck_s = time.time()
        struck = fleet.json("chaos", "kill", f"az:{az}", "--for", "10")
        assert len(struck) == 3
        poll_until_blocking(
            lambda: clients.outage_s(struck_s) > 0.4 and time.time() - clients.acknowledged[-1][0] < 0.2,
            40,
            what=f"writing works again\n{fleet.trail()}",
        )
        moved = fleet.status()
        assert moved["instances"][0]["az"] != az
        assert moved["epoch"] > status["epoch"]
    rows = {tuple(row) for row in fleet.execute(dsn, "select client, number from acknowledged")}
    assert not {(number, count) for _, number, count in clients.acknowledged} - rows
    fleet.until(lambda s: all(n["state"] == "healthy" for n in s["storage_nodes"]), "six healthy nodes again")


def test_a_failover_that_is_asked_for(fleet: CliFleet) -> None:
    before = fleet.up()
    after = fleet.json("failover")
    assert after["epoch"] > before["epoch"]
    assert after["instances"][0]["az"] != before["instances"][0]["az"]
    refused = fleet.run("failover", "--target", "demo-2")
    assert refused.returncode == 2
    assert "has no instance 'demo-2'" in refused.stderr


@pytest.fixture
def address_of_nobody() -> Iterator[str]:
    """Where connections are refused: bound, so that nobody else comes to listen there meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_dsn_of_instance_addresses_finds_the_writer_before_and_after(fleet: CliFleet, address_of_nobody: str) -> None:
    """libpq's own way, past the endpoint; an address at which nobody is (any more) comes first."""
    before = fleet.up()
    dsn = before["endpoints"]["instances"]["dsn"]
    assert f":{before['instances'][0]['port']}/" in dsn
    dsn = dsn.replace("@", f"@{address_of_nobody},", 1) + "&connect_timeout=5"
    fleet.execute(dsn, "drop table if exists direct; create table direct (id serial)")
    psql = find_install(None, None).bin_dir / "psql"
    statement = "insert into direct default values"
    os.kill(parent_of(before["instances"][0]["pid"]), signal.SIGKILL)
    fleet.until_writable(dsn, statement)
    subprocess.run([psql, dsn, "-X", "-q", "-c", statement], check=True, timeout=30)
    fleet.check("failover")
    fleet.until_writable(dsn, statement)
    subprocess.run([psql, dsn, "-X", "-q", "-c", statement], check=True, timeout=30)
    after = fleet.up()
    assert after["endpoints"]["instances"]["dsn"] == before["endpoints"]["instances"]["dsn"]
    assert after["instances"][0]["az"] != before["instances"][0]["az"]
    assert fleet.execute(dsn, "select count(*) >= 4 from direct") == [(True,)]


def test_what_is_no_target_is_refused(fleet: CliFleet) -> None:
    fleet.up()
    for target, words in (("reader:1", "no instance"), ("az:nowhere", "no AZ"), ("node:x", "no storage node")):
        refused = fleet.run("chaos", "kill", target)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_a_failover_reaches_the_collector_as_one_trace(fleet: CliFleet, collector: Collector) -> None:
    """From the control plane, the writer's process and the storage nodes."""
    known = {trace["trace_id"] for trace in fleet.json("trace", "list")}
    status = fleet.up()
    dsn = status["endpoints"]["cluster"]["dsn"]
    os.kill(status["instances"][0]["pid"], signal.SIGKILL)
    fleet.until_writable(dsn, "create table if not exists traced (what text); insert into traced values ('x')")
    trace_id = bytes.fromhex(newest_failover(fleet, known)["trace_id"])
    names: dict[str, set[str]] = {}

    def arrived() -> bool:
        names.clear()
        for service, span in collector.spans():
            if span.trace_id == trace_id:
                names.setdefault(service, set()).add(span.name)
        return "failover" in names.get("aurora-control", ()) and len(names) >= 3

    poll_until_blocking(arrived, 30, interval_s=0.2, what=f"the trace is at the collector: {names}")
    assert {"failover.detect", "control.OpenInstance"} <= names["aurora-control"]
    assert {"writer.seal", "writer.mount", "engine.recover"} <= names["aurora-compute"]
    assert {"StorageNode.Seal", "StorageNode.Truncate", "StorageNode.ReadPages"} <= names["aurora-storage"]
