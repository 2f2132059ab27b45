"""Two regions, each with a control plane and six real storage nodes of its own: one follows, and takes over."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.api.regional_report import writer_dsn
from aurora_ray.control.api.server import ControlServer
from aurora_ray.control.model.regional import SEALED
from aurora_ray.control.model.runtime import ControlConfig, Runtime
from aurora_ray.control.model.sealing import seal
from aurora_ray.control.plane import ControlPlane
from aurora_ray.errors import FencedError, UsageError
from aurora_ray.log import record
from aurora_ray.replication.succession import generation_of
from aurora_ray.rpc.admission import OURS
from aurora_ray.volume.write.volume import Volume
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import GROUP_BYTES
from tests.support.polling import poll_until
from tests.support.timing import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EAST, WEST = "us-east-1", "eu-west-1"
TIMEOUT_S = scaled(60)
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r".*server stop.*", r".*epoch.*", r".*fenced.*"),
]


class Region:
    """A region's control plane, which may end and be succeeded; its processes stay."""

    def __init__(self, name: str, runtime: LocalRuntime) -> None:
        self.name, self.runtime = name, runtime
        self._next_file = 1

    async def begin(self) -> None:
        azs = tuple(f"{self.name}{letter}" for letter in "abc")
        config = ControlConfig(self.runtime.directory, self.name, azs, GROUP_BYTES, 1 << 30, 300.0, 1 << 28)
        (self.runtime.directory / "passfiles").mkdir(exist_ok=True)
        self.plane = ControlPlane(config, cast("Runtime", self.runtime))
        self.api = ControlApi(self.plane)
        self._server = ControlServer(self.plane, self.api)
        await self._server.start()
        self._task = asyncio.create_task(self.plane.run())

    async def vanish(self) -> None:
        """Its control plane is no more; what it ran goes on."""
        self._task.cancel()
        await self._server.stop()
        await self.plane.processes.tasks.cancel()
        await self.plane.regions.close()
        with contextlib.suppress(asyncio.CancelledError, FencedError):
            await self._task

    async def end(self) -> None:
        if not self._task.done():
            await self.plane.shutdown()
        await self._server.stop()
        with contextlib.suppress(asyncio.CancelledError, FencedError):
            await self._task

    @property
    def owner(self) -> Any:
        return self.runtime.instances["demo-1"]

    @property
    def volume(self) -> Volume:
        volume = self.owner.volume
        assert volume is not None
        return cast("Volume", volume)

    async def write(self, text: str) -> int:
        """As the writer here; the LSN."""
        self._next_file += 1
        page = text.encode().ljust(64)
        made = [record.create(self._next_file, text.encode()), record.extent(self._next_file, 0, 0)]
        made += [record.size(self._next_file, 8192), record.page_full(self._next_file, 0, page, group=0)]
        return await self.volume.append(made, TIMEOUT_S)

    async def follows(self, lsn: int) -> None:
        """Until this region's copy is durable up to there."""

        def there() -> bool:
            copier = self.owner.copier
            return copier is not None and copier.status().vdl >= lsn and not self.owner._ended.done()

        await poll_until(there, TIMEOUT_S, what=f"{self.name} follows up to {lsn}")

    def cluster(self) -> Any:
        return self.plane.fleet.cluster("demo")


def test_the_writer_is_found_through_all_regions() -> None:
    dsns = ["postgresql://postgres@127.0.0.1:1/postgres?passfile=p", "postgresql://postgres@127.0.0.1:2/postgres"]
    wanted = "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/postgres?passfile=p&target_session_attrs=read-write"
    assert writer_dsn(dsns) == wanted


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Region, Region]]:
    regions = []
    for name in (EAST, WEST):
        (tmp_path / name).mkdir()
        regions.append(Region(name, LocalRuntime(tmp_path / name, opens_volumes=True)))
    try:
        for region in regions:
            await region.begin()
        yield regions[0], regions[1]
    finally:
        for region in regions:
            await region.end()
            await region.runtime.close()


async def joined(east: Region, west: Region) -> int:
    """East is the primary, west has all of it; up to which LSN."""
    await east.api.create("demo", timeout_s=TIMEOUT_S)
    await east.api.wait_available("demo", TIMEOUT_S)
    lsn = await east.write("before")
    await poll_until(lambda: east.owner.volume.vdl >= lsn)
    await east.plane.processes.refresh("demo-1")
    await east.api.create_global("g", "demo")
    await west.api.wait_open(TIMEOUT_S)
    guest = {
        "region": WEST,
        "fleet_id": str(west.plane.fleet.fleet_id),
        "address": west.plane.regions.own_address,
        "data_dir": str(west.runtime.directory),
        "secret": seal(SEALED, OURS.secret.to_text()),
    }
    invitation = await east.api.invite_region("g", guest)
    await west.api.join_global(invitation, timeout_s=TIMEOUT_S)
    told = await west.api.wait_copied("g", TIMEOUT_S)
    assert (told["role"], told["state"]) == ("secondary", "following")
    lsn = await east.write("after")
    await west.follows(lsn)
    return lsn


async def test_a_switchover_loses_nothing_and_the_old_primary_follows_and_back(tmp_path: Path) -> None:
    async with two(tmp_path) as (east, west):
        lsn = await joined(east, west)
        status = await east.api.global_status("g")
        assert [(row["region"], row["role"]) for row in status["regions"]] == [(EAST, "primary"), (WEST, "secondary")]
        done = await east.api.turn_global("g", WEST, "switchover", TIMEOUT_S)  # handed on to west
        assert (done["primary"], done["rpo_bytes"], done["rpo_ms"]) == (WEST, 0, 0.0)
        assert west.volume.vdl == lsn
        assert generation_of(west.volume.epoch) == west.cluster().generation > 0
        there = await west.write("in the west")
        await east.follows(there)
        assert east.cluster().succession == west.cluster().succession
        assert east.cluster().is_secondary
        assert east.cluster().membership.tails == ()
        back = await west.api.turn_global("g", EAST, "switchover", TIMEOUT_S)
        assert back["primary"] == EAST
        assert east.volume.vdl == there
        await west.follows(await east.write("back in the east"))


async def test_an_old_primary_comes_back_fenced_with_its_tail_kept_and_follows(tmp_path: Path) -> None:
    async with two(tmp_path) as (east, west):
        lsn = await joined(east, west)
        await east.vanish()
        done = await west.api.turn_global("g", WEST, "failover", TIMEOUT_S)
        assert done["lost_after_lsn"] >= lsn
        lost = await east.write("nobody else knows of this")
        ours = await west.write("in the west")
        old = east.cluster().volume.volume_id
        await east.begin()
        await east.follows(ours)
        cluster = east.cluster()
        (tail,) = cluster.membership.tails
        assert (tail.volume_id, tail.after_lsn, tail.end_lsn) == (old, done["lost_after_lsn"], lost)
        assert cluster.past[0].volume.volume_id == old != cluster.volume.volume_id
        before = next(c for c in east.owner.configs if c.role is Role.WRITER)
        with pytest.raises(FencedError):  # whoever still holds it to be the primary's
            await Volume.open(before.volume, east.plane.addresses(), timeout_s=TIMEOUT_S, epochs=before.epochs)
        row = next(row for row in (await west.api.global_status("g"))["regions"] if row["region"] == EAST)
        assert row["lost_tails"][0]["bytes"] == lost - done["lost_after_lsn"]


async def test_what_makes_no_sense_is_refused_in_words(tmp_path: Path) -> None:
    async with two(tmp_path) as (east, west):
        await joined(east, west)
        refused = [
            (east.api.turn_global("g", EAST, "switchover", 1), "is the primary of g already"),
            (east.api.turn_global("g", "mars-1", "failover", 1), "no other region 'mars-1'"),
            (east.api.delete("demo", 1), "part of the global cluster g"),
            (east.api.backtrack("demo", "-1s", 1), "cannot be rewound"),
            (west.api.failover("demo", None, 1), "secondary region of g"),
            (west.api.invite_region("g", {}), "regions are added in us-east-1"),
            (west.api.remove_region("g", EAST, keep=False, timeout_s=1), "regions are removed in us-east-1"),
            (east.api.leave_global("g", keep=True, timeout_s=1), "first remove eu-west-1"),
            (east.api.make_way("g", 0), "generation 0 is over"),
            (west.api.make_way("g", 99), "is not the primary of g"),
        ]
        for call, words in refused:
            with pytest.raises(UsageError, match=words):
                await call
        assert west.owner.configs[-1].role is Role.REPLICATOR


async def test_a_region_leaves_with_its_data_and_is_a_cluster_of_its_own(tmp_path: Path) -> None:
    async with two(tmp_path) as (east, west):
        lsn = await joined(east, west)
        done = await east.api.remove_region("g", WEST, keep=True, timeout_s=TIMEOUT_S)
        assert (done["left"], done["kept"]) == (True, True)
        await west.api.wait_available("demo", TIMEOUT_S)
        assert west.cluster().membership is None
        assert await west.write("alone") > lsn
        assert (await east.api.global_status("g"))["regions"][0]["region"] == EAST
        await east.api.leave_global("g", keep=True, timeout_s=TIMEOUT_S)
        await east.api.delete("demo", TIMEOUT_S)
