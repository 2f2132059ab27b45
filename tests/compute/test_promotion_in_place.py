"""A reader goes on as the writer, with its engine and its sessions, on six real storage nodes with real engines."""

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from aurora_ray.compute import reader as reader_module
from aurora_ray.compute.config import InstanceConfig
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.postgres import promotion
from aurora_ray.engine.postgres.install import find_install, stage
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import EngineError
from aurora_ray.mount.driver import Driver
from aurora_ray.mount.mount import MountedVolume
from aurora_ray.volume.follow.follower import Follower
from tests.compute.test_promotion import (  # noqa: F401  (fixtures)
    CONTENT,
    NEVER,
    TIMELINE,
    MakeConfig,
    Opened,
    _account,
    _copied,
    administrator,
    cluster,
    connect,
    execute,
    make_config,
    one,
    opened,
    shared_dir,
    shows,
)
from tests.support.stack_export import export
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(600),
    pytest.mark.allowed_logs(
        r"ExecuteBatchError raised in core", r"the lease of reader", r".* ends: ", r"epoch \d+", r"does not start by"
    ),
]


async def load(config: InstanceConfig, acknowledged: list[int], first: int) -> None:
    """Numbers go into a table, one a transaction, until the writer dies."""
    n = first
    try:
        async with await connect(config) as session:
            while True:
                await session.execute("insert into t values (%s, repeat('x', 200))", (n,))
                await session.execute("update u set v = v + 1 where k = %s", (n % 1000,))
                acknowledged.append(n)
                n += 1
    except psycopg.Error:
        pass


async def killed_under_load(writer: Writer, acknowledged: list[int], first: int, seconds: float) -> None:
    loads = [asyncio.create_task(load(writer.config, acknowledged, first + 1_000_000 * i)) for i in range(4)]
    await asyncio.sleep(seconds)  # not synchronisation: some load, whatever it does
    os.kill(writer.status().pid, signal.SIGKILL)
    await asyncio.gather(*loads)


async def has_all(config: InstanceConfig, acknowledged: list[int]) -> None:
    """What was acknowledged is there, and what is there is consistent with itself."""
    rows = {row[0] for row in await execute(config, "select n from t")}
    assert set(acknowledged) <= rows
    assert len(rows - set(acknowledged)) <= 8, "what was on its way"
    (seen,) = await execute(
        config, "set enable_indexscan = off", "set enable_bitmapscan = off", "select count(*) from t"
    )
    (by_index,) = await execute(config, "set enable_seqscan = off", "select count(*) from t where n >= -1")
    assert seen == by_index
    await execute(config, "create extension if not exists amcheck")
    indexes = (
        "select count(bt_index_check(indexrelid, true)) from pg_index where indrelid in ('t'::regclass, 'u'::regclass)"
    )
    assert await execute(config, indexes) == [(2,)]
    assert await execute(config, "select * from verify_heapam('t') union all select * from verify_heapam('u')") == []
    (updates,) = await execute(config, "select sum(v) from u")
    assert updates[0] >= len(acknowledged) - 1, "one each, but of what a test has added itself"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes and both engines share this machine, and this event loop."""
    monkeypatch.setattr(reader_module, "PROMOTE_TIMEOUT_S", scaled(30))


@pytest.fixture
async def pair(make_config: MakeConfig, opened: Opened) -> tuple[Writer, Reader]:  # noqa: F811
    writer = Writer(make_config(Role.WRITER))
    await opened(writer)
    await execute(
        writer.config,
        "create table t (n int primary key, filler text)",
        "create table u as select k, 0 v from generate_series(0, 999) k",
        "create index on u (k)",
        "create unlogged table gone as select 1 n",
    )
    reader = Reader(make_config(Role.READER))
    await opened(reader)
    await shows(writer, reader)
    return writer, reader


def as_writer(reader: Reader) -> InstanceConfig:
    return replace(reader.config, role=Role.WRITER, initialise=False)


async def test_a_reader_goes_on_as_the_writer_with_its_sessions(
    pair: tuple[Writer, Reader],
    opened: Opened,  # noqa: F811
) -> None:
    writer, reader = pair
    acknowledged: list[int] = []
    async with await connect(reader.config) as session:
        assert await one(session, "select pg_is_in_recovery()") == (True,)
        await session.execute("set application_name = 'lives on'")
        await killed_under_load(writer, acknowledged, 0, 3.0)
        promoted, _ = await reader.promote(as_writer(reader))
        reader.succeeded()
        try:
            await session.execute("insert into t values (-1, 'first')")
            assert await one(session, "select pg_is_in_recovery(), current_setting('application_name')") == (
                False,
                "lives on",
            )
            acknowledged.append(-1)
            await writer.wait_ended()
            await has_all(promoted.config, acknowledged)
            await killed_under_load(promoted, acknowledged, 10_000_000, 2.0)
            await promoted.wait_ended()
        finally:
            await promoted.stop()
    again = Writer(as_writer(reader))
    await opened(again)
    await has_all(again.config, acknowledged)
    assert await execute(again.config, "select count(*) from gone") == [(0,)]


async def test_other_readers_follow_with_their_sessions(
    pair: tuple[Writer, Reader],
    make_config: MakeConfig,  # noqa: F811
    opened: Opened,  # noqa: F811
) -> None:
    writer, reader = pair
    await opened(other := Reader(make_config(Role.READER)))
    session = await connect(other.config)
    acknowledged: list[int] = []
    await killed_under_load(writer, acknowledged, 0, 1.0)
    promoted, _ = await reader.promote(as_writer(reader))
    reader.succeeded()
    try:
        await execute(promoted.config, "insert into t values (-1, 'first')")
        await shows(promoted, other)
        rows = {n for (n,) in await (await session.execute("select n from t")).fetchall()}
        assert {-1, *acknowledged} <= rows
        await opened(late := Reader(make_config(Role.READER)))
        assert {n for (n,) in await execute(late.config, "select n from t")} == rows
    finally:
        await session.close()
        await promoted.stop()


@pytest.mark.parametrize(
    ("of", "fails"),
    [(Reader, "_drain"), (PostgresEngine, "succession"), (MountedVolume, "exchange"), (PostgresEngine, "promote")],
)
async def test_what_fails_on_the_way_leaves_a_place_to_be_opened_anew(
    pair: tuple[Writer, Reader],
    opened: Opened,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    of: type,
    fails: str,
) -> None:
    writer, reader = pair
    acknowledged: list[int] = []
    await killed_under_load(writer, acknowledged, 0, 1.0)

    async def fail(*_: object, **__: object) -> None:
        raise EngineError("on purpose")

    monkeypatch.setattr(of, fails, fail)
    with pytest.raises(EngineError, match="on purpose"):
        await reader.promote(as_writer(reader))
    assert not (await reader.wait_ended()).asked
    await opened(again := Writer(as_writer(reader)))
    await has_all(again.config, acknowledged)


@pytest.mark.parametrize("goes_on", [False, True])
async def test_no_checkpoint_counts_before_the_volume_has_all_pages(
    pair: tuple[Writer, Reader],
    opened: Opened,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    goes_on: bool,
) -> None:
    writer, reader = pair
    acknowledged: list[int] = []
    await killed_under_load(writer, acknowledged, 0, 1.0)
    go, settle = asyncio.Event(), Driver._settle

    async def held(driver: Driver) -> None:
        await go.wait()
        await settle(driver)

    monkeypatch.setattr(Driver, "_settle", held)
    promoted, _ = await reader.promote(as_writer(reader))
    reader.succeeded()
    try:
        await execute(promoted.config, "insert into t values (-1, 'first')")
        acknowledged.append(-1)
        checkpoint = asyncio.create_task(execute(promoted.config, "checkpoint"))
        await killed_session_load(promoted, acknowledged)
        assert not checkpoint.done()
        if goes_on:
            go.set()
            await checkpoint
        os.kill(promoted.status().pid, signal.SIGKILL)
        await promoted.wait_ended()
        await asyncio.gather(checkpoint, return_exceptions=True)
    finally:
        await promoted.stop()
    await opened(again := Writer(as_writer(reader)))
    await has_all(again.config, acknowledged)


async def killed_session_load(writer: Writer, acknowledged: list[int]) -> None:
    """Some more numbers, of one session."""
    async with await connect(writer.config) as session:
        for n in range(50_000_000, 50_000_300):
            await session.execute("insert into t values (%s, repeat('x', 200))", (n,))
            await session.execute("update u set v = v + 1 where k = %s", (n % 1000,))
            acknowledged.append(n)


@pytest.mark.parametrize(
    ("did", "why"),
    [
        (["alter system set archive_mode = on"], "archive_mode"),
        (["alter system set summarize_wal = on", "select pg_reload_conf()"], "summarize_wal"),
        (["select pg_create_physical_replication_slot('theirs', true)"], "replication slots"),
        (["create database copied template template1 strategy file_copy"], "copied as files"),
    ],
)
async def test_what_the_argument_does_not_cover_is_refused(
    pair: tuple[Writer, Reader],
    opened: Opened,  # noqa: F811
    did: list[str],
    why: str,
) -> None:
    writer, reader = pair
    await execute(writer.config, *did)
    acknowledged: list[int] = []
    await killed_under_load(writer, acknowledged, 0, 1.0)
    with pytest.raises(EngineError, match=why):
        await reader.promote(as_writer(reader))
    assert not (await reader.wait_ended()).asked
    await opened(again := Writer(as_writer(reader)))
    await has_all(again.config, acknowledged)


async def flushes(config: InstanceConfig, first: int, last: int) -> list[int]:
    """Where flushes end, from the first to the last."""
    ends = [first]
    follower = Follower.open(config.volume, config.nodes, after_lsn=first, az="a")
    async for flush in follower:
        ends.append(flush.end)
        if flush.end >= last:
            break
    await follower.close()
    return ends


@pytest.mark.long
async def test_wherever_it_is_cut_short_the_next_opening_has_what_was_acknowledged(
    make_config: MakeConfig,  # noqa: F811
    shared_dir: Path,  # noqa: F811
    opened: Opened,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After flushes from the old writer's end to the first checkpoint of the new one. The reader wrote pages at its
    restartpoint; the writer changed them after that and wrote a checkpoint: so what the reader holds in its mount is
    older than the redo point of the volume, and what it replayed since is in its buffers only."""
    writer, reader = Writer(make_config(Role.WRITER)), Reader(make_config(Role.READER))
    await opened(writer)
    await opened(reader)
    await execute(
        writer.config,
        "create table t as select generate_series(1, 3000) i",
        "create unlogged table u as select 1 as i",
        "create table other (i int)",
        "checkpoint",
    )
    await shows(writer, reader)
    await execute(reader.config, "checkpoint")
    await execute(
        writer.config,
        "insert into t select generate_series(3001, 5000)",
        "create index on t (i)",
        "delete from t where i % 2 = 0",
        "checkpoint",
        "begin; create table undecided (i int); prepare transaction 'open'",
    )
    (expected,) = await execute(writer.config, CONTENT)
    await shows(writer, reader)
    before = writer.status().vdl
    os.kill(writer.status().pid, signal.SIGKILL)
    await writer.wait_ended()
    promoted, _ = await reader.promote(as_writer(reader))
    reader.succeeded()
    try:
        assert await execute(promoted.config, TIMELINE) == [(2,)]
        assert await execute(promoted.config, CONTENT) == [(*expected[:2], 0, *expected[3:])]
        mounted = promoted._mounted
        assert mounted is not None
        await mounted.wait_settled()
        await execute(promoted.config, "checkpoint")
        config = promoted.config
        ends = await flushes(config, before, promoted.status().vdl)  # while nodes hear how far all is durable
    finally:
        await promoted.stop(StopMode.KILL)
    account = find_account("aurora-ray")
    install = stage(find_install(None), account, shared_dir / "engines")
    place = shared_dir / "in-place"
    place.mkdir(mode=0o755)
    for number, lsn in enumerate(sorted({*ends[:6], *ends[6 :: max(1, len(ends) // 10)], ends[-1]})):
        copy = place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        await export(config.volume, config.nodes, lsn, place / "as-of", account)
        await asyncio.to_thread(_copied, place / "as-of", copy)
        engine = PostgresEngine(install, account, place / "run", parameters={"max_prepared_transactions": "5"})
        monkeypatch.setattr(promotion, "WAL_BYTES_MIN", (0, NEVER)[number % 2])
        await engine.start(copy)
        try:
            async with await administrator(engine) as session:
                assert await one(session, CONTENT) == (*expected[:2], 0, *expected[3:]), f"as of {lsn}"
                await session.execute("create extension if not exists amcheck")
                await session.execute(
                    "select bt_index_check(indexrelid, true) from pg_index where indrelid = 't'::regclass"
                )
        finally:
            await engine.stop(StopMode.KILL)
