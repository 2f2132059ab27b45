"""A real PostgreSQL behind the relay, as its clients see it."""

import asyncio
import time
from pathlib import Path

import psycopg
import pytest

from aurora_ray.endpoint.relay import Relay
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.postgres.credentials import ensure_passfile
from aurora_ray.engine.postgres.server import PostgresEngine
from tests.engine.conftest import (  # noqa: F401 - fixtures
    account,
    cluster,
    engine,
    image,
    image_cache,
    install,
    make_engine,
    records,
)
from tests.support.polling import poll_until
from tests.support.timing import scaled

pytestmark = pytest.mark.postgres


@pytest.fixture
async def dsn(relay: Relay, engine: PostgresEngine, cluster: Path, data_dir: Path) -> str:  # noqa: F811
    """Of a started engine, through the relay."""
    passfile = data_dir / "pgpass"
    await engine.start(cluster)
    await engine.give_password(ensure_passfile(passfile, "postgres"))
    relay.set_targets([("127.0.0.1", engine.port)], 1)
    return f"postgresql://postgres@127.0.0.1:{relay.port}/postgres?passfile={passfile}"


async def pgbench(engine: PostgresEngine, *arguments: str) -> str:  # noqa: F811
    program = str(engine.install.bin_dir / "pgbench")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(scaled(60)):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_pgbench_runs_and_its_balances_agree(relay: Relay, engine: PostgresEngine, dsn: str) -> None:  # noqa: F811
    await pgbench(engine, "-i", "-q", "-s", "1", dsn)
    for protocol in ("simple", "extended", "prepared"):
        output = await pgbench(engine, "-n", "-c", "10", "-t", "30", "-M", protocol, dsn)
        assert "number of transactions actually processed: 300/300" in output
    async with await psycopg.AsyncConnection.connect(dsn) as session:
        cursor = await session.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history)"
        )
        row = await cursor.fetchone()
        assert row is not None
        assert len(set(row)) == 1
    await poll_until(lambda: relay.stats().open == 0)


async def test_large_results_copies_and_cancellation_pass(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        cursor = await session.execute("SELECT repeat('x', 30000000)")
        row = await cursor.fetchone()
        assert row is not None
        assert len(row[0]) == 30_000_000
        await session.execute("CREATE TABLE t (n int, s text)")
        async with session.cursor().copy("COPY t FROM STDIN") as copy:
            for n in range(20_000):
                await copy.write_row((n, "y" * 200))
        cursor = await session.execute("SELECT count(*), sum(length(s)) FROM t")
        assert await cursor.fetchone() == (20_000, 4_000_000)
        sleeping = asyncio.create_task(session.execute("SELECT pg_sleep(60)"))
        await poll_until(lambda: _sleeps(dsn))
        await session.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping


async def _sleeps(dsn: str) -> bool:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        cursor = await session.execute("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'")
        return await cursor.fetchone() is not None


async def test_clients_wait_out_a_restart_and_old_sessions_are_cut(
    relay: Relay,
    engine: PostgresEngine,  # noqa: F811
    cluster: Path,  # noqa: F811
    dsn: str,
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        await session.execute("CREATE TABLE t AS SELECT 1 AS n")
        running = asyncio.create_task(session.execute("SELECT pg_sleep(60)"))
        await poll_until(lambda: _sleeps(dsn))
        began_s = time.monotonic()
        relay.set_targets([], 2)
        with pytest.raises(psycopg.OperationalError):
            await running
        assert time.monotonic() - began_s < 1.0
    connecting = asyncio.create_task(psycopg.AsyncConnection.connect(dsn, autocommit=True))
    await poll_until(lambda: relay.stats().held == 1)
    await engine.stop(StopMode.IMMEDIATE)
    await engine.start(cluster)
    relay.set_targets([("127.0.0.1", engine.port)], 3)
    async with await connecting as session:
        cursor = await session.execute("SELECT n, host(inet_client_addr()) FROM t")
        assert await cursor.fetchone() == (1, "127.0.0.1")
