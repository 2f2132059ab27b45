"""The declared state in its volume, on six real storage nodes."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from aurora_ray.control.model import state_file
from aurora_ray.control.model.codec import pack
from aurora_ray.control.model.state import DBCluster, Fleet, Group, VolumeState
from aurora_ray.control.model.state_file import VERSIONS_KEPT
from aurora_ray.control.model.store import ControlStore, StateDamagedError, volume_spec
from aurora_ray.errors import FencedError, QuorumLostError
from aurora_ray.log.record import apply_page, page_full
from aurora_ray.volume.write.volume import Volume
from tests.control.fleets import running_fleet
from tests.control.state_volume import write_first_format
from tests.volume.cluster import NODES, Cluster, running

# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")


class Six:
    """A control volume on real nodes."""

    def __init__(self, cluster: Cluster) -> None:
        group = Group(0, NODES, NODES)
        self.cluster = cluster
        self.volume = VolumeState(uuid4(), 8192, 1 << 30, (group,), initialised=True)

    async def create(self) -> None:
        await Volume.create(volume_spec(self.volume), self.cluster.addresses, timeout_s=10)

    async def open(self) -> tuple[ControlStore, Fleet | None]:
        fenced: list[bool] = []
        return await ControlStore.open(
            self.volume, self.cluster.addresses, timeout_s=20, on_fenced=lambda: fenced.append(True)
        )


async def test_saved_state_is_found_again_and_the_older_control_plane_is_fenced(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        first, nothing = await six.open()
        assert nothing is None
        fleet = running_fleet()
        await first.save(fleet)
        large = _large(fleet, 2000)
        await first.save(large)
        await first.save(replace(fleet, revision=7))
        second, found = await six.open()
        assert found == replace(fleet, revision=7)
        assert second.epoch > first.epoch
        with pytest.raises(FencedError):
            await first.save(fleet)
        await second.save(large)
        third, found = await six.open()
        assert found == large
        for store in (first, second, third):
            await store.close()


async def test_state_survives_the_loss_of_an_az(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        store, _ = await six.open()
        await store.save(running_fleet())
        await cluster.stop("a1", "a2")
        await store.save(replace(running_fleet(), revision=3))
        await store.close()
        store, found = await six.open()
        assert found is not None
        assert found.revision == 3
        await store.close()


async def test_a_save_that_timed_out_and_became_durable_all_the_same_harms_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        store, _ = await six.open()
        before = _large(running_fleet(), 70)
        await store.save(before)
        await cluster.stop("a1", "b1", "c1")
        with pytest.raises(QuorumLostError):
            await store.save(before.with_node(replace(before.nodes[0], host="10.0.0.17")), timeout_s=0.5)
        await cluster.start("a1", "b1", "c1")
        await store.update_nodes(cluster.addresses)
        after = replace(before, clusters=before.clusters[:-1])
        await store.save(after)
        await store.close()
        store, found = await six.open()
        assert found == after
        assert not store.damaged
        await store.close()


async def test_the_last_versions_can_be_read_and_one_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        store, _ = await six.open()
        fleets = [replace(running_fleet(), revision=n) for n in range(VERSIONS_KEPT + 3)]
        for fleet in fleets:
            await store.save(fleet)
        versions = await store.versions()
        assert [version.fleet for version in versions] == fleets[: -VERSIONS_KEPT - 1 : -1]
        await store._volume.append([page_full(versions[0].number, 0, b"\7" * 8192)])
        await store.close()
        store, found = await six.open()
        assert found == fleets[-2]
        assert [version.number for version in store.damaged] == [versions[0].number]
        await store.save(replace(fleets[-2], revision=99))
        await store.close()
        store, found = await six.open()
        assert found is not None
        assert found.revision == 99
        assert not store.damaged
        await store.close()


async def test_counts_of_use_are_kept_beside_the_versions_and_the_older_control_plane_is_fenced(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        first, _ = await six.open()
        fleet = running_fleet()
        await first.save(fleet)
        for number in range(VERSIONS_KEPT + 5):
            await first.save_usage(b"%d" % number)
        await first.save(replace(fleet, revision=7))
        assert [version.number for version in await first.versions()] == [VERSIONS_KEPT + 7, 1]
        second, found = await six.open()
        assert (found, second.usage) == (replace(fleet, revision=7), b"%d" % (VERSIONS_KEPT + 4))
        with pytest.raises(FencedError):
            await first.save_usage(b"of one that was replaced")
        await second.save_usage(b"more")
        third, _ = await six.open()
        assert third.usage == b"more"
        for store in (first, second, third):
            await store.close()


async def test_with_nothing_but_damage_it_is_said_and_only_a_repair_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        store, _ = await six.open()
        await store.save(running_fleet())
        await store._volume.append([page_full(1, 0, bytes(8192))])
        await store.close()
        with pytest.raises(StateDamagedError, match=r"version 1: .*aurora repair state"):
            await six.open()
        repair, found = await ControlStore.open(
            six.volume, cluster.addresses, timeout_s=20, on_fenced=lambda: None, even_damaged=True
        )
        assert found is None
        await repair.save(running_fleet())
        await repair.close()
        store, found = await six.open()
        assert found is not None
        await store.close()


async def test_a_state_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await six.create()
        old = _large(running_fleet(), 70)
        volume = await Volume.open(volume_spec(six.volume), cluster.addresses, timeout_s=20)
        await volume.append(write_first_format(pack(old), 8192))
        await volume.close()
        for _ in range(2):  # reading alone changes nothing
            store, found = await six.open()
            assert found == old
            await store.close()
        store, _ = await six.open()
        await store.save(replace(old, revision=5))
        assert [v.fleet for v in await store.versions()] == [replace(old, revision=5), old]
        table = await store._volume.read_file_table()
        assert table.by_id(state_file.FIRST_FILE_ID) is None, "a program of the first format would find an old state"
        await store.close()


def test_the_first_format_is_as_it_was() -> None:
    page = bytearray(512)
    apply_page(write_first_format(b"state", 512)[-1], page)
    assert page[:4] == b"ARC1"
    assert state_file.unframe_first(bytes(page)) == b"state"


def _large(fleet: Fleet, clusters: int) -> Fleet:
    return replace(fleet, clusters=tuple(_renamed(fleet.clusters[0], f"c{n}") for n in range(clusters)))


def _renamed(cluster: DBCluster, name: str) -> DBCluster:
    return replace(cluster, name=name)
