"""A writer and as many readers as a cluster may have, on one machine: all serve and follow, at what each may cost.

Costs are memory (what is shared is divided among those who share it) and CPU time with nobody at work, of an instance's
process, its engine, and all below: neither depends on what else the machine does.
"""

import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.control.model.scaling import READERS_MAX
from benchmarks.procfs import Component, memory_bytes, parent_of, usage
from tests.cli.fleet import CliFleet, fleet_at
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(900),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
SETTLED_S = 20.0
IDLE_S = 30.0
ROWS = 1000
INSERT = "INSERT INTO seen SELECT generate_series(1, 1000)"
MEMORY_MAX_BYTES = 300 << 20
CPU_MAX = 0.05  # of a core


def test_fifteen_readers_and_a_writer_run_here_and_each_costs_little(run_dir: Path) -> None:
    with fleet_at(run_dir / "many", up=False) as fleet:
        fleet.up()
        began_s = time.monotonic()
        fleet.json("add-reader", "demo", "--count", str(READERS_MAX), "--timeout", "400", timeout_s=400)
        added_s = time.monotonic() - began_s
        refused = fleet.run("add-reader", "demo")
        assert refused.returncode == 2, "and no more"
        status = fleet.until(_all_serve, "all instances serve", 120)
        readers = [each for each in status["instances"] if each["role"] == "reader"]
        assert len(readers) == READERS_MAX
        writes = status["endpoints"]["cluster"]["dsn"]
        fleet.execute(writes, "CREATE TABLE seen (id int)")
        for number in range(3):
            fleet.execute(writes, INSERT)
            for reader in readers:
                _until_seen(fleet, reader["dsn"], (number + 1) * ROWS)
        costs = _costs(status)
        reader_mib = [mib for role, mib, _ in costs if role == "reader"]
        reader_cpu = [cpu for role, _, cpu in costs if role == "reader"]
        told = "; ".join(f"{role} {mib:.0f} MiB, {100 * cpu:.1f} % of a core" for role, mib, cpu in costs)
        sys.stdout.write(f"{READERS_MAX} readers were added in {added_s:.1f} s. Idle: {told}\n")
        assert max(reader_mib) * (1 << 20) < MEMORY_MAX_BYTES, told
        assert sum(reader_cpu) / len(reader_cpu) < CPU_MAX, told
        now = fleet.status()
        assert {each["id"]: each["pid"] for each in now["instances"]} == {
            each["id"]: each["pid"] for each in status["instances"]
        }, "none had to be opened anew"


def _all_serve(status: dict[str, Any]) -> bool:
    return all(instance["state"] == "available" for instance in status["instances"])


def _until_seen(fleet: CliFleet, dsn: str, rows: int) -> None:
    def seen() -> bool:
        try:
            return fleet.execute(dsn, "SELECT count(*) FROM seen") == [(rows,)]
        except psycopg.errors.UndefinedTable:
            return False

    poll_until_blocking(seen, 30, interval_s=0.05, what=f"{rows} rows are seen at {dsn}")


def _costs(status: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Role, MiB and share of a core of each instance while nobody does anything."""
    parts = [
        (each["role"], Component(each["id"], (parent_of(each["pid"]),), tree=True)) for each in status["instances"]
    ]
    time.sleep(scaled(SETTLED_S))  # not synchronisation: what a start leaves to be done is not idleness
    before, began_s = [usage(part) for _, part in parts], time.monotonic()
    time.sleep(IDLE_S)  # not synchronisation: this is what is measured
    took_s = time.monotonic() - began_s
    used = [usage(part).since(start).cpu_s / took_s for (_, part), start in zip(parts, before, strict=True)]
    return [(role, memory_bytes(part) / (1 << 20), cpu) for (role, part), cpu in zip(parts, used, strict=True)]
