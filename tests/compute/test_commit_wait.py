"""Commits that wait for the volume outside their WAL flush: nobody sees one, or hears of it, before it is durable.

Real engines on six nodes of which three go away, so that nothing becomes durable until they come back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.postgres.commit import commit_module
from aurora_ray.engine.postgres.server import PostgresEngine
from tests.engine.conftest import INSTALLS, account, cluster, image, image_cache, install, make_engine, records
from tests.support.engine_stack import Stack, engine_on
from tests.support.polling import poll_until
from tests.support.timing import scaled
from tests.volume.cluster import Cluster, running

__all__ = ["account", "cluster", "image", "image_cache", "install", "make_engine", "records"]

# gRPC says so when a node ends while a peer fetches log from it.
pytestmark = [pytest.mark.postgres, pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")]

HALF = ("a1", "b1", "c1")
ON_A_VOLUME = {"AURORA_REGION_FD": "3"}
WITH = [major for major in sorted(INSTALLS) if commit_module(INSTALLS[major], ON_A_VOLUME)]
WITHOUT = [major for major in sorted(INSTALLS) if major not in WITH]
TRIES = 80
PATIENCE_S = 0.5  # how long something is watched that must not happen
Session = psycopg.AsyncConnection[Any]


class Ground:
    """A server on a volume whose quorum can be taken away."""

    def __init__(self, cluster: Cluster, stack: Stack, dsn: str) -> None:
        self.cluster, self.stack, self.dsn = cluster, stack, dsn
        self.wait_event = "SyncRep"

    async def lose_quorum(self) -> None:
        await self.cluster.stop(*HALF)

    async def regain_quorum(self) -> None:
        await self.cluster.start(*HALF)
        await self.stack.volume.update_nodes(self.cluster.addresses)

    async def connect(self, **options: Any) -> Session:
        return await psycopg.AsyncConnection.connect(
            make_conninfo(self.dsn, port=self.stack.port, **options), autocommit=True
        )

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[Session]:
        """Closed at the end, without a rollback that would wait for a commit."""
        session = await self.connect(**options)
        try:
            yield session
        finally:
            await session.close()

    async def waits(self, session: Session, observer: Session) -> None:
        """Returns when `session` waits for its commit."""

        async def look() -> bool:
            pid = session.info.backend_pid
            found = await value(observer, "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", pid)
            return found == self.wait_event

        await poll_until(look)


async def value(session: Session, query: str, *arguments: Any) -> Any:
    row = await (await session.execute(query, arguments)).fetchone()
    assert row is not None
    return row[0]


@asynccontextmanager
async def ground_of(
    data_dir: Path, account: EngineAccount, install: EngineInstall, image_cache: Path, **parameters: str
) -> AsyncIterator[Ground]:
    settings = {
        "autovacuum": "off",
        "max_connections": str(TRIES + 20),
        "max_prepared_transactions": "4",
        "wal_level": "logical",
        **parameters,
    }
    async with (
        running(data_dir / "nodes") as cluster,
        engine_on(
            cluster,
            data_dir,
            account=account,
            install=install,
            image_cache=image_cache,
            parameters=settings,
        ) as (
            stack,
            dsn,
        ),
    ):
        ground = Ground(cluster, stack, dsn)
        async with ground.session() as session:
            await session.execute("CREATE TABLE t (id int PRIMARY KEY)")
            await session.execute("CREATE TABLE other (id int)")
        yield ground


def _older_ones_last(major: int) -> Any:
    """The module is one source for all versions: what it promises is tried with the newest each time."""
    return pytest.param(major, marks=[] if major == WITH[-1] else pytest.mark.long, id=f"postgres-{major}")


@pytest.fixture(params=[_older_ones_last(major) for major in WITH])
async def ground(
    request: pytest.FixtureRequest, data_dir: Path, account: EngineAccount, image_cache: Path
) -> AsyncIterator[Ground]:
    async with ground_of(data_dir, account, INSTALLS[request.param], image_cache) as it:
        yield it


async def stays_undone(task: asyncio.Future[Any]) -> bool:
    _, pending = await asyncio.wait({task}, timeout=PATIENCE_S)
    return bool(pending)


async def stays_hidden(committer: Session, observer: Session, work: Awaitable[Any], ground: Ground) -> None:
    """Starts `work`, a statement of `committer` that makes row 1 of t, with the quorum lost; then gives it back."""
    await ground.lose_quorum()
    task = asyncio.ensure_future(work)
    await ground.waits(committer, observer)
    assert await value(observer, "SELECT count(*) FROM t") == 0, "visible, and not durable"
    assert await stays_undone(task), "told, and not durable"
    assert await value(observer, "SELECT count(*) FROM t") == 0
    await ground.regain_quorum()
    await asyncio.wait_for(task, scaled(20))
    assert await value(observer, "SELECT count(*) FROM t") == 1


async def test_a_commit_is_neither_visible_nor_told_before_it_is_durable(ground: Ground) -> None:
    async with ground.session() as committer, ground.session() as observer:
        assert "aurora_commit" in await value(observer, "SHOW shared_preload_libraries")
        assert await value(observer, "SHOW commit_delay") == "0"
        await stays_hidden(committer, observer, committer.execute("INSERT INTO t VALUES (1)"), ground)


@pytest.mark.parametrize("major", [*WITHOUT, WITH[-1]], ids=lambda major: f"postgres-{major}")
async def test_nor_where_it_waits_in_its_flush(
    data_dir: Path, account: EngineAccount, image_cache: Path, major: int
) -> None:
    """A server that we have no module for, and one that the caller left no place to wait."""
    parameters = {} if major in WITHOUT else {"max_wal_senders": "0", "wal_level": "replica"}
    async with (
        ground_of(data_dir, account, INSTALLS[major], image_cache, **parameters) as ground,
        ground.session() as committer,
        ground.session() as observer,
    ):
        ground.wait_event = "WalSync" if major >= 17 else "WALSync"
        assert await value(observer, "SHOW synchronous_standby_names") == ""
        assert await value(observer, "SHOW commit_delay") == "1500"
        await stays_hidden(committer, observer, committer.execute("INSERT INTO t VALUES (1)"), ground)


async def test_local_waits_as_on_does(ground: Ground) -> None:
    options = "-c synchronous_commit=local"
    async with ground.session(options=options) as committer, ground.session() as observer:
        await stays_hidden(committer, observer, committer.execute("INSERT INTO t VALUES (1)"), ground)
        assert await value(committer, "SHOW synchronous_commit") == "local"


async def test_two_phases_wait_even_when_commits_do_not(ground: Ground) -> None:
    options = "-c synchronous_commit=off"
    async with ground.session(options=options) as committer, ground.session() as observer:
        await committer.execute("BEGIN")
        await committer.execute("INSERT INTO t VALUES (1)")
        await ground.lose_quorum()
        task = asyncio.ensure_future(committer.execute("PREPARE TRANSACTION 'one'"))
        await ground.waits(committer, observer)
        assert await stays_undone(task)
        await ground.regain_quorum()
        await asyncio.wait_for(task, scaled(20))
        await stays_hidden(committer, observer, committer.execute("COMMIT PREPARED 'one'"), ground)
        assert await value(committer, "SHOW synchronous_commit") == "off"


async def test_off_does_not_wait_but_for_changes_of_files(ground: Ground) -> None:
    options = "-c synchronous_commit=off"
    async with ground.session(options=options) as committer, ground.session() as observer:
        await ground.lose_quorum()
        await asyncio.wait_for(committer.execute("INSERT INTO t VALUES (1)"), scaled(5))
        assert await value(observer, "SELECT count(*) FROM t") == 1
        task = asyncio.ensure_future(committer.execute("DROP TABLE other"))
        await ground.waits(committer, observer)
        assert await stays_undone(task)
        await ground.regain_quorum()
        await asyncio.wait_for(task, scaled(20))
        await asyncio.wait_for(committer.execute("INSERT INTO t VALUES (2)"), scaled(5))


async def test_cancelling_a_commit_does_not_make_it_visible(ground: Ground) -> None:
    """Whenever it comes: while the statement runs, in the middle of the commit, and while that waits."""
    async with ground.session() as observer, ground.session() as canceller:
        await ground.lose_quorum()
        tasks, sessions = [], []
        for number in range(TRIES):
            session = await ground.connect()
            task = asyncio.ensure_future(session.execute("INSERT INTO t VALUES (%s)", [number]))
            await asyncio.sleep(0)  # sends it
            due_ns = time.perf_counter_ns() + number % 40 * 20_000
            while time.perf_counter_ns() < due_ns:
                pass
            os.kill(session.info.backend_pid, signal.SIGINT)
            assert await value(observer, "SELECT count(*) FROM t") == 0
            tasks.append(task)
            sessions.append(session)
        await canceller.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        assert await value(observer, "SELECT count(*) FROM t") == 0
        last = await ground.connect()
        tasks.append(asyncio.ensure_future(last.execute("INSERT INTO t VALUES (100)")))
        await ground.waits(last, observer)
        await canceller.execute("SELECT pg_terminate_backend(%s)", [last.info.backend_pid])
        assert await stays_undone(tasks[-1])
        assert await value(observer, "SELECT count(*) FROM t") == 0
        await ground.regain_quorum()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), scaled(20))
        told = sum(not isinstance(each, BaseException) for each in done[:-1])
        assert 0 < told < TRIES, "some before their commit, some in it"
        committed = await (await observer.execute("SELECT id FROM t WHERE id < 100")).fetchall()
        assert {number for (number,) in committed} == {
            number for number, each in enumerate(done[:-1]) if not isinstance(each, BaseException)
        }, [each for each in done[:-1] if isinstance(each, BaseException)]
        assert await value(observer, "SELECT count(*) FROM t WHERE id = 100") == 1
        for session in (*sessions, last):
            await session.close()


async def test_a_commit_that_waits_for_a_lock_can_be_cancelled(ground: Ground) -> None:
    """NOTIFY takes one at its commit, and keeps it until the commit is done."""
    async with ground.session() as first, ground.session() as second, ground.session() as observer:
        for number, session in enumerate((first, second)):
            await session.execute("BEGIN")
            await session.execute("INSERT INTO t VALUES (%s)", [number])
            await session.execute("NOTIFY c")
        await ground.lose_quorum()
        commit = asyncio.ensure_future(first.execute("COMMIT"))
        await ground.waits(first, observer)
        blocked = asyncio.ensure_future(second.execute("COMMIT"))
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        await poll_until(lambda: value(observer, query, second.info.backend_pid))
        await observer.execute("SELECT pg_cancel_backend(%s)", [second.info.backend_pid])
        with pytest.raises(psycopg.errors.QueryCanceled):
            await asyncio.wait_for(blocked, scaled(5))
        await ground.regain_quorum()
        await asyncio.wait_for(commit, scaled(20))
        assert await value(observer, "SELECT count(*) FROM t") == 1


async def test_what_is_not_durable_is_not_read_from_files(ground: Ground) -> None:
    """PostgreSQL's own functions for files read through the C library's streams."""
    read = "SELECT length(pg_read_binary_file('pg_wal/' || pg_walfile_name(pg_current_wal_insert_lsn())))"
    async with ground.session() as committer, ground.session() as observer, ground.session() as reader:
        await ground.lose_quorum()
        commit = asyncio.ensure_future(committer.execute("INSERT INTO t VALUES (1)"))
        await ground.waits(committer, observer)
        reading = asyncio.ensure_future(value(reader, read))
        assert await stays_undone(reading)
        await ground.regain_quorum()
        assert await asyncio.wait_for(reading, scaled(20)) > 0
        await asyncio.wait_for(commit, scaled(20))


async def test_what_is_not_durable_is_not_decoded(ground: Ground) -> None:
    """Changes that a subscriber had, and the volume lost, would set the two apart for ever."""
    read = (
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', "
        "'publication_names', 'p')"
    )
    async with (
        ground.session() as committer,
        ground.session() as observer,
        ground.session() as reader,
    ):
        await reader.execute("CREATE PUBLICATION p FOR TABLE t")
        await reader.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        await ground.lose_quorum()
        commit = asyncio.ensure_future(committer.execute("INSERT INTO t VALUES (1)"))
        await ground.waits(committer, observer)
        decoding = asyncio.ensure_future(value(reader, read))
        assert await stays_undone(decoding)
        await ground.regain_quorum()
        assert await asyncio.wait_for(decoding, scaled(20)) + await value(reader, read) > 0
        await asyncio.wait_for(commit, scaled(20))


async def test_what_is_not_durable_is_not_sent(ground: Ground, install: EngineInstall, data_dir: Path) -> None:
    """A WAL sender has its own way to the WAL, past the files."""
    received = data_dir / "received"
    received.mkdir()
    command = [str(install.bin_dir / "pg_receivewal"), "-d", ground.dsn, "-D", str(received), "--no-loop", "-s", "1"]
    marker = "not durable, not sent"

    def arrived() -> bool:
        return any(marker.encode() in path.read_bytes() for path in received.iterdir())

    async with ground.session() as committer, ground.session() as observer:
        await committer.execute("CREATE TABLE words (word text)")
        receiver = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
        try:
            await poll_until(lambda: any(received.iterdir()))
            await ground.lose_quorum()
            commit = asyncio.ensure_future(committer.execute("INSERT INTO words VALUES (%s)", [marker]))
            await ground.waits(committer, observer)
            assert await stays_undone(commit)
            assert not arrived()
            await ground.regain_quorum()
            await asyncio.wait_for(commit, scaled(20))
            await poll_until(arrived)
        finally:
            receiver.terminate()
            await asyncio.wait_for(receiver.wait(), scaled(20))


async def test_a_publisher_is_not_told_of_what_is_not_durable(
    ground: Ground, make_engine: Callable[..., PostgresEngine], cluster: Path, data_dir: Path
) -> None:
    """It would forget the changes, and the subscriber could lose them with its last moments."""
    publisher = make_engine(run_dir=data_dir / "publisher", parameters={"wal_level": "logical", "autovacuum": "off"})
    await publisher.start(cluster)
    source = f"host={publisher._socket_dir} port={publisher.port} user=postgres dbname=postgres"
    async with (
        await psycopg.AsyncConnection.connect(source, autocommit=True) as origin,
        ground.session() as subscriber,
    ):
        await origin.execute("CREATE TABLE t (id int PRIMARY KEY)")
        await origin.execute("CREATE PUBLICATION p FOR TABLE t")
        await subscriber.execute(f"CREATE SUBSCRIPTION s CONNECTION '{source}' PUBLICATION p")
        await origin.execute("INSERT INTO t VALUES (1)")

        async def has(count: int) -> bool:
            return await value(subscriber, "SELECT count(*) FROM t") == count

        async def confirmed() -> bool:
            return await value(origin, "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots", committed)

        committed = await value(origin, "SELECT pg_current_wal_lsn()")
        await poll_until(lambda: has(1))
        await poll_until(confirmed)
        await ground.lose_quorum()
        await origin.execute("INSERT INTO t VALUES (2)")
        committed = await value(origin, "SELECT pg_current_wal_lsn()")
        await poll_until(lambda: has(2))
        confirmation = asyncio.ensure_future(poll_until(confirmed, 30))
        assert await stays_undone(confirmation)
        await ground.regain_quorum()
        await confirmation
        await subscriber.execute("DROP SUBSCRIPTION s")


async def test_the_owners_own_settings_stay(ground: Ground) -> None:
    """His libraries are loaded too; with his own standbys, commits wait for them, and for the volume in their flush."""
    async with ground.session() as session:
        await session.execute("ALTER SYSTEM SET shared_preload_libraries = 'pgoutput'")
        await session.execute("ALTER SYSTEM SET synchronous_standby_names = 'mine'")
    await ground.stack.restart()
    async with ground.session() as session:
        loaded = await value(session, "SHOW shared_preload_libraries")
        assert "aurora_commit" in loaded
        assert loaded.endswith(", pgoutput")
        assert await value(session, "SHOW synchronous_standby_names") == "mine"
        await session.execute("SET synchronous_commit = local")
        await session.execute("INSERT INTO t VALUES (1)")


async def test_no_standby_can_take_the_volumes_place(ground: Ground) -> None:
    """Its name is longer than a name can be."""
    async with ground.session() as session:
        assert len(await value(session, "SELECT btrim(current_setting('synchronous_standby_names'), '\"')")) > 63


def test_who_waits_in_the_flush(install: EngineInstall) -> None:
    module = commit_module(install, ON_A_VOLUME)
    assert module is not None
    assert module.is_file()
    assert commit_module(install, {}) is None
