"""Fifty serverless clusters on one fleet, all of them paused: what each costs, and ten that are woken at once.

Costs are of the whole fleet, before and after: processes of paused instances that are kept, what storage nodes, the
control plane and endpoints have of each, shared memory divided among those who share it.
"""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from aurora_ray.control.api.client import ControlClient
from aurora_ray.control.decide.serverless import KEEP_PROCESSES_OF
from aurora_ray.errors import QuorumLostError
from benchmarks.fleet import FleetProcesses
from tests.cli.fleet import CliFleet, fleet_at, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(3000),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
TENANTS = 50
AT_ONCE = 10
PAUSE_AFTER_S = 10.0
KEPT = KEEP_PROCESSES_OF + 1  # and one that waits for whoever needs one
MADE_AT_ONCE = 3
MADE_S = 120.0
SETTLED_S = 20.0
IDLE_S = 30.0
ANSWERED_S = 120.0  # for so long they are held: most come to clusters without a process
PROCESS_MB = 150.0
MB_MAX = 20.0  # each, besides the processes that are kept
CPU_MAX = 0.02  # of a core, each


def test_fifty_paused_tenants_cost_little_and_ten_are_woken_at_once(run_dir: Path) -> None:
    with fleet_at(run_dir / "tenants") as fleet:
        whole = FleetProcesses(fleet.data_dir)
        _make(fleet, "demo")
        _until_paused(fleet, ["demo"])
        before_bytes, before_cpu = whole.memory_bytes(), _cpus(whole)
        names = [f"tenant{number}" for number in range(TENANTS)]
        with ThreadPoolExecutor(MADE_AT_ONCE) as makers:
            list(makers.map(lambda name: _make(fleet, name, "demo"), names))
        _until_paused(fleet, names)
        poll_until_blocking(
            lambda: len(pids_titled("ray::InstanceActor", fleet.data_dir)) <= KEPT,
            120, interval_s=1.0, what="no more processes are kept than shall be",
        )  # fmt: skip
        time.sleep(scaled(SETTLED_S))  # not synchronisation: what the last pause leaves to be done is not idleness
        grown_mb = (whole.memory_bytes() - before_bytes) / 1e6
        cpu_each = (_cpus(whole) - before_cpu) / TENANTS
        sys.stdout.write(f"{TENANTS} paused: {grown_mb / TENANTS:.1f} MB and {100 * cpu_each:.2f} % of a core each\n")
        took_s = sorted(_answers(fleet, names[:AT_ONCE]))
        p50_s, max_s = statistics.median(took_s), took_s[-1]
        sys.stdout.write(f"{AT_ONCE} woken at once answered after {p50_s:.1f} s (p50), {max_s:.1f} s (max)\n")
        assert max_s < scaled(ANSWERED_S)
        assert grown_mb < KEPT * PROCESS_MB + TENANTS * MB_MAX
        assert cpu_each < CPU_MAX


def _make(fleet: CliFleet, name: str, source: str = "") -> None:
    """By the control plane's own client: a hundred commands would take longer than what they ask for."""
    client = ControlClient.connect(fleet.data_dir, scaled(30))
    try:
        if source:
            poll_until_blocking(lambda: _cloned(client, source, name), MADE_S, interval_s=1.0, what=f"{name} is made")
        client.scale(name, min_acu=0, max_acu=1, pause_after_s=PAUSE_AFTER_S, timeout_s=scaled(MADE_S))
    finally:
        client.close()


def _cloned(client: ControlClient, source: str, name: str) -> bool:
    """Whether it was; nodes that are too busy to answer in time are asked again, as the error says."""
    try:
        client.clone(source, name, timeout_s=scaled(MADE_S))
    except QuorumLostError:
        return False
    return True


def _until_paused(fleet: CliFleet, names: list[str]) -> None:
    client = ControlClient.connect(fleet.data_dir, scaled(30))
    try:
        for name in names:

            def paused(name: str = name) -> bool:
                status = client.status(name)
                return status["state"] == "paused" and not any(each["pid"] for each in status["instances"])

            poll_until_blocking(paused, 120, interval_s=0.2, what=f"{name} is paused\n{fleet.trail()}")
    finally:
        client.close()


def _cpus(whole: FleetProcesses) -> float:
    before_s, began_s = whole.cpu_s(), time.monotonic()
    time.sleep(IDLE_S)  # not synchronisation: this is what is measured
    return (whole.cpu_s() - before_s) / (time.monotonic() - began_s)


def _answers(fleet: CliFleet, names: list[str]) -> list[float]:
    """For how long each of those who come at once waits for the first answer."""
    client = ControlClient.connect(fleet.data_dir, scaled(30))
    try:
        dsns = [client.status(name)["endpoints"]["cluster"]["dsn"] for name in names]
    finally:
        client.close()

    def ask(dsn: str) -> float:
        began_s = time.monotonic()
        with psycopg.connect(dsn, connect_timeout=int(scaled(ANSWERED_S))) as session:
            assert session.execute("select 1").fetchone() == (1,)
        return time.monotonic() - began_s

    with ThreadPoolExecutor(len(dsns)) as comers:
        return list(comers.map(ask, dsns))
