"""What is deleted is kept, restored whole, and given up when its time is over and not before."""

from dataclasses import replace

import pytest

from aurora_ray.control.decide import graveyard
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.state import Fleet
from aurora_ray.errors import UsageError
from tests.control.fleets import running_fleet, with_cluster
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import started
from tests.support.polling import poll_until

# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")


def free_ports(_: Fleet, count: int) -> list[int]:
    return list(range(20000, 20000 + count))


def test_a_deleted_cluster_comes_back_as_it_was() -> None:
    fleet = running_fleet()
    deleted = unpack(pack(graveyard.with_deleted(fleet, "demo", 60.0)))
    assert not deleted.clusters
    assert not deleted.dropped_volumes
    assert graveyard.with_restored(deleted, "demo", "", free_ports) == fleet


def test_its_name_and_ports_may_be_taken_by_then() -> None:
    fleet = running_fleet()
    old = fleet.cluster("demo")
    again = with_cluster(graveyard.with_deleted(fleet, "demo", 60.0), "demo")
    with pytest.raises(UsageError, match="--as"):
        graveyard.with_restored(again, "demo", "", free_ports)
    restored = graveyard.with_restored(again, str(old.volume.volume_id), "older", free_ports).cluster("older")
    assert restored.volume == old.volume
    assert (restored.port, restored.reader_port, restored.writer().port) == (20000, 20001, 20002)
    assert restored.writer().instance_id == "older-1"
    with pytest.raises(UsageError, match=r"no deleted cluster 'nothing'.*demo"):
        graveyard.find(again, "nothing")


def test_of_one_name_the_newest_is_meant() -> None:
    fleet = graveyard.with_deleted(running_fleet(), "demo", 60.0)
    fleet = graveyard.with_deleted(with_cluster(fleet), "demo", 60.0)
    first, second = fleet.deleted
    assert graveyard.find(fleet, "demo") == second
    assert graveyard.find(fleet, str(first.cluster.volume.volume_id)) == first


def test_a_member_that_was_replaced_meanwhile_is_declared_again() -> None:
    fleet = graveyard.with_deleted(running_fleet(), "demo", 60.0)
    fleet = replace(fleet, nodes=tuple(node for node in fleet.nodes if node.node_id != "b-1"))
    restored = graveyard.with_restored(fleet, "demo", "", free_ports)
    assert restored.node("b-1").az == "b"


def test_it_is_given_up_when_its_time_is_over_and_its_number_has_a_bound() -> None:
    fleet = graveyard.with_deleted(running_fleet(), "demo", 60.0)
    (record,) = fleet.deleted
    assert not list(graveyard.wanted(fleet, record.until_s - 1))
    (action,) = graveyard.wanted(fleet, record.until_s)
    gone = fleet.without_deleted(str(record.cluster.volume.volume_id))
    assert not gone.deleted
    assert [volume.given_up for volume in gone.dropped_volumes] == [True]
    assert "no longer kept" in action.why
    with pytest.raises(UsageError, match="purge"):
        graveyard.require_room(replace(fleet, deleted=(record,) * graveyard.DELETED_MAX))


@pytest.mark.allowed_logs(r"no segment of group 0", r"ExecuteBatchError raised in core", r"no volume")
async def test_deleted_and_restored_on_real_nodes(runtime: LocalRuntime) -> None:
    runtime.opens_volumes = True
    async with started(runtime) as running:
        api, data_dir = running.api, runtime.directory
        await api.create("demo", timeout_s=20)
        await api.wait_available("demo", 20)
        cluster = running.plane.fleet.cluster("demo")
        passfile = (data_dir / "passfiles" / "demo.pgpass").read_text()
        segments = [data_dir / "nodes" / n / "volumes" / str(cluster.volume.volume_id) for n in runtime.nodes]
        await api.delete("demo", 20)
        assert not (data_dir / "passfiles" / "demo.pgpass").exists()
        (entry,) = await api.graveyard()
        assert entry["cluster"] == "demo"
        assert entry["until_s"] - entry["deleted_at_s"] == pytest.approx(24 * 3600)
        assert await api.restore("demo", "", 20) == "demo"
        await api.wait_available("demo", 20)
        restored = running.plane.fleet.cluster("demo")
        assert restored.volume.volume_id == cluster.volume.volume_id
        assert replace(restored, volume=cluster.volume) == cluster
        assert (data_dir / "passfiles" / "demo.pgpass").read_text() == passfile
        assert not await api.graveyard()
        await api.delete("demo", 20)
        assert all(path.exists() for path in segments)
        await api.purge("demo", 20)
        assert not await api.graveyard()
        assert not any(path.exists() for path in segments)
        assert not [grave for n in runtime.nodes for grave in (data_dir / "nodes" / n).glob("graveyard/*")]


async def test_what_is_kept_too_long_goes_by_itself(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        plane = running.plane
        plane.config = replace(plane.config, graveyard_s=0.0)
        plane.means = replace(plane.means, config=plane.config)
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        await running.api.delete("demo", 20)
        await poll_until(
            lambda: not running.plane.fleet.deleted and not running.plane.fleet.dropped_volumes, what="given up"
        )
