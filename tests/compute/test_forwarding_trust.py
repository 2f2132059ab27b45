"""As whom a reader's sessions write at the writer, and what they are told when it cannot be reached."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.compute.test_forwarding import (  # noqa: F401  (fixtures)
    Session,
    ask,
    connect,
    forward_to,
    here,
    seen,
    there,
)
from tests.compute.test_reader import PASSWORD, Fleet, _account, cluster, fleet, shared_dir  # noqa: F401  (fixtures)
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"the lease of reader"),  # on a busy machine
]
IDENTITY = "select session_user::text, current_user::text, current_setting('is_superuser'), pg_is_in_recovery()"
ESCALATIONS = (
    "reset session authorization",
    "set session authorization default",
    "set role none",
    "reset role",
    "reset all",
    "discard all",
    "select set_config('session_authorization', 'postgres', false)",
    "select set_config('role', 'postgres', false)",
    "set session authorization postgres",
    "set role postgres",
    "set local role postgres",
    "do $$ begin reset session authorization; end $$",
    "do $$ begin execute 'set session authorization default'; reset role; reset all; end $$",
    "do $$ begin set role postgres; end $$",
    "do $$ begin perform set_config('role', 'postgres', false); end $$",
    "do $$ begin perform set_config('session_authorization', 'postgres', false); end $$",
    "select escalates()",
    "call escalates_too()",
)


class Link:
    """Between a reader and its writer: carries sessions, as long as it is not told otherwise."""

    def __init__(self, port: int, to: int) -> None:
        self.port, self._to = port, to
        self.refuses = False
        self.swallows_answers = asyncio.Event()
        self.open: set[asyncio.StreamWriter] = set()
        self.sent = bytearray()  # by the reader, since this was cleared
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Ends all sessions without a word."""
        for writer in list(self.open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self.open |= {writer, to_writer}
        try:
            await asyncio.gather(self._carry(reader, to_writer, out=True), self._carry(to_reader, writer, out=False))
        finally:
            for each in (writer, to_writer):
                each.transport.abort()
                self.open.discard(each)

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, out: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if out:
                    self.sent += data
                elif self.swallows_answers.is_set():
                    continue
                to.write(data)
                await to.drain()
        to.transport.abort()


@pytest.fixture
async def link(fleet: Fleet, there: Session, ports: PortAllocator) -> AsyncIterator[Link]:  # noqa: F811
    async with Link(ports.allocate(), fleet.writer_config.port) as made:
        await forward_to(fleet, made.port)
        yield made


async def role(there: Session) -> None:  # noqa: F811
    for statement in (
        f"create role alice login password '{PASSWORD}'",
        "create role bob",
        "create role team",
        "grant team to alice",
        "create table owned (who text default current_user, team text)",
        "create table secret (s text)",
        "create table plain (s text)",
        "grant insert on plain to alice",
        "create table teams (s text)",
        "grant insert, select on owned to alice, bob",
        "grant insert, select on teams to team",
        "alter table owned enable row level security",
        "create policy p on owned using (team = current_setting('app.team', true))",
        "create function escalates() returns void language plpgsql as "
        "$$ begin reset session authorization; set role none; insert into secret values ('by a function'); end $$",
        "create procedure escalates_too() language plpgsql as "
        "$$ begin set session authorization default; set role postgres; insert into secret values ('x'); end $$",
    ):
        await there.execute(statement.encode())


async def test_a_session_is_the_same_user_there_and_nothing_makes_it_another(
    fleet: Fleet,  # noqa: F811
    here: Session,  # noqa: F811
    there: Session,  # noqa: F811
) -> None:
    await role(there)
    await seen(here, there)
    async with await connect(fleet.reader_config, "alice") as alice:
        for escalation in ESCALATIONS:
            for inside in (False, True):
                if inside:
                    await alice.execute("begin")
                    await alice.execute("insert into plain values ('a')")
                with contextlib.suppress(psycopg.Error):
                    await alice.execute(escalation.encode())
                await alice.execute("rollback")
                await alice.execute("begin")
                with pytest.raises(errors.InsufficientPrivilege):
                    await alice.execute("insert into secret values ('stolen')")
                await alice.execute("rollback")
                await alice.execute("begin")
                await alice.execute("insert into plain values ('a')")
                assert await ask(alice, IDENTITY) == [("alice", "alice", "off", False)], escalation
                await alice.execute("rollback")
        assert await ask(there, "select count(*) from secret") == [(0,)]
        await alice.execute("set role team")
        await alice.execute("insert into teams values ('as team')")
        with pytest.raises(errors.InsufficientPrivilege):
            await alice.execute("insert into owned values ('as team')")
        await alice.execute("reset role")
        await alice.execute("set app.team = 'blue'")
        await alice.execute("insert into owned (team) values ('blue')")
        with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
            await alice.execute("insert into owned (team) values ('red')")
        async with alice.transaction():
            await ask(alice, "select set_config('app.team', 'red', true)")
            assert await ask(alice, "insert into owned (team) values ('red') returning who") == [("alice",)]
            await ask(alice, "select set_config('app.team', 'green', true)")
            assert await ask(alice, "select * from owned") == []
            await alice.execute("insert into owned (team) values ('green')")
        with pytest.raises(errors.InsufficientPrivilege):
            await alice.execute("insert into owned (team) values ('red')")
        await alice.execute("begin")
        await alice.execute("insert into owned (team) values ('blue')")
        with pytest.raises(errors.FeatureNotSupported, match="set_config"):
            await alice.execute("select set_config('app.team', team, true) from owned")
        await alice.execute("rollback")
    await here.execute("set session authorization bob")
    async with here.transaction():
        with pytest.raises(errors.InsufficientPrivilege):
            async with here.transaction():
                await here.execute("insert into secret values ('as bob')")
    await here.execute("reset session authorization")
    await here.execute("insert into secret values ('as postgres')")
    assert await ask(there, "select * from secret") == [("as postgres",)]


async def test_the_password_and_the_key_do_not_travel_and_who_has_neither_is_told(
    fleet: Fleet,  # noqa: F811
    here: Session,  # noqa: F811
    there: Session,  # noqa: F811
    link: Link,
) -> None:
    await here.execute("insert into t values (3, 'three')")
    assert b"SCRAM-SHA-256" in link.sent
    assert PASSWORD.encode() not in link.sent
    run_dir = fleet.reader.status().socket_dir
    options: dict[str, Any] = {"host": run_dir, "password": None}
    async with await connect(fleet.reader_config, **options) as trusted:
        assert await ask(trusted, "select count(*) from t") == [(3,)]
        with pytest.raises(errors.InvalidAuthorizationSpecification, match="did not log in by a password"):
            await trusted.execute("insert into t values (4, 'four')")
    await there.execute("create role late login password 'first'")
    await seen(here, there)
    async with await connect(fleet.reader_config, "late", password="first") as late:  # noqa: S106
        await there.execute("alter role late password 'second'")
        with pytest.raises(errors.SqlclientUnableToEstablishSqlconnection, match="authentication failed"):
            await late.execute("insert into t values (4, 'four')")
    await forward_to(fleet, None)
    assert await ask(here, "show apg_write_forward.consistency_mode") == [("off",)]
    with pytest.raises(errors.ReadOnlySqlTransaction):
        await here.execute("insert into t values (4, 'four')")
    with pytest.raises(errors.FeatureNotSupported, match="writes are not forwarded here"):
        await here.execute("set apg_write_forward.consistency_mode = 'eventual'")
    await forward_to(fleet, fleet.reader_config.port)  # somebody who is no writer
    with pytest.raises(errors.SqlclientUnableToEstablishSqlconnection, match="nothing was forwarded"):
        await here.execute("insert into t values (4, 'four')")
    assert await ask(there, "select count(*) from t") == [(3,)]


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + (4 + len(content)).to_bytes(4, "big") + content


async def test_a_stranger_at_the_writers_address_is_told_nothing(
    fleet: Fleet,  # noqa: F811
    here: Session,  # noqa: F811
    ports: PortAllocator,
) -> None:
    """One that asks for no proof, and so gives none either."""
    welcome = _message(b"R", bytes(4))
    for name, value in ((b"server_version", b"18.0"), (b"in_hot_standby", b"off"), (b"client_encoding", b"UTF8")):
        welcome += _message(b"S", name + b"\0" + value + b"\0")
    welcome += _message(b"S", b"default_transaction_read_only\0off\0") + _message(b"Z", b"I")
    heard, callers = bytearray(), 0

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal callers
        callers += 1
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        writer.write(welcome)
        while data := await reader.read(65536):
            heard.extend(data)
        writer.close()

    port = ports.allocate()
    async with await asyncio.start_server(pretend, "127.0.0.1", port):
        await forward_to(fleet, port)
        await here.execute("set statement_timeout = '10s'")
        with pytest.raises(psycopg.OperationalError, match="authentication"):
            await here.execute("update t set s = 'not for strangers' where i = 1")
        await here.execute("reset statement_timeout")
        await forward_to(fleet, fleet.writer_config.port)
    assert callers
    assert b"not for strangers" not in heard


async def test_a_link_that_breaks_is_told_and_nothing_runs_twice(
    fleet: Fleet,  # noqa: F811
    here: Session,  # noqa: F811
    there: Session,  # noqa: F811
    link: Link,
) -> None:
    await there.execute("create sequence ran")
    await there.execute("create table counted (i int default nextval('ran'))")
    await seen(here, there)
    await here.execute("insert into counted default values")
    link.cut()  # while it is idle: a new one is made, without a word
    await poll_until(lambda: not link.open, what="the link is cut")
    await here.execute("insert into counted default values")
    assert await ask(there, "select last_value from ran") == [(2,)]
    await here.execute("begin")
    await here.execute("insert into counted default values")
    link.cut()
    await poll_until(lambda: not link.open, what="the link is cut")
    with pytest.raises(errors.SerializationFailure, match="nothing of this transaction is kept"):
        await here.execute("insert into counted default values")
    await here.execute("rollback")
    await here.execute("begin")
    await here.execute("insert into counted default values")
    link.cut()
    await poll_until(lambda: not link.open, what="the link is cut")
    with pytest.raises(errors.SerializationFailure):
        await here.execute("commit")
    await here.execute("begin")
    await here.execute("insert into counted default values")
    await here.execute("savepoint s")
    link.cut()
    with pytest.raises(errors.SerializationFailure):
        await here.execute("select 1")
    await here.execute("rollback to s")
    with pytest.raises(errors.SerializationFailure):
        await here.execute("select 1")
    await here.execute("rollback")
    assert await ask(there, "select count(*) from counted") == [(2,)]

    await here.execute("begin")
    await here.execute("insert into counted default values")
    link.swallows_answers.set()
    link.sent.clear()
    committing = asyncio.ensure_future(here.execute("commit"))
    await poll_until(lambda: b"COMMIT" in link.sent, what="the commit is on its way")
    await poll_until(lambda: _count(there, 3), what="it is done there")
    link.cut()
    with pytest.raises(errors.TransactionResolutionUnknown):
        await committing
    link.swallows_answers.clear()
    assert await ask(here, "select count(*) from counted") == [(3,)]

    link.refuses = True
    link.cut()
    with pytest.raises(errors.SqlclientUnableToEstablishSqlconnection, match="nothing was forwarded"):
        await here.execute("insert into counted default values")
    await here.execute("set apg_write_forward.consistency_mode = 'global'")
    with pytest.raises(errors.SqlclientUnableToEstablishSqlconnection):
        await here.execute("select count(*) from counted")
    link.refuses = False
    assert await ask(here, "select count(*) from counted") == [(3,)]


async def _count(session: Session, wanted: int) -> bool:
    return await ask(session, "select count(*) from counted") == [(wanted,)]


async def test_who_cancels_or_leaves_leaves_nothing_there(
    fleet: Fleet,  # noqa: F811
    here: Session,  # noqa: F811
    there: Session,  # noqa: F811
) -> None:
    sleeping = "select count(*) from pg_stat_activity where query like 'update t set s%'"
    await there.execute("begin")
    await there.execute("update t set s = 'held' where i = 1")
    waiting = asyncio.ensure_future(here.execute("update t set s = 'late' where i = 1"))

    async def waits(count: int) -> bool:
        async with await connect(fleet.writer_config) as look:
            return await ask(look, sleeping + " and wait_event_type = 'Lock'") == [(count,)]

    await poll_until(lambda: waits(1), what="it waits for the row")
    await here.cancel_safe()
    with pytest.raises(errors.QueryCanceled):
        await waiting
    await poll_until(lambda: waits(0), what="it is given up there")
    await here.execute("set statement_timeout = 300")
    with pytest.raises(errors.QueryCanceled):
        await here.execute("update t set s = 'late' where i = 1")
    await here.execute("reset statement_timeout")
    await poll_until(lambda: waits(0), what="it is given up there")
    await there.execute("rollback")
    leaves = await connect(fleet.reader_config)
    await leaves.execute("begin")
    await leaves.execute("update t set s = 'left' where i = 1")
    os.kill(leaves.info.backend_pid, signal.SIGTERM)
    await leaves.close()
    await asyncio.wait_for(there.execute("update t set s = 'free' where i = 1"), 30)
    assert await ask(here, "select s from t where i = 1") in ([("free",)], [("one",)])
