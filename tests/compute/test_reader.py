"""Readers on six real storage nodes with real engines: they follow a writer, its death, and each other."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from aurora_ray.compute.commands import WriteBack
from aurora_ray.compute.config import EngineChoice, InstanceConfig, Outcome
from aurora_ray.compute.instance import Instance
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.errors import ConfigurationError
from aurora_ray.storage.pages.garbage import live_read_points
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator
from tests.support.timing import scaled
from tests.volume.cluster import Cluster, running

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"the lease of reader"),  # on a busy machine
]
ENDS = pytest.mark.allowed_logs(r".* ends: ", r"epoch \d+")
PASSWORD = "correct horse"  # noqa: S105


@pytest.fixture(scope="module", autouse=True)
def _account() -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    """Images and engines are made once for the module."""
    path = run_dir / "reader"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as six:
        yield six


class Fleet:
    """A writer and readers of one volume."""

    def __init__(self, cluster: Cluster, shared_dir: Path, ports: PortAllocator) -> None:
        self.cluster, self._ports = cluster, ports
        self.writer_config = self._config(shared_dir, Role.WRITER)
        self.reader_config = self._config(shared_dir, Role.READER)
        self.writer = Writer(self.writer_config)
        self.reader = Reader(self.reader_config)

    def _config(self, shared_dir: Path, role: Role) -> InstanceConfig:
        port = self._ports.allocate()
        return InstanceConfig(
            cluster="demo",
            instance_id=f"demo-{port}",
            az="a",
            volume=self.cluster.spec,
            nodes=tuple(self.cluster.addresses),
            engine=EngineChoice("postgres", "", shared_dir),
            port=port,
            superuser_password=PASSWORD,
            role=role,
            initialise=role is Role.WRITER,
            open_timeout_s=scaled(120),
            stop_timeout_s=30,
            parameters=(("max_prepared_transactions", "5"),),
        )

    async def open(self) -> None:
        await self.writer.start()
        await self.reader.start()


async def connect(config: InstanceConfig, database: str = "postgres") -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=config.port, user="postgres", password=PASSWORD, dbname=database, autocommit=True
    )


async def execute(config: InstanceConfig, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
    async with await connect(config, database) as session:
        cursor = await session.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


@pytest.fixture
async def fleet(cluster: Cluster, shared_dir: Path, ports: PortAllocator) -> AsyncIterator[Fleet]:
    six = Fleet(cluster, shared_dir, ports)
    try:
        await six.open()
        yield six
    finally:
        await six.reader.stop()
        await six.writer.stop()


async def caught_up(fleet: Fleet) -> None:
    """The reader shows what is durable now."""
    target = fleet.writer.status().vdl
    await poll_until(lambda: fleet.reader.status().replayed_lsn >= target, what="the reader has replayed it")


async def test_a_reader_sees_commits_and_refuses_writes(fleet: Fleet) -> None:
    await execute(fleet.writer_config, "create table t as select generate_series(1, 1000) i")
    await caught_up(fleet)
    assert await execute(fleet.reader_config, "select count(*) from t") == [(1000,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await execute(fleet.reader_config, "insert into t values (1)")
    status = fleet.reader.status()
    assert status.lag_ms is not None
    assert status.replayed_lsn == status.vdl
    assert status.hand_over.startswith(f"{status.socket_dir}/"), "an endpoint on its machine hands sessions over to it"


async def test_what_changes_files_is_replayed(fleet: Fleet) -> None:
    writer, reader = fleet.writer_config, fleet.reader_config
    await execute(writer, "create table t (i int primary key, s text)")
    await execute(writer, "insert into t select i, repeat('x', 200) from generate_series(1, 3000) i")
    await execute(writer, "create unlogged table u as select 1 as i")
    await execute(writer, "create sequence s")
    await execute(writer, "select nextval('s'), nextval('s')")
    await execute(writer, "create database by_copy strategy file_copy")
    await execute(writer, "create database by_log strategy wal_log")
    await execute(writer, "create table there (i int)", "by_copy")
    await execute(writer, "insert into there values (42)", "by_copy")
    ((large,),) = await execute(writer, "select lo_from_bytea(0, 'large')")
    await execute(writer, "delete from t where i % 3 = 0")
    await execute(writer, "vacuum full t")
    await execute(writer, "checkpoint")
    await execute(writer, "create index on t (s)")
    await execute(writer, "drop database by_log")
    await execute(writer, "alter system set work_mem = '12MB'")
    async with await connect(writer) as session:
        await session.execute("set allow_in_place_tablespaces = on")
        await session.execute("create tablespace elsewhere location ''")
        await session.execute("create table moved tablespace elsewhere as select generate_series(1, 2000) i")
        await session.execute("create extension pg_trgm")
        await session.execute("create table words as select md5(i::text) word from generate_series(1, 500) i")
        await session.execute("create index on words using gin (word gin_trgm_ops)")
        for name in ("done", "undecided"):
            await session.execute("begin")
            await session.execute(f"create table {name} as select 1 as i")
            await session.execute(f"prepare transaction '{name}'")
        await session.execute("commit prepared 'done'")
    await caught_up(fleet)

    async def has_the_setting() -> bool:
        return await execute(reader, "show work_mem") == [("12MB",)]

    await poll_until(has_the_setting, 20, what="the writer's setting reaches the reader")
    count = "select count(*), sum(i) from t"
    assert await execute(reader, count) == await execute(writer, count)
    assert await execute(reader, f"select convert_from(lo_get({large}), 'UTF8')") == [("large",)]
    assert await execute(reader, "select i from there", "by_copy") == [(42,)]
    assert await execute(reader, "select last_value >= 2 from s") == [(True,)]
    assert await execute(reader, "select count(*), sum(i) from moved") == [(2000, 2001000)]
    async with await connect(reader) as session:
        await session.execute("set enable_seqscan = off")
        cursor = await session.execute("select count(*) from words where word like '%abc%'")
        found = await cursor.fetchall()
    assert found == await execute(writer, "select count(*) from words where word like '%abc%'")
    assert await execute(reader, "select to_regclass('done') is null, to_regclass('undecided') is null") == [
        (False, True)
    ]
    assert await execute(writer, "rollback prepared 'undecided'") == []
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="unlogged"):
        await execute(reader, "select * from u")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        await connect(reader, "by_log")


@ENDS
async def test_a_session_outlives_its_writer_and_follows_the_next_one(fleet: Fleet) -> None:
    await execute(fleet.writer_config, "create table t as select generate_series(1, 10) i")
    await caught_up(fleet)
    session = await connect(fleet.reader_config)
    cursor = await session.execute("select count(*) from t")
    assert await cursor.fetchall() == [(10,)]
    open_ = await connect(fleet.writer_config)
    await open_.execute("begin")
    await open_.execute("insert into t select generate_series(1, 2000)")
    os.kill(fleet.writer.status().pid, signal.SIGKILL)
    await fleet.writer.wait_ended()
    await open_.close()
    cursor = await session.execute("select count(*) from t")
    assert await cursor.fetchall() == [(10,)]
    fleet.writer = Writer(replace(fleet.writer_config, initialise=False))
    await fleet.writer.start()
    await execute(fleet.writer_config, "insert into t values (11)")
    await caught_up(fleet)
    cursor = await session.execute("select count(*), max(i) from t")
    assert await cursor.fetchall() == [(11, 11)]
    await session.close()


async def test_readers_come_and_go_and_leave_nothing(fleet: Fleet, shared_dir: Path) -> None:
    await execute(fleet.writer_config, "create table t as select generate_series(1, 10) i")
    second = Reader(fleet._config(shared_dir, Role.READER))
    await second.start()
    assert await execute(second.config, "select count(*) from t") == [(10,)]
    first = fleet.reader
    ended = await first.stop()
    assert ended == Outcome(asked=True, reason="it was asked to stop")
    assert not first.config.dirs.mount.exists()
    assert "immediate shutdown request" in (first.config.dirs.run / "postgres.log").read_text(), "nothing is written"
    await execute(fleet.writer_config, "insert into t values (11)")
    fleet.reader = Reader(fleet.reader_config)
    await fleet.reader.start()
    assert await execute(fleet.reader_config, "select count(*) from t") == [(11,)]
    target = fleet.writer.status().vdl
    await poll_until(lambda: second.status().replayed_lsn >= target, what="the second reader has it too")
    assert await execute(second.config, "select count(*) from t") == [(11,)]
    await second.stop()
    await fleet.reader.stop()
    for server in fleet.cluster.servers.values():
        points = server.node.volumes[fleet.cluster.spec.volume_id.bytes].read_points
        mine = {holder: point for holder, point in points.items() if holder.startswith("reader")}
        assert not list(live_read_points(mine, server.node.clock()))


@ENDS
async def test_a_killed_reader_is_opened_anew_though_nobody_writes(fleet: Fleet) -> None:
    os.kill(fleet.reader.status().pid, signal.SIGKILL)
    outcome = await fleet.reader.wait_ended()
    assert outcome.retryable
    assert "killed by signal 9" in outcome.reason
    await fleet.writer.stop()
    fleet.reader = Reader(fleet.reader_config)
    await fleet.reader.start()
    assert await execute(fleet.reader_config, "select pg_is_in_recovery()") == [(True,)]


@ENDS
async def test_a_reader_ends_to_be_opened_anew_when_its_writer_gets_larger_settings(fleet: Fleet) -> None:
    await fleet.writer.stop()
    larger = replace(fleet.writer_config, initialise=False, parameters=(("max_prepared_transactions", "7"),))
    fleet.writer = Writer(larger)
    await fleet.writer.start()
    async with asyncio.timeout(scaled(60)):
        outcome = await fleet.reader.wait_ended()
    assert outcome.retryable
    assert "larger settings" in outcome.reason
    async with await connect(fleet.writer_config) as session:
        await session.execute("create table t (i int)")
        await session.execute("begin")
        await session.execute("insert into t values (1)")
        await session.execute("prepare transaction 'open'")
    fleet.reader = Reader(fleet.reader_config)
    await fleet.reader.start()
    assert await execute(fleet.reader_config, "show max_prepared_transactions") == [("7",)]
    assert await execute(fleet.reader_config, "select count(*) from t") == [(0,)]
    await execute(fleet.writer_config, "commit prepared 'open'")
    await caught_up(fleet)
    assert await execute(fleet.reader_config, "select count(*) from t") == [(1,)]


async def test_a_reader_changes_places_with_its_writer(fleet: Fleet) -> None:
    """As the control plane goes about it; what the writer wrote back before its end is not for its end to write."""
    await execute(fleet.writer_config, "create table t as select generate_series(1, 5000) i")
    redo = "select redo_lsn from pg_control_checkpoint()"
    before = await execute(fleet.writer_config, redo)
    await fleet.writer.do(WriteBack(60.0))
    assert await execute(fleet.writer_config, redo) != before
    await fleet.reader.do(WriteBack(60.0))  # it was the writer a moment ago: nothing
    former = Instance()
    former._open = fleet.writer
    await asyncio.gather(former.stop(fast=True, reopens=True), fleet.reader.stop(reopens=True))
    places = fleet.writer_config, fleet.reader_config
    for place in places:
        assert not place.dirs.mount.exists()
        assert list(place.dirs.mount.parent.glob(f"{place.dirs.mount.name}.old-*")), "nobody waited for its removal"
    fleet.writer_config = replace(places[1], role=Role.WRITER)
    fleet.reader_config = replace(places[0], role=Role.READER, initialise=False)
    fleet.writer, fleet.reader = Writer(fleet.writer_config), Reader(fleet.reader_config)
    await fleet.open()
    await execute(fleet.writer_config, "insert into t values (0)")
    await caught_up(fleet)
    assert await execute(fleet.reader_config, "select count(*) from t") == [(5001,)]


async def test_lag_grows_while_the_engine_replays_nothing(fleet: Fleet) -> None:
    await execute(fleet.writer_config, "create table t (i int)")
    await caught_up(fleet)
    await poll_until(lambda: fleet.reader.status().lag_ms == 0.0, what="nothing is missing")
    await execute(fleet.reader_config, "select pg_wal_replay_pause()")
    await execute(fleet.writer_config, "insert into t values (1)")
    begun_s = time.monotonic()
    await poll_until(lambda: (fleet.reader.status().lag_ms or 0) > 300, what="the lag is seen")
    assert (fleet.reader.status().lag_ms or 0) <= (time.monotonic() - begun_s) * 1e3 + 1000
    assert fleet.reader.status().replayed_lsn < fleet.reader.status().vdl
    await execute(fleet.reader_config, "select pg_wal_replay_resume()")
    await caught_up(fleet)
    await poll_until(lambda: fleet.reader.status().lag_ms == 0.0, what="it is there again")
