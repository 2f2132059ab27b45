"""Openings whose recovery ends by promotion, on six real storage nodes with real engines: readers follow to the next
timeline with their sessions, and wherever such an opening is cut short, nothing is lost and nothing made up."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from aurora_ray.compute.config import EngineChoice, InstanceConfig
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.postgres import promotion
from aurora_ray.engine.postgres.install import discover, find_install, stage
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import ConfigurationError
from aurora_ray.volume.follow.follower import Follower
from tests.support.leaks import remove_tree
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator
from tests.support.stack_export import export
from tests.support.timing import scaled
from tests.volume.cluster import Cluster, running

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(600),
    pytest.mark.allowed_logs(
        r"ExecuteBatchError raised in core", r"the lease of reader", r".* ends: ", r"epoch \d+", r"does not start by"
    ),
]
PASSWORD = "correct horse"  # noqa: S105
NEVER = 1 << 40


@pytest.fixture(scope="module", autouse=True)
def _account() -> None:
    try:
        find_account("aurora-ray")
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to replay."""
    monkeypatch.setattr(promotion, "WAL_BYTES_MIN", 0)


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    """Images and engines are made once for the module."""
    path = run_dir / "promotion"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as six:
        yield six


MakeConfig = Callable[..., InstanceConfig]
Opened = Callable[[Writer | Reader], Awaitable[None]]


@pytest.fixture
def make_config(cluster: Cluster, shared_dir: Path, ports: PortAllocator) -> MakeConfig:
    def make(role: Role, version: str = "") -> InstanceConfig:
        port = ports.allocate()
        return InstanceConfig(
            cluster="demo",
            instance_id=f"demo-{port}",
            az="a",
            volume=cluster.spec,
            nodes=tuple(cluster.addresses),
            engine=EngineChoice("postgres", version, shared_dir),
            port=port,
            superuser_password=PASSWORD,
            role=role,
            initialise=role is Role.WRITER,
            open_timeout_s=scaled(120),
            stop_timeout_s=30,
            parameters=(("max_prepared_transactions", "5"),),
        )

    return make


async def connect(config: InstanceConfig) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=config.port, user="postgres", password=PASSWORD, dbname="postgres", autocommit=True
    )


async def execute(config: InstanceConfig, *statements: str) -> list[tuple[object, ...]]:
    async with await connect(config) as session:
        for statement in statements:
            cursor = await session.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def one(session: psycopg.AsyncConnection[tuple[object, ...]], statement: str) -> tuple[object, ...]:
    rows = await (await session.execute(statement.encode())).fetchall()
    return rows[0]


TIMELINE = "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"


async def killed_and_opened(writer: Writer, opened: Opened) -> Writer:
    os.kill(writer.status().pid, signal.SIGKILL)
    await writer.wait_ended()
    again = Writer(replace(writer.config, initialise=False))
    await opened(again)
    return again


async def shows(writer: Writer, reader: Reader) -> None:
    target = writer.status().vdl
    await poll_until(lambda: reader.status().replayed_lsn >= target, scaled(30), what="the reader has replayed it")


@pytest.fixture
async def opened(cluster: Cluster) -> AsyncIterator[Opened]:
    assert cluster, "it ends after them"
    everybody: list[Writer | Reader] = []

    async def open_(one: Writer | Reader) -> None:
        everybody.append(one)
        await one.start()

    yield open_
    for each in reversed(everybody):
        await each.stop()


MAJORS = sorted({each.major for each in discover()}, reverse=True)
VERSIONS = pytest.mark.parametrize(
    "version",
    [pytest.param(str(major), marks=[pytest.mark.long] * bool(number)) for number, major in enumerate(MAJORS)],
)


@VERSIONS
async def test_readers_keep_their_sessions_while_the_writer_goes_from_timeline_to_timeline(
    make_config: MakeConfig, opened: Opened, version: str
) -> None:
    writer, reader = Writer(make_config(Role.WRITER, version)), Reader(make_config(Role.READER, version))
    await opened(writer)
    await opened(reader)
    config = writer.config
    await execute(config, "create table t as select generate_series(1, 1000) i")
    await shows(writer, reader)
    session = await connect(reader.config)
    seen = [await one(session, "select count(*) from t")]
    for number in range(2, 5):
        await execute(config, "begin; create table gone (i int); rollback", "checkpoint")
        await execute(config, f"alter table t add column c{number} int default {number}", "insert into t values (0)")
        writer = await killed_and_opened(writer, opened)
        assert await execute(config, TIMELINE) == [(number,)]
        assert await execute(config, "select pg_is_in_recovery()") == [(False,)]
        seen.append(await one(session, "select count(*) from t"))
        await execute(config, "insert into t values (0)", f"create table t{number} as select {number} as i")
        await shows(writer, reader)
        seen.append(await one(session, "select count(*) from t"))
        assert await one(session, f"select i from t{number}") == (number,)  # noqa: S608
        whole = f"select count(*) from t where c{number} = {number}"  # noqa: S608
        assert await one(session, whole) == seen[-1]
    assert seen == sorted(seen)
    assert seen[-1] == (1006,)
    log = (reader.config.dirs.run / "postgres.log").read_text()
    assert "error reading result" not in log, "the receiver takes the end of a timeline as such"
    assert "unexpected result" not in log
    late = Reader(make_config(Role.READER, version))  # of a volume with four timelines
    await opened(late)
    assert await execute(late.config, "select count(*) from t") == [(1006,)]
    await writer.stop()
    writer = Writer(replace(config, initialise=False))
    await opened(writer)
    await execute(config, "insert into t values (0)")
    await shows(writer, late)
    await shows(writer, reader)
    assert await one(session, "select count(*) from t") == (1007,)
    await session.close()


async def test_a_reader_that_was_away_during_two_switches_follows_them_all(
    make_config: MakeConfig, opened: Opened
) -> None:
    writer, reader = Writer(make_config(Role.WRITER)), Reader(make_config(Role.READER))
    await opened(writer)
    await opened(reader)
    config = writer.config
    await execute(config, "create table t as select generate_series(1, 1000) i")
    await shows(writer, reader)
    session = await connect(reader.config)
    ((receiver,),) = await execute(reader.config, "select pid from pg_stat_wal_receiver")
    assert isinstance(receiver, int)
    os.kill(receiver, signal.SIGSTOP)
    await execute(config, "select pg_switch_wal()")
    for _ in range(2):
        await execute(config, "insert into t values (0)", "checkpoint")
        await execute(config, "insert into t values (0)")
        writer = await killed_and_opened(writer, opened)
        await execute(config, "insert into t values (0)")
    assert await execute(config, TIMELINE) == [(3,)]
    assert await one(session, "select count(*) from t") == (1000,)
    os.kill(receiver, signal.SIGCONT)
    await shows(writer, reader)
    assert await one(session, "select count(*) from t") == (1006,)
    await opened(writer_end := Reader(make_config(Role.READER)))
    assert await execute(writer_end.config, "select count(*) from t") == [(1006,)]
    await session.close()


async def test_a_timeline_that_came_to_nothing_leads_nobody_astray(make_config: MakeConfig, opened: Opened) -> None:
    """As an opening leaves it that ends between its history file and the record that makes it count."""
    writer, reader = Writer(make_config(Role.WRITER)), Reader(make_config(Role.READER))
    await opened(writer)
    await opened(reader)
    config = writer.config
    await execute(config, "create table t as select generate_series(1, 1000) i")
    directory = config.dirs.mount / "pg_wal"
    await execute(config, f"copy (select '1', pg_current_wal_lsn(), 'nothing') to '{directory}/00000002.history'")
    await execute(config, "insert into t values (0)")
    late = Reader(make_config(Role.READER))
    await opened(late)
    assert await execute(late.config, "select count(*) from t") == [(1001,)]
    writer = await killed_and_opened(writer, opened)
    assert await execute(config, TIMELINE) == [(3,)]
    await execute(config, "insert into t values (0)")
    for each in (late, reader):
        await shows(writer, each)
        assert await execute(each.config, "select count(*) from t") == [(1002,)]


async def test_without_a_checkpoint_since_the_last_promotion_and_with_slots_recovery_ends_as_ever(
    make_config: MakeConfig, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(make_config(Role.WRITER))
    await opened(writer)
    config = writer.config
    await execute(config, "create table t as select 1 as i")
    writer = await killed_and_opened(writer, opened)
    await execute(config, "insert into t values (2)")
    monkeypatch.setattr("aurora_ray.engine.postgres.promotion.Promotion", None)  # none is made
    writer = await killed_and_opened(writer, opened)
    assert await execute(config, TIMELINE) == [(2,)]
    assert await execute(config, "select count(*) from t") == [(2,)]
    await execute(config, "checkpoint", "select pg_create_physical_replication_slot('slot', true)", "checkpoint")
    await execute(config, "insert into t values (3)")
    writer = await killed_and_opened(writer, opened)
    assert await execute(config, "select slot_name, (select count(*) from t) from pg_replication_slots") == [
        ("slot", 3)
    ]
    await writer.stop()


CONTENT = (
    "select (select count(*) from t), (select sum(i) from t), (select count(*) from u), (select count(*) from other), "
    "(select array_agg(gid) from pg_prepared_xacts), (select to_regclass('undecided') is null)"
)


@pytest.mark.long
@VERSIONS
async def test_wherever_an_opening_is_cut_short_the_next_ones_have_what_was_acknowledged_and_go_on(
    make_config: MakeConfig, shared_dir: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """After each flush of the opening, for that is what can be durable when it ends, and by both ways to go on."""
    writer = Writer(make_config(Role.WRITER, version))
    await opened(writer)
    await execute(
        writer.config,
        "create table t as select generate_series(1, 3000) i",
        "create unlogged table u as select 1 as i",
        "create table other (i int)",
        "checkpoint",
        "insert into t select generate_series(3001, 5000)",
        "create index on t (i)",
        "begin; create table undecided (i int); prepare transaction 'open'",
        "begin; insert into other values (1); rollback",
        "delete from t where i % 2 = 0",
    )
    (expected,) = await execute(writer.config, CONTENT)
    before = writer.status().vdl
    writer = await killed_and_opened(writer, opened)
    assert await execute(writer.config, TIMELINE) == [(2,)]
    last = writer.status().vdl
    assert await execute(writer.config, CONTENT) == [(*expected[:2], 0, *expected[3:])]
    ends = [before]
    config = writer.config
    follower = Follower.open(config.volume, config.nodes, after_lsn=before, az="a")
    async for flush in follower:
        ends.append(flush.end)
        if flush.end >= last:
            break
    await follower.close()
    account = find_account("aurora-ray")
    install = stage(find_install(version or None), account, shared_dir / "engines")
    place = shared_dir / f"cut-{version}"
    place.mkdir(mode=0o755)
    reached = set()
    for lsn in ends:
        tree = place / "as-of"
        await export(config.volume, config.nodes, lsn, tree, account)
        for ways in ((NEVER, 0, 0), (0, NEVER, 0)):
            copy = place / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            await asyncio.to_thread(_copied, tree, copy)
            engine = PostgresEngine(install, account, place / "run", parameters={"max_prepared_transactions": "5"})
            for number, bytes_min in enumerate(ways):
                monkeypatch.setattr(promotion, "WAL_BYTES_MIN", bytes_min)
                await engine.start(copy)
                try:
                    async with await administrator(engine) as session:
                        found = await one(session, CONTENT)
                        assert found == (*expected[:2], 0, number, *expected[4:]), f"as of {lsn}, by {ways}"
                        await session.execute("insert into other values (2)")
                        reached.add((lsn, number, await one(session, TIMELINE)))
                        if number:
                            await session.execute("checkpoint")
                finally:
                    await engine.stop(StopMode.KILL)
    assert len(ends) >= 4, "it takes several flushes"
    assert (before, 0, (2,)) in reached, "it was promoted"
    assert any(number == 1 and timeline >= (3,) for _, number, timeline in reached), "a number is not used again"


def _copied(source: Path, target: Path) -> None:
    def copy(one: str, other: str) -> str:
        shutil.copy2(one, other)
        stat = os.stat(one)
        os.chown(other, stat.st_uid, stat.st_gid)
        return other

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    for path in (source, *source.rglob("*")):
        if path.is_dir():
            stat = path.stat()
            os.chown(target / path.relative_to(source), stat.st_uid, stat.st_gid)


async def administrator(engine: PostgresEngine) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        host=str(engine.socket_dir), port=engine.port, user="postgres", dbname="postgres", autocommit=True
    )
