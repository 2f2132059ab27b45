"""A cluster on six real storage nodes is backed up; all six are lost; six others get it back out of the bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.backup.manifest import Subject
from aurora_ray.compute import restoring
from aurora_ray.compute.backing import Backing
from aurora_ray.compute.config import (
    BackupOrder,
    EngineChoice,
    IncarnationPhase,
    InstanceConfig,
    RestoreOrder,
)
from aurora_ray.compute.restoring import Restored
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import ConfigurationError
from tests.compute.test_reader import PASSWORD, execute
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator
from tests.support.timing import scaled
from tests.volume.cluster import PAGE, Cluster, running

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r".* ends: ", "due to server stop"),
]
CONTENT = "select count(*), sum(i), md5(string_agg(s, ',' order by i)) from t"


@pytest.fixture(scope="module", autouse=True)
def _account() -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    path = run_dir / "restoring"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


def config_of(cluster: Cluster, shared_dir: Path, port: int, **more: Any) -> InstanceConfig:
    return InstanceConfig(
        cluster="demo",
        instance_id=f"demo-{port}",
        az="a",
        volume=cluster.spec,
        nodes=tuple(cluster.addresses),
        engine=EngineChoice("postgres", "", shared_dir),
        port=port,
        superuser_password=PASSWORD,
        open_timeout_s=scaled(120),
        stop_timeout_s=30,
        **more,
    )


@asynccontextmanager
async def six(directory: Path) -> AsyncIterator[Cluster]:
    await asyncio.to_thread(directory.mkdir)
    async with running(directory) as cluster:
        yield cluster


async def test_it_is_read_before_its_data_is_back_and_written_to_afterwards(
    tmp_path: Path, shared_dir: Path, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = str(tmp_path / "bucket")
    async with six(tmp_path / "old") as cluster:
        config = config_of(cluster, shared_dir, ports.allocate(), initialise=True)
        writer = Writer(config)
        subject = Subject("demo", "postgres", "18", PAGE, cluster.spec.group_bytes)
        order = BackupOrder(bucket, f"fleet/{cluster.spec.volume_id}", "", 86400, subject)
        backing = Backing(config_of(cluster, shared_dir, ports.allocate(), role=Role.BACKUP, backup=order))
        try:
            await writer.start()
            await backing.start()
            await execute(config, "create table t as select i, md5(i::text) s from generate_series(1, 20000) i")
            before = await execute(config, CONTENT)
            lsn = writer.status().vdl
            await poll_until(lambda: _restorable(backing) >= lsn, scaled(60), what="it is backed up")
            assert backing.status().described == order.digest
            assert backing.status().troubles == ()
        finally:
            await backing.stop(StopMode.FAST)
            await writer.stop(StopMode.KILL)
        lsn = int(backing.status().stats["backup_lsn"])
    may_fill = asyncio.Event()
    fill = restoring.fill_volume

    async def fills(*arguments: Any) -> None:
        await may_fill.wait()
        await fill(*arguments)

    monkeypatch.setattr(restoring, "fill_volume", fills)
    async with six(tmp_path / "new") as cluster:
        restore = RestoreOrder(bucket, order.place, "", lsn)
        config = config_of(cluster, shared_dir, ports.allocate(), initialise=True, restore=restore)
        first = Restored(config)
        second = Restored(replace(config))
        try:
            await first.start()
            assert (first.status().role, first.status().phase) == (Role.STATIC, IncarnationPhase.AVAILABLE)
            assert await execute(config, CONTENT) == before
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await execute(config, "delete from t")
            may_fill.set()
            outcome = await asyncio.wait_for(first.wait_ended(), scaled(60))
            assert "all its data is back" in outcome.reason
            await second.start()
            assert second.status().role is Role.WRITER
            assert await execute(config, CONTENT) == before
            await execute(config, "insert into t values (0, 'new')")
            assert await execute(config, "select count(*) from t") == [(20001,)]
        finally:
            await first.stop(StopMode.KILL)
            await second.stop(StopMode.KILL)


def _restorable(backing: Backing) -> int:
    """Up to where it can be restored."""
    stats = backing.status().stats
    return int(stats["backup_lsn"]) if stats.get("backup_restorable_lsn") else 0
