"""A small fleet: the storage nodes of an AZ in one process, and what becomes of it when it, or one of them, is lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_ray.rpc.secret_file import FILE_NAME, load_secret
from tests.cli.copies import digests
from tests.cli.fleet import CliFleet, fleet_at
from tests.cli.writing import CREATE, Writing
from tests.support.polling import poll_until_blocking

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
AZ = "us-east-1b"


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "small", {"AURORA_CHAOS": "1"}, up=False) as found:
        status = found.up("--small")
        assert any("a small fleet" in note for note in status["notes"])
        found.execute(status["endpoints"]["cluster"]["dsn"], CREATE)
        yield found


def of(status: dict[str, Any], az: str = AZ) -> list[dict[str, Any]]:
    return [node for node in status["storage_nodes"] if node["az"] == az]


def healthy(status: dict[str, Any]) -> bool:
    return [node["state"] for node in status["storage_nodes"]] == ["healthy"] * 6


def test_the_end_of_a_process_is_that_of_an_az_and_writes_go_on(fleet: CliFleet) -> None:
    before = fleet.until(healthy, "six healthy nodes")
    pids = {(node["az"], node["pid"]) for node in before["storage_nodes"]}
    assert len(pids) == len({pid for _, pid in pids}) == 3
    assert len({node["address"] for node in before["storage_nodes"]}) == 6
    assert all(node["memory_bytes"] == 512 << 20 for node in before["instances"])
    dsn = before["endpoints"]["cluster"]["dsn"]
    with Writing(dsn, 1) as writing:
        poll_until_blocking(lambda: len(writing.acks) > 20, 30, what="it writes")
        struck = fleet.json("chaos", "kill", f"node:{AZ}-1", "--for", "4")
        assert [one["target"] for one in struck] == [f"node:{AZ}-1", f"node:{AZ}-2"]
        away = fleet.until(lambda s: [n["pid"] for n in of(s)] == [None, None], "both are away")
        assert sum(node["pid"] is not None for node in away["storage_nodes"]) == 4
        count = len(writing.acks)
        poll_until_blocking(lambda: len(writing.acks) > count + 20, 30, what="writes go on with four copies")
        after = fleet.until(healthy, "both come back")
    assert len({node["pid"] for node in of(after)}) == 1
    assert of(after)[0]["pid"] != of(before)[0]["pid"]
    ((rows,),) = fleet.execute(dsn, "select count(*) from written where client = 1")
    assert rows >= len(writing.acks)


def test_a_node_is_replaced_within_its_process(fleet: CliFleet) -> None:
    before = fleet.until(healthy, "six healthy nodes")
    with Writing(before["endpoints"]["cluster"]["dsn"], 2) as writing:
        struck = fleet.json("chaos", "kill", f"node:{AZ}-1", "--for-good")
        assert len(struck) == 2
        replaced = fleet.until(
            lambda s: healthy(s) and [n["id"] for n in of(s)] == [f"{AZ}-2", f"{AZ}-3"], "it is replaced", timeout_s=120
        )
        count = len(writing.acks)
        poll_until_blocking(lambda: len(writing.acks) > count, 30, what="writes go on")
    assert len({node["pid"] for node in of(replaced)}) == 1, "the new node is in the process of its AZ"
    assert not (fleet.data_dir / "nodes" / f"{AZ}-1").exists()
    whole = fleet.until(
        lambda s: healthy(s) and all(n["scl"] >= s["vdl"] for n in s["storage_nodes"]), "six whole copies"
    )
    told = digests(whole, load_secret(fleet.data_dir / FILE_NAME))
    assert len(told) == 6
    assert len(set(told.values())) == 1, told


def test_it_is_small_only_as_long_as_somebody_says_so(fleet: CliFleet) -> None:
    fleet.check("down", timeout_s=120)
    fleet.up()
    status = fleet.until(healthy, "six healthy nodes")
    assert len({node["pid"] for node in status["storage_nodes"]}) == 6
    assert not any("a small fleet" in note for note in status["notes"])
    refused = fleet.run("up", "--small")
    assert refused.returncode == 2
    assert "is no small one" in refused.stderr
