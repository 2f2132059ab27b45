"""A copy becomes the primary: real engines on both sides, nothing lost that was not said to be."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.errors import DivergedError, FencedError, NotCompleteError
from aurora_ray.replication.promotion import drain, promote
from aurora_ray.replication.succession import epochs_of, next_generation
from tests.engine.conftest import account, cluster, image, image_cache, install, make_engine, records
from tests.replication.regions import Scribe, caught_up, ended, replicating, two_regions
from tests.support.engine_stack import engine_on
from tests.support.timing import scaled

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["account", "cluster", "image", "image_cache", "install", "make_engine", "records"]

pytestmark = pytest.mark.allowed_logs("due to server stop", r"ExecuteBatchError raised in core")

LATER = next_generation(0, slot=1)
SUM = "select count(*), md5(string_agg(k || '=' || v, ',' order by k)) from t"


async def ask(dsn: str, statement: str) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        cursor = await session.execute(statement)
        return await cursor.fetchall() if cursor.description else []


async def test_a_switchover_loses_nothing_and_the_way_back_neither(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (primary, copy):
        volume = await primary.cluster.open(epochs=epochs_of(0))
        scribe = Scribe(volume, seed=1)
        async with replicating(primary, copy) as replicator:
            await scribe.write(10)
            end = await drain(primary.side, 0)
            with pytest.raises(FencedError):
                await scribe.write(1)
            with pytest.raises(NotCompleteError):
                await promote(copy.side, copy.held, LATER, copy, known_lsn=end + 8, drained=True)
        # The failed try has sealed the copy for the later generation: only that one goes on.
        assert isinstance(await ended(primary, copy), FencedError)
        promotion = await promote(copy.side, copy.held, LATER, copy, known_lsn=end, drained=True)
        assert (promotion.lsn, promotion.loss.rpo_bytes, promotion.loss.rpo_ms) == (end, 0, 0)
        assert await promote(copy.side, copy.held, LATER, copy, known_lsn=end, drained=True) == promotion
        written = await Scribe(await copy.cluster.open(epochs=epochs_of(LATER)), seed=2).write(5)
        async with replicating(copy, primary) as replicator:
            await caught_up(replicator, written)
            assert primary.held == copy.held


async def test_a_failover_says_what_is_missing(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (primary, copy):
        scribe = Scribe(await primary.cluster.open(epochs=epochs_of(0)), seed=3)
        begun_s = time.time()
        async with replicating(primary, copy) as replicator:
            held = await scribe.write(10)
            await caught_up(replicator, held)
        end = await scribe.write(5)
        promotion = await promote(copy.side, copy.held, LATER, copy, known_lsn=end)
        assert (promotion.loss.after_lsn, promotion.loss.known_lsn) == (held, end)
        assert promotion.loss.rpo_bytes == end - held > 0
        assert begun_s < promotion.loss.written_s < time.time()
        assert 0 < promotion.loss.rpo_ms < 1e3 * (time.time() - begun_s)
        found = await ended(copy, primary)
        assert isinstance(found, DivergedError)
        assert found.common_lsn == held
        copy.first_lsn = promotion.lsn + 1
        with pytest.raises(NotCompleteError):
            await promote(copy.side, copy.held, next_generation(LATER, 1), copy)


@pytest.mark.postgres
async def test_an_engine_goes_on_in_the_other_region_with_all_that_was_there(
    data_dir: Path, account: EngineAccount, install: EngineInstall, image_cache: Path
) -> None:
    common: dict[str, Any] = {"account": account, "install": install, "image_cache": image_cache, "parameters": {}}
    (data_dir / "regions").mkdir()
    async with two_regions(data_dir / "regions") as (primary, copy):
        east, west = data_dir / "east", data_dir / "west"
        async with engine_on(primary.cluster, east, epochs=epochs_of(0), **common) as (stack, dsn):
            await ask(dsn, "create table t (k serial primary key, v text)")
            # The region is added to a database that is in use: pages first, then the log.
            copy.first_lsn = await stack.flush()
            async with replicating(primary, copy) as replicator:
                async with asyncio.timeout(scaled(60)):
                    for _ in range(20):
                        await ask(dsn, "insert into t (v) select md5(g::text) from generate_series(1, 100) g")
                expected = await ask(dsn, SUM)
                await caught_up(replicator, stack.volume.vdl)
                assert replicator.status().seed.redo_bytes < copy.first_lsn
            await ask(dsn, "insert into t (v) values ('nobody else has this')")
            known = stack.volume.vdl
            promotion = await promote(copy.side, copy.held, LATER, copy, known_lsn=known)
            assert promotion.loss.rpo_bytes > 0
            west.mkdir()
            shutil.copy2(east / "passfile", west / "passfile")
            async with engine_on(copy.cluster, west, epochs=epochs_of(LATER), create=False, **common) as (_, west_dsn):
                assert await ask(west_dsn, SUM) == expected
                await ask(west_dsn, "insert into t (v) values ('goes on')")
                assert await ask(west_dsn, "select v from t order by k desc limit 1") == [("goes on",)]
                found = await ended(copy, primary)
                assert isinstance(found, DivergedError)
                assert found.common_lsn == promotion.lsn
                with pytest.raises(psycopg.Error):  # the old primary's commits end: its volume follows the new one
                    await asyncio.wait_for(ask(dsn, "insert into t (v) values ('too late')"), scaled(30))
