"""A global cluster of six regions at once on this machine: thirty-six storage nodes, of small fleets."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import FleetProcesses
from tests.cli.regions import Regions, regions_at

_log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(1100),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
EAST, DUBLIN, OREGON = "us-east-1", "eu-west-1", "us-west-2"
ALL = (EAST, DUBLIN, OREGON, "eu-central-1", "ap-northeast-1", "sa-east-1")
COUNT = "select count(*) from t"
MEMORY_MAX_BYTES = 14 << 30
LOOK_S = 10.0


@pytest.fixture(scope="module")
def regions(run_dir: Path) -> Iterator[Regions]:
    with regions_at(run_dir / "six", *ALL, environment={"AURORA_SMALL": "1", "AURORA_METRICS_PORT": "0"}) as made:
        yield made


def write(regions: Regions, region: str, count: int) -> None:
    """So many rows more."""
    last = "(select coalesce(max(i), 0) from t)"
    rows = f"select i + {last}, md5(i::text) from generate_series(1, {count}) i"  # noqa: S608 - a number
    regions.execute(region, "cluster", f"insert into t {rows}")


def test_what_is_written_in_one_is_read_in_all_and_each_can_be_the_primary(regions: Regions) -> None:
    processes = {region: FleetProcesses(fleet.data_dir) for region, fleet in regions.fleets.items()}
    for region, fleet in regions.fleets.items():
        nodes = fleet.status()["storage_nodes"]
        assert [node["state"] for node in nodes] == ["healthy"] * 6, region
        assert len({node["address"] for node in nodes}) == 6
        assert len({node["pid"] for node in nodes}) == len({(node["az"], node["pid"]) for node in nodes}) == 3
    regions.execute(EAST, "cluster", "create table t (i int primary key, v text)")
    write(regions, EAST, 1000)
    for region in ALL:
        regions.until_read(region, COUNT, [[1000]])

    before, began_s = {region: each.cpu_s() for region, each in processes.items()}, time.monotonic()
    memory = {region: each.memory_bytes() for region, each in processes.items()}
    time.sleep(LOOK_S - (time.monotonic() - began_s))  # not synchronisation: what they use at rest is what is asked
    took_s = time.monotonic() - began_s
    cpus = {region: (each.cpu_s() - before[region]) / took_s for region, each in processes.items()}
    for region in ALL:
        _log.info("%s: %d MiB, %.2f CPUs at rest", region, memory[region] >> 20, cpus[region])
    _log.info("six regions: %.1f GiB, %.2f CPUs at rest", sum(memory.values()) / 2**30, sum(cpus.values()))
    assert sum(memory.values()) < MEMORY_MAX_BYTES

    told = regions.turn("switchover", DUBLIN)
    _log.info("switchover: %s", told)
    assert told["rpo_bytes"] == 0
    write(regions, DUBLIN, 10)
    regions.until_settled(DUBLIN)
    for region in ALL[1:]:
        regions.until_read(region, COUNT, [[1010]])

    regions.fleets[EAST].check("chaos", "kill", f"region:{DUBLIN}")
    told = regions.turn("failover", OREGON)
    _log.info("failover: %s", told)
    write(regions, OREGON, 10)
    for region in ALL[2:]:
        regions.until_read(region, COUNT, [[1020]])
    regions.fleets[DUBLIN].check("up", timeout_s=200)
    regions.until_settled(OREGON)
    memory = {region: each.memory_bytes() for region, each in processes.items()}
    _log.info("six regions after all of it: %.1f GiB", sum(memory.values()) / 2**30)
