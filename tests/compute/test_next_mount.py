"""What makes the next opening quick: names in waiting, and the pages that a recovery reads brought ahead of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aurora_ray.compute import names
from aurora_ray.compute.config import EngineChoice, InstanceConfig
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import Bring
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import ConfigurationError
from aurora_ray.mount import discarding
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator
from tests.volume.cluster import Cluster, running

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(180),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r".* ends: ", r"epoch \d+"),
]


@pytest.fixture(scope="module", autouse=True)
def _account() -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    path = run_dir / "next"
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


async def execute(config: InstanceConfig, *statements: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(
        host="127.0.0.1",
        port=config.port,
        user="postgres",
        password=config.superuser_password,
        dbname="postgres",
        autocommit=True,
    ) as session:
        for statement in statements:
            cursor = await session.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def kill(writer: Writer, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await writer.wait_ended()


async def in_waiting(config: InstanceConfig) -> Path:
    ready = discarding.waiting(config.dirs.mount, str(config.volume.volume_id))
    await poll_until(ready.exists, timeout_s=30, interval_s=0.02)
    return ready


async def test_a_writer_that_is_killed_is_mounted_anew_on_names_that_were_in_waiting(
    config: InstanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "AFTER_S", 0.0)
    writer = Writer(config)
    opened = await writer.start()
    inode = (await in_waiting(config)).stat().st_ino
    await execute(config, "create table t as select generate_series(1, 20000) i", "create database other")
    await kill(writer, opened.pid)
    again = Writer(replace(config, initialise=False))
    await again.start()
    assert config.dirs.mount.stat().st_ino == inode
    assert await execute(config, "select count(*), sum(i) from t") == [(20000, 200010000)]
    assert await execute(config, "select datname from pg_database where datname = 'other'") == [("other",)]
    await again.stop()


async def test_names_in_waiting_follow_the_volume(config: InstanceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "AFTER_S", 0.0)
    monkeypatch.setattr(names, "EVERY_S", 0.2)
    monkeypatch.setattr(names, "PAUSE_FACTOR", 0)
    writer = Writer(config)
    await writer.start()
    ready = await in_waiting(config)
    await execute(config, "create table t (i int)")
    (path,) = (await execute(config, "select pg_relation_filepath('t')"))[0]
    await poll_until((ready / str(path)).exists, timeout_s=30, interval_s=0.02)
    await writer.stop()


async def test_a_reader_keeps_names_in_waiting_as_well(
    config: InstanceConfig, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "AFTER_S", 0.0)
    writer = Writer(config)
    await writer.start()
    port = ports.allocate()
    beside = replace(config, instance_id=f"demo-{port}", port=port, role=Role.READER, initialise=False)
    reader = Reader(beside)
    await reader.start()
    inode = (await in_waiting(beside)).stat().st_ino
    await reader.stop()
    again = Reader(beside)
    await again.start()
    assert beside.dirs.mount.stat().st_ino == inode
    await again.stop()
    await writer.stop()


async def test_names_that_are_being_made_when_the_incarnation_ends_do_not_stay_half_made(
    config: InstanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "AFTER_S", 0.0)
    monkeypatch.setattr(names, "AT_ONCE", 1)
    monkeypatch.setattr(names, "REST_FACTOR", 1000)
    monkeypatch.setattr(names, "REST_S", 0.05)
    writer = Writer(config)
    await writer.start()
    root = config.dirs.mount.parent
    made = f"{config.dirs.mount.name}.ready-"
    await poll_until(lambda: any(path.name.startswith(made) for path in root.iterdir()), timeout_s=30)
    await writer.stop()
    await poll_until(
        lambda: not any(path.name.startswith(made) for path in root.iterdir()), timeout_s=5, interval_s=0.02
    )


FILL = (
    "create table t (i int primary key, filler text)",
    "insert into t select i, repeat('x', 700) from generate_series(1, 30000) i",
    "vacuum t",
    "checkpoint",
)
# Row after row from all over the table, as clients do it.
CHANGE = (
    "set enable_hashjoin = off",
    "set enable_mergejoin = off",
    "set enable_seqscan = off",
    "update t set filler = repeat('y', 600) "
    "from (select 7 * i as n from generate_series(1, 4285) i order by random()) r where t.i = r.n",
)


async def test_what_a_recovery_reads_is_what_was_brought_before_it(
    config: InstanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = (("checkpoint_timeout", "1h"), ("autovacuum", "off"))
    writer = Writer(replace(config, parameters=parameters))
    opened = await writer.start()
    await execute(config, *FILL, *CHANGE)
    await kill(writer, opened.pid)
    foresee, start = PostgresEngine.foresee, PostgresEngine.start
    brought, fetched = asyncio.Event(), list[int]()

    async def foresee_first(self: PostgresEngine, data_dir: Path, bring: Bring, pages_max: int) -> None:
        await foresee(self, data_dir, bring, pages_max)
        brought.set()

    async def start_then(self: PostgresEngine, data_dir: Path, *, moved: Callable[[], Any], **options: Any) -> None:
        await brought.wait()
        fetched.append(moved())
        await start(self, data_dir, moved=moved, **options)
        fetched.append(moved())

    monkeypatch.setattr(PostgresEngine, "foresee", foresee_first)
    monkeypatch.setattr(PostgresEngine, "start", start_then)
    again = Writer(replace(config, initialise=False, parameters=parameters))
    await again.start()
    before, after = fetched
    assert before > 2000
    assert after - before < before / 10, "what it reads besides is catalogs"
    count = "select count(*), count(*) filter (where filler like 'y%') from t"
    assert await execute(config, count) == [(30000, 4285)]
    await again.stop()
