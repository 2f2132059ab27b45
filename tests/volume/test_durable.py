"""The VDL as an object: listeners, waits, and its end."""

from __future__ import annotations

import asyncio

import pytest

from aurora_ray.errors import QuorumLostError, StorageError
from aurora_ray.volume.durable import DurableLsn


def test_any_number_listens_and_each_may_stop() -> None:
    durable = DurableLsn(0)
    one: list[int] = []
    two: list[int] = []
    listening = durable.listen(one.append)
    durable.listen(two.append)
    durable.advance(8)
    listening.stop()
    listening.stop()
    durable.advance(16)
    assert (one, two) == ([8], [8, 16])


@pytest.mark.allowed_logs("a listener to the VDL failed")
def test_a_listener_that_fails_or_stops_others_harms_nobody() -> None:
    durable = DurableLsn(0)
    heard: list[int] = []

    def first(_: int) -> None:
        second.stop()
        raise ValueError("mine alone")

    durable.listen(first)
    second = durable.listen(lambda _: pytest.fail("it was stopped"))
    durable.listen(heard.append)
    durable.advance(8)
    assert heard == [8]


async def test_waits_end_in_time_with_the_vdl_or_with_its_end() -> None:
    durable = DurableLsn(0)
    await durable.wait_for(0, timeout_s=0)
    near, far = (asyncio.create_task(durable.wait_for(lsn, timeout_s=30)) for lsn in (8, 100))
    await asyncio.sleep(0)
    durable.advance(9)
    await near
    assert not far.done()
    with pytest.raises(QuorumLostError, match="not known yet"):
        await durable.wait_for(50, timeout_s=0.01)
    durable.fail(StorageError("first"))
    durable.fail(StorageError("second"))
    for wait in (far, durable.wait_for(50, timeout_s=30)):
        with pytest.raises(StorageError, match="first"):
            await wait
    await durable.wait_for(9, timeout_s=0)  # what is durable stays so


async def test_a_cancelled_wait_is_forgotten() -> None:
    durable = DurableLsn(0)
    waits = [asyncio.create_task(durable.wait_for(lsn, timeout_s=30)) for lsn in range(100, 110)]
    await asyncio.sleep(0)
    for wait in waits[1:]:
        wait.cancel()
    await asyncio.gather(*waits[1:], return_exceptions=True)
    assert len(durable._waits) == 1
    durable.advance(100)
    await waits[0]
