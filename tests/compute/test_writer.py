"""A writer on six real storage nodes with a real engine: opened, ended in every way, opened again."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from aurora_ray.compute.assemble import is_complete
from aurora_ray.compute.config import (
    CapacityOrder,
    EngineChoice,
    HalfMadeVolumeError,
    IncarnationPhase,
    InstanceConfig,
)
from aurora_ray.compute.engines import prepare_engine
from aurora_ray.compute.leftovers import working_below
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.image import import_records
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import AuroraError, ConfigurationError, EngineError, QuorumLostError
from aurora_ray.mount import discarding
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import Cluster, pages, running

# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(180),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core"),
]
ENDS = pytest.mark.allowed_logs(r".* ends: ", r"epoch \d+")


@pytest.fixture(scope="module", autouse=True)
def _account() -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    """Images and engines are made once for the module."""
    path = run_dir / "writer"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as six:
        yield six


@pytest.fixture
def config(cluster: Cluster, shared_dir: Path, free_port: int) -> InstanceConfig:
    return InstanceConfig(
        cluster="demo",
        instance_id=f"demo-{free_port}",
        az="a",
        volume=cluster.spec,
        nodes=tuple(cluster.addresses),
        engine=EngineChoice("postgres", "", shared_dir),
        port=free_port,
        superuser_password="correct horse",  # noqa: S106
        initialise=True,
        open_timeout_s=60,
        stop_timeout_s=30,
    )


async def connect(config: InstanceConfig) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        host="127.0.0.1",
        port=config.port,
        user="postgres",
        password=config.superuser_password,
        dbname="postgres",
        autocommit=True,
    )


async def execute(config: InstanceConfig, statement: str) -> list[tuple[object, ...]]:
    async with await connect(config) as session:
        cursor = await session.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def test_what_the_storage_rests_on_cannot_be_set_and_the_server_says_how_it_is(config: InstanceConfig) -> None:
    writer = Writer(replace(config, parameters=(("jit", "on"),)))
    await writer.start()
    for name, value in (("fsync", "off"), ("port", "1"), ("wal_level", "minimal")):
        with pytest.raises(psycopg.Error, match=rf"\"{name}\" is fixed in this cluster|replica or logical"):
            await execute(config, f"alter system set {name} = '{value}'")
    await execute(config, "alter system set max_connections = 77")
    assert await execute(config, "show jit") == [("on",)]
    engine = writer._engine
    assert isinstance(engine, PostgresEngine)
    before = await engine.probe()
    assert before is not None
    assert not before.in_recovery
    await execute(config, "create table t as select generate_series(1, 1000) i")
    after = await engine.probe()
    assert after is not None
    assert after.wal_lsn > before.wal_lsn
    await writer.stop()
    again = Writer(replace(config, initialise=False, superuser_password="of another fleet"))  # noqa: S106
    await again.start()
    assert await execute(config, "show max_connections") == [("77",)]  # with the password that it was given first
    await again.stop()


async def test_everything_survives_an_orderly_end_and_a_kill(config: InstanceConfig) -> None:
    writer = Writer(config)
    opened = await writer.start()
    assert set(opened.stages_s) >= {"seal", "initialise", "mount", "engine"}
    await execute(config, "create table t as select generate_series(1, 1000) i")
    outcome = await writer.stop()
    assert outcome.asked
    assert writer.status().phase is IncarnationPhase.ENDED
    assert not config.dirs.mount.exists()
    again = Writer(replace(config, initialise=False))
    assert (await again.start()).epoch == opened.epoch + 1
    assert await execute(config, "select count(*) from t") == [(1000,)]
    await again.stop()


async def test_the_next_mount_is_prepared_at_the_end_of_one_that_is_paused(config: InstanceConfig) -> None:
    config = replace(config, capacity=CapacityOrder(0.5, 0.5, 2, 0.25))
    writer = Writer(config)
    await writer.start()
    await execute(config, "create table t as select generate_series(1, 1000) i")
    await writer.stop(reopens=True)
    await writer.leave_tree()
    (ready,) = discarding.in_waiting(config.dirs.mount)
    inode = ready.stat().st_ino
    again = Writer(replace(config, initialise=False))
    await again.start()
    assert config.dirs.mount.stat().st_ino == inode
    assert discarding.in_waiting(config.dirs.mount) == []
    assert await execute(config, "select count(*) from t") == [(1000,)]
    await execute(config, "insert into t values (1)")
    await again.stop()
    third = Writer(replace(config, initialise=False))
    await third.start()
    assert await execute(config, "select count(*) from t") == [(1001,)]
    await third.stop()


@ENDS
async def test_a_killed_engine_ends_the_incarnation_and_the_next_one_has_all_commits(config: InstanceConfig) -> None:
    writer = Writer(config)
    opened = await writer.start()
    await execute(config, "create table t (i int)")
    await execute(config, "insert into t values (1), (2)")
    os.kill(opened.pid, signal.SIGKILL)
    outcome = await writer.wait_ended()
    assert not outcome.asked
    assert "killed by signal 9" in outcome.reason
    assert working_below(config.dirs.mount) == []
    again = Writer(replace(config, initialise=False))
    await again.start()
    assert await execute(config, "select sum(i) from t") == [(3,)]
    await again.stop()


@ENDS
async def test_a_writer_that_was_sealed_out_ends_and_its_sessions_are_cut(
    config: InstanceConfig, cluster: Cluster
) -> None:
    writer = Writer(config)
    opened = await writer.start()
    volume = await cluster.open()
    assert volume.epoch > opened.epoch
    outcome = await writer.wait_ended()
    assert "higher epoch" in outcome.reason
    assert not outcome.retryable
    await poll_until(lambda: not working_below(config.dirs.mount), what="the engine is gone")
    with pytest.raises(psycopg.OperationalError):
        await connect(config)


async def test_a_half_made_volume_is_not_used(config: InstanceConfig, cluster: Cluster) -> None:
    volume = await cluster.open()
    await volume.append(pages((0, b"something")))
    with pytest.raises(HalfMadeVolumeError):
        await Writer(config).start()


async def test_a_complete_volume_is_used_though_nobody_noted_that_it_is(config: InstanceConfig) -> None:
    writer = Writer(config)
    await writer.start()
    await execute(config, "create table t (i int)")
    await writer.stop()
    again = Writer(config)
    await again.start()
    assert await execute(config, "select count(*) from t") == [(0,)]
    await again.stop()


@pytest.mark.parametrize("left_out", [1, 5])
async def test_an_import_that_lacks_its_last_records_is_half_made(
    config: InstanceConfig, cluster: Cluster, left_out: int
) -> None:
    prepared = await prepare_engine(config.engine)
    records = list(prepared.image.new_cluster())
    volume = await cluster.open()
    await import_records(records[:-left_out], volume)
    assert not await is_complete(prepared, volume)
    await volume.append(records[-left_out:])
    assert await is_complete(prepared, volume)


async def test_a_volume_that_held_a_data_directory_is_not_filled_again(config: InstanceConfig) -> None:
    with pytest.raises(EngineError, match="is empty, though it held a data directory"):
        await Writer(replace(config, initialise=False)).start()


async def test_a_failed_start_leaves_nothing_behind(config: InstanceConfig, cluster: Cluster) -> None:
    await cluster.stop("a1", "a2", "b1", "b2")
    with pytest.raises(AuroraError) as caught:
        await Writer(replace(config, open_timeout_s=2)).start()
    assert isinstance(caught.value, QuorumLostError) or "not open within" in str(caught.value)
    assert not any(config.dirs.mount.iterdir())


async def test_a_port_in_use_is_said(config: InstanceConfig) -> None:
    with (
        socket.create_server(("127.0.0.1", config.port)),
        pytest.raises(ConfigurationError, match=f"port {config.port} on 127.0.0.1 is in use"),
    ):
        await Writer(config).start()


async def test_an_engine_of_an_earlier_incarnation_is_ended_first(config: InstanceConfig) -> None:
    writer = Writer(config)
    await writer.start()
    await writer.stop()
    config.dirs.mount.mkdir(parents=True)
    left = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", "import signal; signal.pause()"],
        env={**os.environ, "AURORA_MOUNT": str(config.dirs.mount)},
        cwd=config.dirs.mount,
    )
    again = Writer(replace(config, initialise=False))
    await again.start()
    assert left.wait(5) == -signal.SIGKILL
    await again.stop()


@ENDS
async def test_a_stopped_engine_is_found_hung_and_killed(config: InstanceConfig) -> None:
    writer = Writer(config)
    opened = await writer.start()
    await execute(config, "create table t (i int)")
    stopped_ns = time.time_ns()
    os.kill(opened.pid, signal.SIGSTOP)
    async with asyncio.timeout(scaled(15)):
        outcome = await writer.wait_ended()
    assert "hung" in outcome.reason
    assert "stopped by a signal" in outcome.reason
    assert abs(outcome.good_at_ns - stopped_ns) < 1e9
    assert working_below(config.dirs.mount) == []
    again = Writer(replace(config, initialise=False))
    await again.start()
    assert await execute(config, "select count(*) from t") == [(0,)]
    await again.stop()
