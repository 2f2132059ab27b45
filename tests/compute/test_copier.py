"""A replicator as an instance: opened, told, looked at and ended like the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.compute import commands
from aurora_ray.compute.config import CopySource, EngineChoice, IncarnationPhase, InstanceConfig
from aurora_ray.compute.copier import Copier
from aurora_ray.compute.kinds import incarnation_of
from aurora_ray.compute.role import Role
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import UsageError
from aurora_ray.replication.succession import epochs_of, generation_of, next_generation
from aurora_ray.rpc.admission import OURS
from aurora_ray.volume.spec import GroupPlacement
from tests.replication.regions import Copy, Scribe, content_of, two_regions
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import NODES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.allowed_logs("due to server stop")


@pytest.fixture
async def regions(tmp_path: Path) -> AsyncIterator[tuple[Copy, Copy]]:
    async with two_regions(tmp_path) as both:
        yield both


def source_of(primary: Copy, **more: Any) -> CopySource:
    cluster = primary.cluster
    turns = more.pop("turns", ((0, 0),))
    return CopySource("east", cluster.spec, tuple(cluster.addresses), turns, OURS.secret.to_text(), **more)


def config_of(copy: Copy, directory: Path, **more: Any) -> InstanceConfig:
    return InstanceConfig(
        cluster="demo",
        instance_id="demo-1",
        az="a",
        volume=copy.cluster.spec,
        nodes=tuple(copy.cluster.addresses),
        engine=EngineChoice("postgres", "", directory),
        port=0,
        superuser_password="",
        role=Role.REPLICATOR,
        **more,
    )


async def follows(copier: Copier, lsn: int) -> None:
    await poll_until(lambda: copier.status().vdl >= lsn, scaled(20), what=f"the copy is durable up to {lsn}")


async def test_it_follows_grows_when_it_is_told_and_ends_when_it_is_asked(
    regions: tuple[Copy, Copy], tmp_path: Path
) -> None:
    primary, copy = regions
    volume = await primary.cluster.open()
    scribe = Scribe(volume, seed=1)
    await scribe.write(10)
    copier = incarnation_of(config_of(copy, tmp_path, source=source_of(primary)))
    assert isinstance(copier, Copier)
    opened = await copier.start()
    assert generation_of(opened.epoch) == 0
    await follows(copier, await scribe.write(10))
    primary.cluster.spec = await volume.members.add_group(GroupPlacement(1, NODES))
    scribe.groups.append(1)
    lsn = await scribe.write(30)
    await asyncio.sleep(0.3)  # not synchronisation: it must not go on before its region has noted the group
    assert copier.status().groups == (0,)
    await copier.do(commands.AddGroup(GroupPlacement(1, NODES)))
    await follows(copier, lsn)
    status = copier.status()
    assert (status.phase, status.role, status.groups) == (IncarnationPhase.AVAILABLE, Role.REPLICATOR, (0, 1))
    assert status.copy is not None
    assert (status.copy.following, status.copy.lag_bytes) == (True, 0)
    outcome = await copier.stop(StopMode.FAST, reopens=False)
    assert (outcome.asked, copier.status().phase) == (True, IncarnationPhase.ENDED)
    with pytest.raises(UsageError, match="does not take"):
        await copier.do(commands.WriteBack(1.0))


async def test_who_writes_to_the_copy_for_a_later_generation_shuts_it_out(
    regions: tuple[Copy, Copy], tmp_path: Path
) -> None:
    primary, copy = regions
    scribe = Scribe(await primary.cluster.open(), seed=2)
    copier = Copier(config_of(copy, tmp_path, source=source_of(primary)))
    await copier.start()
    lsn = await scribe.write(10)
    await follows(copier, lsn)
    promoted = await copy.cluster.open(epochs=epochs_of(next_generation(0, 1)))
    assert promoted.vdl == lsn
    outcome = await asyncio.wait_for(copier.wait_ended(), scaled(30))
    assert not outcome.asked
    assert await content_of(copy, lsn) == await content_of(primary, lsn)


async def test_it_does_not_follow_what_its_region_has_not_noted(regions: tuple[Copy, Copy], tmp_path: Path) -> None:
    primary, copy = regions
    with pytest.raises(UsageError, match="nothing says what it shall follow"):
        Copier(config_of(copy, tmp_path))
    turns = ((0, 0), (5, next_generation(0, 0)))
    with pytest.raises(UsageError, match="is noted to hold"):
        Copier(config_of(copy, tmp_path, source=source_of(primary, turns=turns)))
