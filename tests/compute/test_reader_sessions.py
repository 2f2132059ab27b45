"""What sessions of a writer and its readers are told of their cluster, and what they keep each other from."""

import asyncio
import time
from contextlib import nullcontext
from dataclasses import replace

import psycopg
import pytest

from aurora_ray.compute.commands import AcknowledgeUntil, HoldHorizon, ReplicaStatus
from aurora_ray.engine.base import Horizon, RegionRow, ReplicaRow
from aurora_ray.engine.postgres import functions
from tests.compute.test_reader import Fleet, _account, caught_up, cluster, connect, execute, fleet, shared_dir  # noqa: F401  (fixtures)
from tests.support.polling import poll_until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"the lease of reader"),  # on a busy machine
]
# As the AWS drivers send it.
TOPOLOGY = (
    "SELECT SERVER_ID, CASE WHEN SESSION_ID OPERATOR(pg_catalog.=) 'MASTER_SESSION_ID' THEN TRUE ELSE FALSE END, CPU, "
    "COALESCE(REPLICA_LAG_IN_MSEC, 0), LAST_UPDATE_TIMESTAMP FROM pg_catalog.aurora_replica_status() WHERE "
    "EXTRACT(EPOCH FROM(pg_catalog.NOW() OPERATOR(pg_catalog.-) LAST_UPDATE_TIMESTAMP)) OPERATOR(pg_catalog.<=) 300 "
    "OR SESSION_ID OPERATOR(pg_catalog.=) 'MASTER_SESSION_ID' OR LAST_UPDATE_TIMESTAMP IS NULL"
)

GLOBAL_TOPOLOGY = (
    "SELECT SERVER_ID, CASE WHEN SESSION_ID OPERATOR(pg_catalog.=) 'MASTER_SESSION_ID' THEN TRUE ELSE FALSE END, "
    "VISIBILITY_LAG_IN_MSEC, AWS_REGION FROM pg_catalog.aurora_global_db_instance_status()"
)
GLOBAL_STATUS = (
    "SELECT aws_region, highest_lsn_written, durability_lag_in_msec, rpo_lag_in_msec FROM aurora_global_db_status()"
)


async def test_sessions_know_their_cluster_and_read_their_own_writes(fleet: Fleet) -> None:  # noqa: F811
    now_s = time.time()
    rows = [
        ReplicaRow("one", "MASTER_SESSION_ID", 3.0, 0.0, now_s, "4.1"),
        ReplicaRow("two", "two/17", 1.5, 4.5, now_s, "4.2"),
        ReplicaRow("stale", "stale/1", 1.5, 4.5, now_s - 1000),
    ]
    regions = [
        RegionRow("us-east-1", 100, -1.0, now_s, ((rows[0], 100), (rows[1], 90))),
        RegionRow("eu-west-1", 80, 40.0, now_s, ((replace(rows[1], server_id="three"), 70),)),
    ]
    await execute(fleet.writer_config, "create database other template template0")
    await caught_up(fleet)
    for instance in (fleet.writer, fleet.reader):
        config = instance.config
        assert await execute(config, "select * from aurora_replica_status()") == []
        assert await execute(config, "select * from aurora_global_db_status()") == []
        await instance.do(ReplicaStatus(rows, regions))
        for database in ("postgres", "other"):
            found = await execute(config, TOPOLOGY, database)
            assert [row[:4] for row in found] == [("one", True, 3.0, 0.0), ("two", False, 1.5, 4.5)]
            assert await execute(config, GLOBAL_TOPOLOGY, database) == [
                ("one", True, None, "us-east-1"),
                ("two", False, 4.5, "us-east-1"),
                ("three", False, 44.5, "eu-west-1"),
            ]
            found = await execute(config, GLOBAL_STATUS, database)
            assert found == [("us-east-1", 100, -1.0, -1.0), ("eu-west-1", 80, 40.0, 40.0)]
            assert await execute(config, "select aurora_db_instance_identifier()", database) == [(config.instance_id,)]
        named = replace(rows[0], server_id="one-us-east-1", instance_id=config.instance_id)
        await instance.do(ReplicaStatus([named, *rows[1:]], regions))
        assert await execute(config, "select aurora_db_instance_identifier()") == [("one-us-east-1",)]
        assert (await execute(config, TOPOLOGY))[0][0] == "one-us-east-1"
        assert await execute(config, "select aurora_version() <> ''") == [(True,)]
        await execute(config, "set apg_write_forward.consistency_mode = 'off'")
        assert await execute(config, "show apg_write_forward.consistency_mode") == [("off",)]
        for level in ("eventual", "session", "global"):
            follows = instance is fleet.reader  # what is written at the writer needs not be forwarded
            refused = pytest.raises(psycopg.errors.FeatureNotSupported, match="writes are not forwarded")
            with refused if follows else nullcontext():
                await execute(config, f"set apg_write_forward.consistency_mode = '{level}'")
        seen = await execute(config, "select setting from pg_settings where name = 'rds.extensions'")
        assert seen == [("aurora_stat_utils",)]
    async with await connect(fleet.writer_config) as writes, await connect(fleet.reader_config) as reads:
        await writes.execute("create table t (i int)")
        for i in range(20):
            await writes.execute("insert into t values (%s)", [i])
            ((lsn,),) = await (await writes.execute("select aurora_commit_lsn()")).fetchall()
            cursor = await reads.execute("select aurora_wait_lsn(%s::pg_lsn, 20000)", [lsn])
            assert await cursor.fetchall() == [(True,)]
            cursor = await reads.execute("select max(i) from t")
            assert await cursor.fetchall() == [(i,)]
        positions = await reads.execute(
            "select aurora_commit_lsn() = pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()"
        )
        assert [bool(each) for each in await positions.fetchone() or ()] == [True, True], "a reader has positions too"
        cursor = await reads.execute("select aurora_wait_lsn('FF/0', 30)")
        assert await cursor.fetchall() == [(False,)]


async def test_rows_that_a_reader_needs_stay_for_as_long_as_the_horizon_is_held(fleet: Fleet) -> None:  # noqa: F811
    writer = fleet.writer
    await execute(writer.config, "create table t as select generate_series(1, 1000) i")
    await caught_up(fleet)
    async with await connect(fleet.reader_config) as reads:
        await reads.execute("begin isolation level repeatable read")
        await reads.execute("select count(*) from t")
        await poll_until(lambda: (fleet.reader.status().horizon or Horizon(0)).xmin > 0, what="the feedback arrives")
        horizon = fleet.reader.status().horizon
        assert horizon is not None
        await writer.do(HoldHorizon([horizon], 5.0))
        await execute(writer.config, "delete from t")
        assert await _left_by_vacuum(writer.config) == 1000
        cursor = await reads.execute("select count(*) from t")
        assert await cursor.fetchall() == [(1000,)]
        await writer.do(HoldHorizon([], 5.0))
        assert await _left_by_vacuum(writer.config) == 0
    await writer.do(HoldHorizon([horizon], 0.05))
    held = "select backend_xmin is null from pg_stat_activity where backend_type = 'aurora horizon'"

    async def is_free() -> bool:
        return await execute(writer.config, held) == [(True,)]

    await poll_until(is_free, 20, what="nothing is held any more")


async def test_a_recovery_conflict_ends_the_query_in_time_and_never_the_replay(fleet: Fleet) -> None:  # noqa: F811
    await execute(fleet.writer_config, "alter system set max_standby_streaming_delay = '500ms'")
    await execute(fleet.writer_config, "select pg_reload_conf()")
    await execute(fleet.writer_config, "create table t as select generate_series(1, 1000) i")
    await caught_up(fleet)

    async def is_told() -> bool:
        return await execute(fleet.reader_config, "show max_standby_streaming_delay") == [("500ms",)]

    await poll_until(is_told, 30, what="the reader has the writer's parameter")
    async with await connect(fleet.reader_config) as reads:
        await reads.execute("begin isolation level repeatable read")
        await reads.execute("select count(*) from t")
        await execute(fleet.writer_config, "delete from t")  # and nobody tells the writer of the reader's horizon
        assert await _left_by_vacuum(fleet.writer_config) == 0
        await caught_up(fleet)
        with pytest.raises(psycopg.OperationalError):
            await reads.execute("select count(*) from t")
    assert await execute(fleet.reader_config, "select count(*) from t") == [(0,)]


async def _left_by_vacuum(config: object) -> int:
    """Dead rows of table t that a vacuum cannot remove yet."""
    notices: list[str] = []
    async with await connect(config) as session:  # type: ignore[arg-type]
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        await session.execute("vacuum (verbose) t")
    text = " ".join(notices)
    left = [word for word in text.split() if word.isdigit()]
    marker = "are dead but not yet removable"
    assert marker in text, text
    before = text.partition(marker)[0].split()
    assert left
    return int(before[-1])


async def test_a_new_cluster_lacks_nothing_and_an_old_one_gets_it_at_its_next_start(fleet: Fleet) -> None:  # noqa: F811
    writer = fleet.writer
    mark = "select obj_description('aurora_version()'::regprocedure)"
    assert functions.missing(writer.config.dirs.mount) is None
    await execute(writer.config, "create database other")
    await execute(writer.config, "create database shut allow_connections false")
    for database in ("postgres", "other", "template1"):
        await execute(writer.config, "drop function pg_catalog.aurora_version()", database)
    await execute(writer.config, "alter database template0 allow_connections true")  # as by a try that was cut short
    (writer.config.dirs.mount / functions.NOTE).unlink()  # only here: what tells a start that nothing lacks
    engine = writer._engine
    assert engine is not None
    await engine.complete_databases()
    for database in ("postgres", "other", "template1"):
        assert await execute(writer.config, mark, database) == [(functions.MARK,)]
    closed = "select datname from pg_database where not datallowconn order by 1"
    assert await execute(writer.config, closed) == [("shut",), ("template0",)]
    assert functions.missing(writer.config.dirs.mount) is None


async def test_commits_wait_while_they_may_not_be_acknowledged(fleet: Fleet) -> None:  # noqa: F811
    """As for a primary region whose lease is over: reads go on, and its end waits for nothing."""
    writer = fleet.writer
    async with await connect(fleet.writer_config) as one, await connect(fleet.writer_config) as other:
        await one.execute("create table held (i int)")
        assert await writer.do(AcknowledgeUntil(0.0)) > 0
        inserting = asyncio.ensure_future(one.execute("insert into held values (1)"))
        assert not (await asyncio.wait({inserting}, timeout=1))[0]
        cursor = await other.execute("select count(*) from held")
        assert await cursor.fetchall() == [(0,)], "who waits has not committed yet"
        await writer.do(AcknowledgeUntil(None))
        await asyncio.wait_for(inserting, 30)
        cursor = await other.execute("select count(*) from held")
        assert await cursor.fetchall() == [(1,)]
        await writer.do(AcknowledgeUntil(0.0))
        inserting = asyncio.ensure_future(one.execute("insert into held values (2)"))
        assert not (await asyncio.wait({inserting}, timeout=0.5))[0]
        began_s = time.monotonic()
        await writer.stop()
        assert time.monotonic() - began_s < 20
        with pytest.raises(psycopg.OperationalError):
            await inserting
