"""What a reader may cost is bounded, on real storage nodes with real engines."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.compute.reader import Reader
from tests.compute.test_reader import ENDS, Fleet, caught_up, cluster, execute, shared_dir  # noqa: F401
from tests.support.polling import poll_until
from tests.support.ports import PortAllocator
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r"the lease of reader"),
]
MIB = 1 << 20


@pytest.fixture
async def fleet(cluster, shared_dir: Path, ports: PortAllocator) -> AsyncIterator[Fleet]:  # type: ignore[no-untyped-def]  # noqa: F811
    six = Fleet(cluster, shared_dir, ports)
    six.reader_config = replace(six.reader_config, cache_bytes=32 * MIB)
    six.reader = Reader(six.reader_config)
    try:
        await six.open()
        yield six
    finally:
        await six.reader.stop()
        await six.writer.stop()


@ENDS
async def test_a_reader_whose_overlay_outgrows_its_bound_is_opened_anew_and_lacks_nothing(fleet: Fleet) -> None:
    await execute(fleet.writer_config, "create table t (i int, filler text)")
    ended = asyncio.create_task(fleet.reader.wait_ended())
    rows = 0
    for _ in range(100):
        await execute(fleet.writer_config, "insert into t select i, repeat('x', 900) from generate_series(1, 4000) i")
        rows += 4000
        target = fleet.writer.status().vdl
        await poll_until(
            lambda: ended.done() or fleet.reader.status().replayed_lsn >= target,  # noqa: B023
            scaled(60),
            what="nothing is written faster than it is replayed",
        )
        if ended.done():
            break
    async with asyncio.timeout(scaled(60)):
        outcome = await ended
    assert outcome.retryable
    assert "its overlay has grown" in outcome.reason
    fleet.reader = Reader(fleet.reader_config)
    await fleet.reader.start()
    await caught_up(fleet)
    assert await execute(fleet.reader_config, "select count(*) from t") == [(rows,)]
    _, mounted, _, _ = fleet.reader._require_open()
    assert int(mounted.stats()["cached_bytes"]) < 2 * 32 * MIB, "what it had is given back"
