"""Writes of a reader's sessions run at the writer: a real writer and a real reader of one volume."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import tuple_row

from aurora_ray.compute.commands import ReplicaStatus
from aurora_ray.compute.config import InstanceConfig
from tests.compute.test_reader import (  # noqa: F401  (fixtures)
    PASSWORD,
    Fleet,
    _account,
    caught_up,
    cluster,
    execute,
    fleet,
    shared_dir,
)
from tests.support.polling import poll_until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"the lease of reader"),  # on a busy machine
]
Session = psycopg.AsyncConnection[tuple[Any, ...]]


async def connect(config: InstanceConfig, user: str = "postgres", **options: Any) -> Session:
    return await psycopg.AsyncConnection.connect(
        **{"host": "127.0.0.1", "port": config.port, "password": PASSWORD, **options},
        user=user,
        dbname="postgres",
        autocommit=True,
        row_factory=tuple_row,
    )


async def ask(session: Session, statement: LiteralString, *values: Any, **options: Any) -> list[tuple[Any, ...]]:
    cursor = await session.execute(statement, values or None, **options)
    return await cursor.fetchall() if cursor.description is not None else []


async def seen(here: Session, there: Session) -> None:
    """The reader has what that session has written."""
    ((lsn,),) = await ask(there, "select aurora_commit_lsn()::text")
    assert await ask(here, "select aurora_wait_lsn(%s::text::pg_lsn, 30000)", lsn) == [(True,)]


async def forward_to(fleet: Fleet, port: int | None) -> None:  # noqa: F811
    writer_at = ("127.0.0.1", port) if port is not None else None
    await fleet.reader.do(ReplicaStatus([], (), writer_at))


@pytest.fixture
async def there(fleet: Fleet) -> AsyncIterator[Session]:  # noqa: F811
    """A session at the writer, to which the reader forwards, with a table that both know."""
    async with await connect(fleet.writer_config) as session:
        await session.execute("create table t (i int primary key, s text)")
        await session.execute("insert into t values (1, 'one'), (2, 'two')")
        await forward_to(fleet, fleet.writer_config.port)
        await caught_up(fleet)
        yield session


@pytest.fixture
async def here(fleet: Fleet, there: Session) -> AsyncIterator[Session]:  # noqa: F811
    async with await connect(fleet.reader_config) as session:
        yield session


async def test_statements_of_all_kinds_run_at_the_writer(here: Session, there: Session) -> None:
    assert await ask(here, "show apg_write_forward.consistency_mode") == [("session",)]
    cursor = await here.execute("insert into t values (3, 'three'), (4, 'four')")
    assert (cursor.statusmessage, cursor.description) == ("INSERT 0 2", None)
    assert await ask(here, "select count(*) from t") == [(4,)], "it reads its own writes"
    cursor = await here.execute("update t set s = %s where i > %s returning i, s, null::int", ["x", 2])
    assert cursor.statusmessage == "UPDATE 2"
    assert await cursor.fetchall() == [(3, "x", None), (4, "x", None)]
    assert await ask(here, "delete from t where i = %b returning s", 4, binary=True) == [("x",)]
    cursor = await here.execute("merge into t using (values (9, 'nine')) v (i, s) on t.i = v.i "
                                "when not matched then insert values (v.i, v.s)")  # fmt: skip
    assert cursor.statusmessage == "MERGE 1"
    gone = await ask(here, "with gone as (delete from t where i = 9 returning i) select sum(i) from gone")
    assert gone == [(9,)]
    for i in range(5, 12):  # the plan of the last ones is one that is kept
        await here.execute("insert into t values (%s, %s)", [i, "'\\\u00e9"], prepare=True)
    assert await ask(here, "select count(*), min(s) from t where i >= 5") == [(7, "'\\\u00e9")]
    await here.execute("prepare add(int, text) as insert into t select $1, $2 returning i as as_")
    for i in range(20, 27):
        cursor = await here.execute(f"execute add({i}, 'sql')")
        assert await cursor.fetchall() == [(i,)]
    await here.execute("insert into t values (30, 'a'); insert into t values (31, 'b')")
    with pytest.raises(errors.UniqueViolation) as failed:
        await here.execute("insert into t values (32, 'c'); insert into t values (30, 'twice')")
    assert (failed.value.diag.table_name, failed.value.diag.constraint_name) == ("t", "t_pkey")
    assert await ask(there, "select i from t where i between 30 and 40 order by i") == [(30,), (31,)]
    assert await ask(there, "select count(*) from pg_stat_activity where datname = current_database() "
                            "and state like 'idle in transaction%'") == [(0,)]  # fmt: skip
    rows = await ask(here, "insert into t select i, repeat('y', 1000) from generate_series(1000, 6000) i returning *")
    assert len(rows) == 5001
    assert rows[-1] == (6000, "y" * 1000)


async def test_a_pipeline_and_values_of_many_types(here: Session, there: Session) -> None:
    await ask(there, "create type mood as enum ('sad', 'ok')")
    columns = "f float8, d timestamptz, b bytea, a int[], j jsonb, m mood, n numeric, x interval"
    await there.execute(f"create table v ({columns})".encode())
    await ask(there, "create table big (i int)")
    await seen(here, there)
    row = (
        0.1 + 0.2,
        "2024-02-03 04:05:06.789+00",
        b"\x00\xff'",
        [1, None, 3],
        '{"a": [1]}',
        "ok",
        "1e30",
        "1 mon 2 days",
    )
    await ask(here, "set datestyle = 'SQL, DMY'")
    await ask(here, "set intervalstyle = 'iso_8601'")
    await ask(here, "set timezone = 'Asia/Tokyo'")
    found = await ask(here, "insert into v values (%s, %s::timestamptz, %s, %s, %s::jsonb, %s::mood, %s::numeric, "
                            "%s::interval) returning f, d::text, b, a, j, m::text, n, x::text", *row)  # fmt: skip
    assert found[0] == (row[0], "03/02/2024 13:05:06.789 JST", row[2], row[3], {"a": [1]}, "ok", 10**30, "P1M2D")
    await ask(here, "set datestyle = 'ISO, YMD'")
    here_and_there = [(await ask(each, "select f, d, n from v"))[0] for each in (here, there)]
    assert here_and_there == [(row[0], datetime(2024, 2, 3, 4, 5, 6, 789000, UTC), 10**30)] * 2
    async with here.pipeline():
        for i in range(50):
            await here.execute("insert into big values (%s)", [i])
        cursor = await here.execute("select count(*) from big")
        assert await cursor.fetchall() == [(50,)]

    async def one_fails() -> None:
        async with here.pipeline():
            await here.execute("insert into big values (100)")
            await here.execute("insert into t values (null, 'x')")

    with pytest.raises(errors.NotNullViolation):
        await one_fails()
    assert await ask(there, "select count(*) from big where i = 100") == [(0,)]


async def test_a_transaction_runs_there_from_its_first_write_with_its_savepoints(here: Session, there: Session) -> None:
    async with here.transaction(force_rollback=True):
        await ask(here, "delete from t")
        assert await ask(here, "select count(*) from t") == [(0,)]
        assert await ask(there, "select count(*) from t") == [(2,)]
    assert await ask(here, "select count(*) from t") == [(2,)]
    await ask(here, "begin read write")
    assert await ask(here, "select pg_is_in_recovery()") == [(True,)]
    await ask(here, "savepoint before")
    await ask(here, "insert into t values (3, 'three')")
    assert await ask(here, "select pg_is_in_recovery()") == [(False,)]
    await ask(here, "savepoint a")
    await ask(here, "savepoint b")
    await ask(here, "insert into t values (4, 'four')")
    with pytest.raises(errors.UniqueViolation):
        await ask(here, "insert into t values (1, 'twice')")
    with pytest.raises(errors.InFailedSqlTransaction):
        await ask(here, "select 1")
    await ask(here, "rollback to a")
    assert await ask(here, "select i from t order by i") == [(1,), (2,), (3,)]
    await ask(here, "insert into t values (5, 'five')")
    await ask(here, "release a")
    with pytest.raises(errors.UndefinedTable):
        await ask(here, "insert into nowhere values (1)")
    await ask(here, "rollback to before")
    assert await ask(here, "select count(*) from t") == [(2,)]
    await ask(here, "insert into t values (6, 'six')")
    await ask(here, "commit and chain")
    await ask(here, "update t set s = 'sixth' where i = 6")
    await ask(here, "commit")
    assert await ask(there, "select * from t order by i") == [(1, "one"), (2, "two"), (6, "sixth")]
    assert await ask(here, "select * from t order by i") == [(1, "one"), (2, "two"), (6, "sixth")]
    await ask(there, "create table deferred (i int unique deferrable initially deferred)")
    await ask(there, "insert into deferred values (1)")
    await seen(here, there)
    await ask(here, "begin")
    await ask(here, "insert into deferred values (1)")
    with pytest.raises(errors.UniqueViolation):
        await ask(here, "commit")
    await ask(here, "begin")
    await ask(here, "set constraints all immediate")
    with pytest.raises(errors.UniqueViolation):
        await ask(here, "insert into deferred values (1)")
    await ask(here, "rollback")


async def test_repeatable_read_has_one_snapshot_which_is_the_writers(here: Session, there: Session) -> None:
    await ask(here, "begin isolation level repeatable read")
    assert await ask(here, "select count(*) from t") == [(2,)]
    await ask(there, "insert into t values (3, 'meanwhile')")
    await ask(there, "update t set s = 'changed' where i = 1")
    assert await ask(here, "select count(*) from t") == [(2,)]
    with pytest.raises(errors.SerializationFailure):
        await ask(here, "update t set s = 'lost' where i = 1")
    await ask(here, "rollback")
    await ask(here, "set apg_write_forward.consistency_mode = 'global'")
    await ask(here, "begin isolation level repeatable read read only")
    assert await ask(here, "select count(*), bool_and(pg_is_in_recovery()) from t") == [(3, True)]
    with pytest.raises(errors.ReadOnlySqlTransaction):
        await ask(here, "delete from t")
    await ask(here, "rollback")
    await ask(here, "set default_transaction_isolation = 'repeatable read'")
    await ask(there, "insert into t values (4, 'four')")
    assert await ask(here, "select count(*), bool_and(pg_is_in_recovery()) from t") == [(4, False)]
    with pytest.raises(errors.FeatureNotSupported, match="serializable"):
        await ask(here, "begin isolation level serializable")


async def test_each_level_of_consistency(here: Session, there: Session, fleet: Fleet) -> None:  # noqa: F811
    await ask(here, "set apg_write_forward.consistency_mode = 'global'")
    for i in range(100, 140):
        await ask(there, "insert into t values (%s)", i)
        assert await ask(here, "select max(i) from t") == [(i,)]
        assert await ask(here, "select max(i) from t where i > %s", 0, prepare=True) == [(i,)]
    await ask(here, "set apg_write_forward.consistency_mode = 'session'")
    for i in range(200, 240):
        await ask(here, "insert into t values (%s)", i)
        cursor = await here.execute("select max(i), bool_and(pg_is_in_recovery()) from t", prepare=True)
        assert await cursor.fetchall() == [(i, True)]
    feed = fleet.reader._feed
    assert feed is not None
    await ask(here, "select pg_is_in_recovery()")
    await _holds_replay(there, here)


async def _holds_replay(there: Session, here: Session) -> None:
    """While the reader replays nothing: `eventual` does not wait, `session` does until it goes on."""
    await ask(here, "set apg_write_forward.consistency_mode = 'eventual'")
    assert await ask(here, "select pg_wal_replay_pause() is null") == [(False,)]

    async def paused() -> bool:
        return await ask(here, "select pg_get_wal_replay_pause_state()") == [("paused",)]

    await poll_until(paused, what="replay pauses")
    await ask(here, "insert into t values (1000)")
    assert await ask(here, "select max(i) from t") == [(239,)]
    await ask(here, "set apg_write_forward.consistency_mode = 'session'")
    reading = asyncio.ensure_future(ask(here, "select max(i) from t"))
    assert not (await asyncio.wait({reading}, timeout=0.5))[0]
    await here.cancel_safe()
    with pytest.raises(errors.QueryCanceled):
        await reading
    async with here.transaction():
        await ask(here, "insert into t values (1001)")
        assert await ask(here, "select max(i) from t") == [(1001,)], "inside, it is the writer that answers"
    await ask(here, "set apg_write_forward.consistency_mode = 'off'")
    await ask(here, "select pg_wal_replay_resume()")
    await ask(here, "set apg_write_forward.consistency_mode = 'session'")
    assert await ask(here, "select max(i) from t") == [(1001,)]
    with pytest.raises(errors.ReadOnlySqlTransaction):
        await ask(here, "set apg_write_forward.consistency_mode = 'off'; delete from t")


async def test_functions_run_whole_where_they_may_write(here: Session, there: Session) -> None:
    await ask(there, "create sequence seq")
    await ask(there, "create function add(int) returns bigint language plpgsql as "
                     "$$ begin insert into t values ($1, 'f'); return nextval('seq'); end $$")  # fmt: skip
    await ask(there, "create function counted() returns bigint stable language sql as 'select count(*) from t'")
    await ask(there, "create function lies() returns int stable language plpgsql as "
                     "$$ begin execute 'insert into t values (77)'; return 1; end $$")  # fmt: skip
    await ask(there, "create procedure proc(inout int) language plpgsql as "
                     "$$ begin insert into t values ($1, 'p'); $1 = $1 + 1; raise notice 'there'; end $$")  # fmt: skip
    await seen(here, there)
    notices: list[str | None] = []
    here.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    assert await ask(here, "select add(10)") == [(1,)]
    assert await ask(here, "select nextval('seq'), currval('seq')") == [(2, 2)]
    assert await ask(here, "select counted(), pg_is_in_recovery()") == [(3, True)]
    assert await ask(here, "call proc(11)") == [(12,)]
    assert await ask(here, "call proc(%s)", 12) == [(13,)]
    assert notices == ["there", "there"]
    await ask(here, "do $$ begin perform add(13); end $$")
    assert await ask(here, "select counted()") == [(6,)]
    async with here.transaction():
        await ask(here, "select add(14)")
        assert await ask(here, "select counted(), pg_is_in_recovery()") == [(7, False)]
    with pytest.raises(errors.FeatureNotSupported, match="INSERT is not allowed in a non-volatile"):
        await ask(here, "select lies()")
    await ask(there, "create rule also as on update to t do also insert into t values (99)")
    await ask(there, "create view v as select * from t")
    await seen(here, there)
    assert await ask(here, "insert into v values (50, 'v') returning i") == [(50,)]
    with pytest.raises(errors.FeatureNotSupported, match="rules"):
        await ask(here, "update t set s = 'x' where i = 1")
    assert await ask(there, "select count(*) from t where i = 99 or s = 'x'") == [(0,)]


NOT_FORWARDED: Final = (
    "create table u (i int)",
    "create temp table u (i int)",
    "select * into u from t",
    "alter table t add column c int",
    "drop table t",
    "truncate t",
    "lock table t",
    "listen x",
    "vacuum t",
    "analyze t",
    "grant select on t to public",
    "create index on t (s)",
    "refresh materialized view m",
    "copy t from '/dev/null'",
    "prepare transaction 'x'",
    "commit prepared 'x'",
    "explain analyze delete from t",
    "declare c cursor for select * from t for update",
)


async def test_what_is_not_forwarded_says_so(here: Session, there: Session) -> None:
    for statement in NOT_FORWARDED:
        for written in (False, True):
            await ask(here, "begin")
            if written:
                await ask(here, "insert into t values (100, 'rolled back')")
            with pytest.raises(errors.FeatureNotSupported, match="not forwarded to the writer") as refused:
                await ask(here, statement)
            assert "writer_dsn" in (refused.value.diag.message_hint or ""), statement
            await ask(here, "rollback")
    for statement in ("copy t to stdout", "declare c cursor for select * from t", "explain analyze select * from t"):
        await ask(here, "begin")
        await ask(here, "insert into t values (100, 'rolled back')")
        with pytest.raises(errors.FeatureNotSupported, match="not forwarded to the writer"):
            await ask(here, statement)
        await ask(here, "rollback")
    assert await ask(there, "select count(*) from t") == [(2,)]


async def test_copy_takes_what_the_client_sends(here: Session, there: Session) -> None:
    async with here.cursor() as cursor:
        async with cursor.copy("copy t from stdin") as copy:
            for i in range(100, 30100):
                await copy.write_row((i, "row\t" + "x" * 100))
        assert cursor.statusmessage == "COPY 30000"
    assert await ask(here, "select count(*), min(s) from t where i >= 100") == [(30000, "row\t" + "x" * 100)]
    await ask(here, "begin")
    await ask(here, "insert into t values (50, 'before')")
    await ask(here, "savepoint s")

    async def copied(*rows: tuple[int, str]) -> None:
        async with here.cursor() as cursor, cursor.copy("copy t (i, s) from stdin (format binary)") as copy:
            copy.set_types(["int4", "text"])
            for row in rows:
                await copy.write_row(row)

    await copied((51, "binary"))
    with pytest.raises(errors.UniqueViolation):
        await copied((52, "b"), (50, "twice"))
    await ask(here, "rollback to s")
    with pytest.raises(ValueError, match="no more"):
        await _gives_up(here)
    await ask(here, "rollback to s")
    await copied((53, "at last"))
    await ask(here, "commit")
    assert await ask(there, "select i from t where i between 50 and 60 order by i") == [(50,), (53,)]
    with pytest.raises(errors.UndefinedTable):
        await here.execute("copy nowhere from stdin")
    await here.execute("set client_encoding = 'latin1'")
    with pytest.raises(errors.FeatureNotSupported, match="client_encoding"):
        await here.execute("copy t from stdin")


async def _gives_up(here: Session) -> None:
    """A client that fails in the middle."""
    async with here.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
        await copy.write_row((54, "a"))
        raise ValueError("no more")
