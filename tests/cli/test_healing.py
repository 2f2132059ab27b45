"""Storage nodes are lost for good while clients write: the fleet replaces them by itself, and keeps that through
restarts. All real, driven by the command."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.rpc.secret_file import FILE_NAME, load_secret
from tests.cli.copies import digests
from tests.cli.fleet import CliFleet, fleet_at, kill, pids_titled
from tests.cli.test_failover import Clients
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
AZ = "us-east-1b"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "healing", {"AURORA_REPLACE_EMPTY_AFTER_S": "1"}) as cli:
        yield cli


def names(status: dict[str, Any]) -> list[str]:
    return [node["id"] for node in status["storage_nodes"] if node["az"] == AZ]


def healthy(status: dict[str, Any]) -> bool:
    """Six healthy copies, and nothing on its way."""
    nodes = status["storage_nodes"]
    return [node["state"] for node in nodes] == ["healthy"] * 6 and not any(
        node["replaces"] or node["replaced_by"] for node in nodes
    )


def whole(status: dict[str, Any]) -> bool:
    """... of which none is behind: while somebody writes one nearly always is."""
    return healthy(status) and all(node["scl"] >= status["vdl"] for node in status["storage_nodes"])


def prepare(fleet: CliFleet) -> str:
    dsn: str = fleet.up()["endpoints"]["cluster"]["dsn"]
    fleet.execute(dsn, "drop table if exists acknowledged; create table acknowledged (client int, number int)")
    return dsn


def nothing_is_lost(fleet: CliFleet, dsn: str, clients: Clients) -> None:
    rows = {tuple(row) for row in fleet.execute(dsn, "select client, number from acknowledged")}
    assert not {(number, count) for _, number, count in clients.acknowledged} - rows


def six_copies_are_the_same(fleet: CliFleet) -> None:
    status = fleet.until(whole, "six healthy copies")
    told = digests(status, load_secret(fleet.data_dir / FILE_NAME))
    assert len(told) == 6
    assert len(set(told.values())) == 1, told


def test_a_node_killed_for_good_is_replaced_while_clients_write(fleet: CliFleet) -> None:
    dsn = prepare(fleet)
    before = fleet.until(whole, "six healthy nodes")
    assert names(before) == [f"{AZ}-1", f"{AZ}-2"]
    with Clients(dsn) as clients:
        (struck,) = fleet.json("chaos", "kill", f"node:{AZ}-1", "--for-good")
        assert struck["pid"] == before["storage_nodes"][2]["pid"]
        after = fleet.until(lambda s: healthy(s) and f"{AZ}-1" not in names(s), "six healthy copies", timeout_s=120)
        count = len(clients.acknowledged)
        poll_until_blocking(lambda: len(clients.acknowledged) > count, what="the clients write on")
    assert names(after) == [f"{AZ}-2", f"{AZ}-3"]
    new = after["storage_nodes"][-1]
    assert new["copy"]["bytes_copied"] == new["copy"]["bytes_total"] > 1 << 20
    assert after["epoch"] == before["epoch"], "the writer went on"
    nothing_is_lost(fleet, dsn, clients)
    six_copies_are_the_same(fleet)
    assert not (fleet.data_dir / "nodes" / f"{AZ}-1").exists()
    assert fleet.run("chaos", "kill", f"node:{AZ}-1").returncode == 2


@pytest.mark.chaos
def test_the_control_plane_is_killed_in_the_middle(fleet: CliFleet) -> None:
    dsn = prepare(fleet)
    fleet.until(whole, "six healthy nodes")
    with Clients(dsn) as clients:
        (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
        log = fleet.data_dir / "logs" / "control.log"
        fleet.json("chaos", "kill", f"node:{AZ}-2", "--for-good")
        # It lasts for a moment only with so little data: the log is the quickest to tell.
        poll_until_blocking(
            lambda: f"takes the place of storage node {AZ}-2" in log.read_text(), 60, what="it is being replaced"
        )
        kill(control)
        fleet.until(lambda s: healthy(s) and f"{AZ}-2" not in names(s), "six healthy copies", timeout_s=120)
    nothing_is_lost(fleet, dsn, clients)
    six_copies_are_the_same(fleet)


@pytest.mark.chaos
def test_a_partition_outlives_the_control_plane_and_heals(fleet: CliFleet) -> None:
    dsn = prepare(fleet)
    node = names(fleet.until(whole, "six healthy nodes"))[0]

    def state(status: dict[str, Any]) -> str:
        return next(str(each["state"]) for each in status["storage_nodes"] if each["id"] == node)

    fleet.check("chaos", "partition", f"node:{node}")
    (control,) = pids_titled("ray::ControlActor", fleet.data_dir)
    kill(control)
    fleet.until(lambda s: state(s) == "silent", "the next control plane knows of it")
    assert pids_titled("ray::ControlActor", fleet.data_dir) != [control]
    fleet.execute(dsn, "insert into acknowledged select 1, i from generate_series(1, 1000) i")
    fleet.check("chaos", "heal", f"node:{node}")
    six_copies_are_the_same(fleet)
    assert names(fleet.status())[0] == node


@pytest.mark.chaos
def test_down_and_up_use_the_new_nodes(fleet: CliFleet) -> None:
    dsn = prepare(fleet)
    fleet.execute(dsn, "insert into acknowledged values (0, 7)")
    old = names(fleet.until(whole, "six healthy nodes"))
    fleet.json("chaos", "kill", f"node:{old[0]}", "--for-good")
    fleet.until(lambda s: healthy(s) and old[0] not in names(s), "six healthy copies", timeout_s=120)
    before = names(fleet.until(whole, "six whole copies"))
    fleet.check("down", timeout_s=90)
    after = fleet.up()
    assert names(after) == before != old
    assert fleet.execute(dsn, "select number from acknowledged") == [(7,)]
    six_copies_are_the_same(fleet)


def test_for_good_is_for_storage_nodes(fleet: CliFleet) -> None:
    fleet.up()
    for arguments in (("writer", "--for-good"), (f"node:{AZ}-3", "--for-good", "--for", "3")):
        refused = fleet.run("chaos", "kill", *arguments)
        assert refused.returncode == 2
        assert "good" in refused.stderr
