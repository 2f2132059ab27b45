"""A fleet on a Ray cluster that was there before, of several nodes: one in each AZ."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.control.api.client import ControlClient
from aurora_ray.control.model import bootstrap
from tests.cli.fleet import CliFleet, fleet_at
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
AZS = ("us-east-1a", "us-east-1b", "us-east-1c")
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray then takes no other address of this machine


class Machines:
    """The Ray cluster."""

    def __init__(self, azs: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.machines", *azs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ,
        )
        self.address = self._line()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        while self._line() != "ok":
            pass

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the Ray cluster did not start"
        return line.strip()


@pytest.fixture
def machines() -> Iterator[Machines]:
    running = Machines(AZS[:2])
    yield running
    running.close()


@pytest.fixture
def fleet(run_dir: Path, machines: Machines) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "machines", LOOPBACK, up=False) as cli:
        yield cli


@pytest.mark.chaos
def test_a_fleet_joins_ray_loses_an_az_and_gets_it_back(fleet: CliFleet, machines: Machines) -> None:
    refused = fleet.run("up", "--address", machines.address)
    assert refused.returncode == 1
    assert "us-east-1c" in refused.stderr
    assert "--resources" in refused.stderr
    machines.tell("start us-east-1c")
    status = fleet.up("--address", machines.address)
    dsn = status["endpoints"]["cluster"]["dsn"]
    assert [node["state"] for node in status["storage_nodes"]] == ["healthy"] * 6
    fleet.execute(dsn, "create table t (i int)")
    machines.tell("kill us-east-1c")
    fleet.execute(dsn, "insert into t values (1)")
    fleet.until(
        lambda now: {n["az"] for n in now["storage_nodes"] if n["state"] != "healthy"} == {"us-east-1c"},
        "the AZ is seen to be away",
    )
    fleet.execute(dsn, "insert into t values (2)")
    machines.tell("start us-east-1c")
    fleet.until(lambda now: [n["state"] for n in now["storage_nodes"]] == ["healthy"] * 6, "the AZ is back", 120)
    assert fleet.sql("select sum(i) from t") == [[3]]
    assert fleet.json("down", timeout_s=90)["stopped"]
    assert fleet.up("--address", machines.address)["state"] == "available"
    assert fleet.sql("select sum(i) from t") == [[3]]


@pytest.mark.chaos
def test_an_instance_moves_to_a_machine_with_room_and_says_why_where_there_is_none(run_dir: Path) -> None:
    small, large = "127.0.0.2", "127.0.0.3"
    machines = Machines((f"us-east-1a@{small}/2", f"us-east-1b@{large}/8", "us-east-1c@127.0.0.4/2"))
    try:
        with fleet_at(run_dir / "rooms", LOOPBACK, up=False) as cli:
            dsn = cli.up("--address", machines.address)["endpoints"]["cluster"]["dsn"]
            cli.check("scale", "demo", "--min", "0.5", "--max", "6")
            cli.execute(dsn, "create table t as select 1 as i")
            assert cli.status()["instances"][0]["az"] == "us-east-1a"
            cli.check("scale", "demo", "--min", "2", "--timeout", "120", timeout_s=130)
            now = cli.status()
            assert (now["instances"][0]["az"], now["capacity"]["acu"]) == ("us-east-1b", 2)
            cli.execute(dsn, "insert into t values (2)")
            assert cli.sql("select sum(i) from t") == [[3]]
            moved = [e["sentence"] for e in cli.json("events") if "moves from machine" in e["sentence"]]
            assert len(moved) == 1
            assert f"moves from machine {small} to {large}" in moved[0]
            assert cli.json("trace", "list"), "an outage that was wanted is traced"
            refused = cli.run("scale", "demo", "--min", "6", "--timeout", "8")
            assert refused.returncode == 1
            reason = cli.status()["capacity"]["reason"]
            assert "no machine has room for 6 ACU, the most that another one has is 1" in reason
            assert cli.status()["capacity"]["acu"] == 4
    finally:
        machines.close()


UP = """
import sys
from pathlib import Path
from aurora_ray.config import load_settings
from aurora_ray.ray.fleet import Fleet

data_dir, address, region = sys.argv[1:]
Fleet.up(load_settings(data_dir=Path(data_dir), ray_address=address), region=region)
"""


@pytest.mark.chaos
def test_two_fleets_of_two_regions_run_on_one_ray(run_dir: Path) -> None:
    """Each with its own directory, names and control volume; the end of one is nothing to the other. (No clusters.)"""
    regions = {"first": "us-east-1", "second": "eu-west-1"}
    machines = Machines(("+".join(f"{region}{letter}" for region in regions.values() for letter in "abc"),))
    clis = {name: CliFleet(run_dir / name, LOOPBACK) for name in regions}
    try:
        for name, region in regions.items():
            command = [sys.executable, "-c", UP, str(clis[name].data_dir), machines.address, region]
            subprocess.run(command, check=True, timeout=scaled(120), env=os.environ | LOOPBACK)
        clients = {name: ControlClient.connect(cli.data_dir, 30) for name, cli in clis.items()}
        infos = {name: poll_until_blocking(partial(_open, client), 60) for name, client in clients.items()}
        assert {name: info["region"] for name, info in infos.items()} == regions
        assert len({info["fleet_id"] for info in infos.values()}) == 2
        volumes = {bootstrap.load(cli.data_dir).control_volume.volume_id for cli in clis.values()}  # type: ignore[union-attr]
        assert len(volumes) == 2
        clients["first"].close()
        clis["first"].destroy()
        assert not bootstrap.exists(clis["first"].data_dir)
        assert clients["second"].info() == infos["second"]
        clients["second"].close()
    finally:
        for cli in clis.values():
            cli.destroy()
            remove_tree(cli.data_dir)
        machines.close()


def _open(client: ControlClient) -> dict[str, Any] | None:
    info = client.info()
    return info if info["open"] else None
