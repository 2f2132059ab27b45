"""Repairs: of the control state, from its versions or from what storage nodes hold; of the fleet's file."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.config import load_settings
from aurora_ray.control.api import repair_file, repair_state
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.state import Fleet
from aurora_ray.errors import ConfigurationError, UsageError
from aurora_ray.log.record import create, extent, page_full, size
from aurora_ray.ray import fleet as outside
from tests.control.fleets import created, running_fleet, with_cluster
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import AZS, started

# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"no segment of group", r"no volume")


def test_going_back_forgets_nothing_and_keeps_who_holds_what() -> None:
    old = running_fleet()
    now = created(with_cluster(old.with_replacement("a-1"), "later"))
    now = now.with_volume(replace(now.cluster("demo").volume, initialised=False))
    back = repair_state.taken_back(now, old, 60.0)
    assert [cluster.name for cluster in back.clusters] == ["demo"]
    assert back.cluster("demo").volume == now.cluster("demo").volume
    assert [record.cluster.name for record in back.deleted] == ["later"]
    assert back.nodes == now.nodes
    assert back.last_node_number == now.last_node_number
    again = repair_state.taken_back(back, now, 60.0)
    assert sorted(cluster.name for cluster in again.clusters) == ["demo", "later"]
    assert not again.deleted
    dropped = repair_state.taken_back(now.without_cluster("demo"), old, 60.0)
    assert not dropped.dropped_volumes


async def _with_data(runtime: LocalRuntime) -> None:
    """A stopped fleet with one cluster that has a data directory, as far as a repair looks at it."""
    runtime.opens_volumes = True
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        volume = runtime.instances["demo-1"].volume
        assert volume is not None
        content = b"18\n".ljust(volume.spec.page_size, b"\0")
        await volume.append([create(1, b"PG_VERSION"), extent(1, 0, 0), size(1, 3), page_full(1, 0, content)])
        await volume.append([page_full(1, 0, content)])  # so nodes hear that the first is durable; repairs read it
        await volume.close()
    runtime.volumes.clear()


async def test_a_state_of_which_nothing_can_be_read_is_rebuilt_from_the_nodes(runtime: LocalRuntime) -> None:
    await _with_data(runtime)
    async with started(runtime) as running:
        await running.api.wait_open(20)
        before = running.plane.fleet.cluster("demo")
        store = running.plane.declared.store
        assert store is not None
        for version in await store.versions():
            await store._volume.append([page_full(version.number, 0, bytes(8192))])
    async with started(runtime) as running:
        with pytest.raises(ConfigurationError, match="aurora repair state"):
            await running.api.wait_open(20)
        found = await running.api.look_at_state()
        assert not found["open"]
        assert all(version["problem"] for version in found["versions"])
        assert str(before.volume.volume_id) in [volume["volume"] for volume in found["volumes"]]
        assert await running.api.repair_state(None) == ["demo"]
        await running.api.wait_available("demo", 20)
        after = running.plane.fleet.cluster("demo")
        assert after.volume == replace(before.volume, groups=after.volume.groups, initialised=True)
        assert after.volume.groups[0].node_ids == before.volume.groups[0].node_ids
        assert (after.superuser_password, after.engine_version) == (before.superuser_password, "18")
        with pytest.raises(UsageError, match="nothing to rebuild"):
            await running.api.repair_state(None)


async def test_an_older_version_is_put_in_force(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        store = running.plane.declared.store
        assert store is not None
        (newest, *_) = await store.versions()
        await running.api.create("later", timeout_s=20)
        assert await running.api.repair_state(newest.number) == ["demo"]
        assert [entry["cluster"] for entry in await running.api.graveyard()] == ["later"]
        with pytest.raises(UsageError, match="there is none"):
            await running.api.repair_state(10**6)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
async def test_the_fleets_file_is_made_anew_from_the_nodes_directories(runtime: LocalRuntime, damage: str) -> None:
    await _with_data(runtime)
    data_dir = runtime.directory
    path = data_dir / bootstrap.FILE_NAME
    before = bootstrap.load(data_dir)
    assert before is not None
    path.unlink() if damage == "missing" else path.write_text("fleet_id = 'cut o")
    settings = load_settings(data_dir=data_dir)
    with pytest.raises(ConfigurationError, match="--region"):
        outside.repair_file(settings, None, write=False)
    done = outside.repair_file(settings, "somewhere", write=False)
    assert path.exists() == (damage == "damaged")
    assert done["found"]["with_control_state"] == ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"]
    done = outside.repair_file(settings, "somewhere", write=True)
    assert (done["replaced_file_kept_as"] is not None) == (damage == "damaged")
    async with started(runtime) as running:
        await running.api.wait_available("demo", 20)
        assert running.plane.fleet.fleet_id == before.fleet_id
        assert bootstrap.load(data_dir) == replace(before, nodes=running.plane.fleet.nodes)


async def test_a_file_that_cannot_be_told_is_not_made(runtime: LocalRuntime, tmp_path: Path) -> None:
    await _with_data(runtime)
    shutil.rmtree(runtime.directory / "nodes" / "c-2")
    found = repair_file.survey(runtime.directory)
    fleet: Fleet = repair_file.fleet_of(found, {}, "somewhere")
    assert [node.node_id for node in fleet.nodes] == ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"], "the others name it"
    assert fleet.azs == AZS
    with pytest.raises(ConfigurationError, match="no fleet can be told"):
        repair_file.fleet_of(repair_file.survey(tmp_path / "nowhere"), {}, "somewhere")
