"""A real engine whose capacity changes: what it gets, what changes while it runs, and that no session ends for it."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray.compute import commands, incarnation
from aurora_ray.compute.config import CapacityOrder, InstanceConfig
from aurora_ray.compute.instance import Instance
from aurora_ray.compute.memory import net_of
from aurora_ray.config import GIB, MIB
from aurora_ray.engine.machine import Machine
from tests.compute.test_writer import (  # noqa: F401  (fixtures)
    _account,
    cluster,
    config,
    connect,
    pytestmark,
    shared_dir,
)
from tests.support.polling import poll_until

SPIN = "SELECT count(*) FROM generate_series(1, 300000) a, generate_series(1, 40) b"


async def test_capacity_changes_under_a_session_that_is_at_work(
    config: InstanceConfig,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incarnation, "this_machine", lambda: Machine(32 * GIB, 8.0))
    instance = Instance()
    order = CapacityOrder(acu=0.5, least=0.5, most=8, cpus_per_acu=0.25)
    await instance.open(replace(config, capacity=order), {})
    try:
        session = await connect(config)
        assert await _settings(session) == ("256MB", "4MB", "2048")
        begun = await _stats(instance)
        assert (begun["acu"], begun["cache_budget_bytes"]) == (0.5, 768 * MIB)
        assert begun["memory_limit_bytes"] in (0, net_of(1 * GIB)), "0: where no control group can be made"
        spinning = asyncio.create_task(session.execute(SPIN))
        if begun["cpu_enforced"]:
            await poll_until(lambda: _held_back(instance), what="it uses its quota up")
        began_s = time.monotonic()
        assert await instance.do(commands.Scale(replace(order, acu=4))) == 4
        assert time.monotonic() - began_s < 1
        await spinning
        await poll_until(lambda: _has_settings(session, ("256MB", "16MB", "2048")), what="it has read its settings")
        grown = await _stats(instance)
        assert grown["cache_budget_bytes"] == 6 * GIB
        assert grown["memory_limit_bytes"] in (0, net_of(8 * GIB))
        assert await instance.do(commands.Scale(order)) == 0.5
        assert (await _stats(instance))["memory_limit_bytes"] == grown["memory_limit_bytes"], "it is lowered later"
        await poll_until(lambda: _has_settings(session, ("256MB", "4MB", "2048")), what="and the other ones")
        await instance.do(commands.Configure({"work_mem": "7MB"}))
        await instance.do(commands.Scale(replace(order, acu=2)))
        await poll_until(lambda: _has_settings(session, ("256MB", "7MB", "2048")), what="what the user set stays")
        assert await instance.do(commands.Scale(None)) == 0
        assert "acu" not in await _stats(instance)
        await session.close()
    finally:
        await instance.stop(fast=True)
    assert _groups(config.instance_id) == [], "its control group is gone with its engine"


def _groups(name: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob("*/**/cgroup.procs") if name in str(path)]


async def _settings(session: object) -> tuple[object, ...]:
    names = ("shared_buffers", "work_mem", "max_connections")
    rows = [await (await session.execute(f"SHOW {name}")).fetchone() for name in names]  # type: ignore[attr-defined]
    return tuple(row[0] for row in rows)


async def _has_settings(session: object, wanted: tuple[str, ...]) -> bool:
    return await _settings(session) == wanted


async def _stats(instance: Instance) -> dict[str, int | float]:
    status = await instance.status()
    assert status is not None
    return status.stats


async def _held_back(instance: Instance) -> bool:
    return (await _stats(instance)).get("held_back_rate", 0) > 0.2
