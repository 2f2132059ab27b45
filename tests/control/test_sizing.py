"""Sizes are declared, changed by a word, and put in force by opening anew."""

from dataclasses import replace

import pytest

from aurora_ray.control.decide import sizing
from aurora_ray.control.model.state import Fleet
from aurora_ray.engine.machine import Machine, this_machine
from aurora_ray.engine.sizes import default_memory
from aurora_ray.errors import UsageError
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import Running, started
from tests.support.polling import poll_until

pytestmark = pytest.mark.allowed_logs(r".*")

MIB = 1 << 20


async def created(running: Running, memory_bytes: int = 0) -> None:
    await running.api.create("demo", memory_bytes=memory_bytes, timeout_s=20)
    await running.api.wait_available("demo", 20)


async def test_a_size_is_declared_by_rule_and_by_word(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await created(running)
        default = default_memory(this_machine(), 0)
        assert runtime.instances["demo-1"].configs[-1].memory_bytes == default
        await running.api.create("second", timeout_s=20)
        await running.api.create("third", memory_bytes=320 * MIB, timeout_s=20)
        sizes = [cluster.writer().memory_bytes for cluster in running.plane.fleet.clusters]
        assert sizes == [default, default_memory(this_machine(), default), 320 * MIB]
        with pytest.raises(UsageError, match="can have from 128 MiB to"):
            await running.api.create("fourth", memory_bytes=1 << 50, timeout_s=20)
        with pytest.raises(UsageError, match="`aurora modify` changes it"):
            await running.api.create("third", memory_bytes=640 * MIB, exist_ok=True, timeout_s=20)
        assert not await running.api.create("third", exist_ok=True, timeout_s=20)


async def test_another_size_is_in_force_when_the_call_returns(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await created(running, 256 * MIB)
        before = runtime.instances["demo-1"]
        done = await running.api.modify("demo", 512 * MIB, False, 20)
        assert done == {"memory_bytes": 512 * MIB, "before_bytes": 256 * MIB, "applies": "now"}
        after = runtime.instances["demo-1"]
        assert not before.alive
        assert [config.memory_bytes for config in after.configs] == [512 * MIB]
        await running.api.modify("demo", 512 * MIB, False, 20)
        assert runtime.instances["demo-1"] is after  # nothing to do
        with pytest.raises(UsageError, match="not 64 MiB"):
            await running.api.modify("demo", 64 * MIB, False, 20)


async def test_a_size_waits_for_the_next_start_if_it_shall(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await created(running, 256 * MIB)
        done = await running.api.modify("demo", 512 * MIB, True, 20)
        assert done["applies"] == "at the next start"
        (instance,) = (await running.api.status("demo"))["instances"]
        assert (instance["declared_memory_bytes"], instance["next_memory_bytes"]) == (256 * MIB, 512 * MIB)
        local = runtime.instances["demo-1"]
        assert len(local.configs) == 1
        local.kill_engine()
        await poll_until(lambda: len(local.configs) == 2, what="it is opened again")
        assert local.configs[-1].memory_bytes == 512 * MIB
        (instance,) = (await running.api.status("demo"))["instances"]
        assert (instance["declared_memory_bytes"], instance["next_memory_bytes"]) == (512 * MIB, None)


async def test_a_size_outlives_control_planes(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await created(running, 256 * MIB)
        await running.api.modify("demo", 320 * MIB, True, 20)
    async with started(runtime) as running:
        await running.api.wait_open(20)
        writer = running.plane.fleet.cluster("demo").writer()
        assert (writer.memory_bytes, writer.next_memory_bytes) == (256 * MIB, 320 * MIB)


async def test_an_instance_from_before_there_were_sizes_gets_one_when_it_opens(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await created(running)

        def unsized(fleet: Fleet) -> Fleet:
            return fleet.with_instance("demo", replace(fleet.cluster("demo").writer(), memory_bytes=0))

        fleet = await running.plane.commit(unsized)
        local = runtime.instances["demo-1"]
        local.kill_engine()
        await poll_until(lambda: len(local.configs) == 2, what="it is opened again")
        assert local.configs[-1].memory_bytes == default_memory(this_machine(), 0)
        machine = Machine(24 << 30, 8)
        twice = sizing.with_sizes(sizing.with_sizes(fleet, machine), Machine(2 << 30, 2))
        assert twice.cluster("demo").writer().memory_bytes == 4608 * MIB  # what is declared stays
