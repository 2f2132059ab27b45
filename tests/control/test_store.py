"""The declared state in its volume, on six real storage nodes."""

from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from aurora_ray.control.model import DBCluster, Fleet, Group, VolumeState
from aurora_ray.control.store import HEADER, ControlStore, changes, frame, pages_needed, unframe, volume_spec
from aurora_ray.errors import FencedError, MalformedError
from aurora_ray.log.layout import RecordType
from aurora_ray.volume.client import Volume
from tests.control.fleets import running_fleet
from tests.volume.cluster import NODES, Cluster, running

PAGE = 512
# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")


def test_framing() -> None:
    for size in (0, 1, PAGE - HEADER.size, PAGE - HEADER.size + 1, 10 * PAGE):
        state = Random(size).randbytes(size)
        pages = frame(state, PAGE)
        assert all(len(page) == PAGE for page in pages)
        assert pages_needed(pages[0], PAGE) == len(pages)
        assert unframe(b"".join(pages)) == state


def test_damage_is_noticed() -> None:
    content = bytearray(b"".join(frame(b"state" * 300, PAGE)))
    content[700] ^= 1
    with pytest.raises(MalformedError, match="CRC"):
        unframe(bytes(content))
    with pytest.raises(MalformedError, match="does not hold"):
        pages_needed(bytes(PAGE), PAGE)


def test_only_what_changed_is_written() -> None:
    old = frame(b"a" * 5 * PAGE, PAGE)
    new = [*old[:3], b"x" * PAGE, *old[4:]]
    assert [record.page for record in changes(old, new, PAGE)] == [3]
    assert [record.type for record in changes([], old[:1], PAGE)][:3] == [
        RecordType.CREATE,
        RecordType.EXTENT,
        RecordType.SIZE,
    ]
    assert [record.type for record in changes(old, old[:2], PAGE)] == [RecordType.TRUNCATE]


class Six:
    """A control volume on real nodes."""

    def __init__(self, cluster: Cluster) -> None:
        group = Group(0, NODES, NODES)
        self.cluster = cluster
        self.volume = VolumeState(uuid4(), 8192, 1 << 30, (group,), initialised=True)

    async def open(self) -> tuple[ControlStore, Fleet | None]:
        fenced: list[bool] = []
        return await ControlStore.open(
            self.volume, self.cluster.addresses, timeout_s=20, on_fenced=lambda: fenced.append(True)
        )


async def test_saved_state_is_found_again_and_the_older_control_plane_is_fenced(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        six = Six(cluster)
        await Volume.create(volume_spec(six.volume), cluster.addresses, timeout_s=10)
        first, nothing = await six.open()
        assert nothing is None
        fleet = running_fleet()
        await first.save(fleet)
        large = replace(fleet, clusters=tuple(_renamed(fleet.clusters[0], f"c{n}") for n in range(2000)))
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
        await Volume.create(volume_spec(six.volume), cluster.addresses, timeout_s=10)
        store, _ = await six.open()
        await store.save(running_fleet())
        await cluster.stop("a1", "a2")
        await store.save(replace(running_fleet(), revision=3))
        await store.close()
        store, found = await six.open()
        assert found is not None
        assert found.revision == 3
        await store.close()


def _renamed(cluster: DBCluster, name: str) -> DBCluster:
    return replace(cluster, name=name)
