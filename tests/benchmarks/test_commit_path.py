"""The commit path, counted: what one commit of one client costs in waits, flushes, messages and bytes.

Unlike a time, a count is the same on every machine, so that a change which makes a commit dearer fails here and not in
somebody's benchmark. The bounds leave room for a neighbour (a timer that sends between write and fsync, the WAL
writer), not for another message per commit. Whoever improves a figure lowers its bound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from tests.support.engine_stack import Stack, engine_on
from tests.volume.cluster import running

pytestmark = pytest.mark.postgres

COMMITS = 200
ROWS = 500
COPIES = 6
# A single-row update of a small table; all per commit. Measured: 1 wait, 1 flush, 6 messages, 1 record, 313 bytes, of
# which 96 are the batch's header.
BOUNDS = {
    "syncs": 1.05,
    "flushes": 1.10,
    "messages": COPIES * 1.10,
    "records": 1.50,
    "flush_bytes": 350,
}
# Nothing in the background but what a commit needs.
QUIET = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "wal_writer_delay": "10s",
}


@pytest.fixture
async def stack(
    data_dir: Path, account: EngineAccount, install: EngineInstall, image_cache: Path
) -> AsyncIterator[tuple[Stack, str]]:
    async with (
        running(data_dir / "nodes") as cluster,
        engine_on(
            cluster, data_dir, account=account, install=install, image_cache=image_cache, parameters=QUIET
        ) as opened_stack,
    ):
        yield opened_stack


async def test_a_commit_costs_one_wait_and_one_message_to_each_copy(stack: tuple[Stack, str]) -> None:
    path, dsn = stack
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        await session.execute("CREATE TABLE t (id int PRIMARY KEY, value int) WITH (fillfactor = 50)")
        await session.execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, %s) n", [ROWS])
        await session.execute("CHECKPOINT")
        await path.flush()
        before = path.stats()
        for number in range(COMMITS):
            await session.execute("UPDATE t SET value = value + 1 WHERE id = %s", [1 + number], prepare=True)
        after = path.stats()
    per_commit = {name: (after[name] - before[name]) / COMMITS for name in BOUNDS}
    too_dear = {name: value for name, value in per_commit.items() if value > BOUNDS[name]}
    assert not too_dear, f"per commit: {per_commit}, of which above their bounds: {too_dear}"
    assert per_commit["syncs"] >= 1, "a commit must wait for its quorum"
    assert per_commit["messages"] >= 4, "four copies at least must have heard of it"
