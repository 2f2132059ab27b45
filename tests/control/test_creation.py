"""A cluster that is created is whole, whoever died on the way and whatever was not heard of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.reconcile import OpenInstance, StartInstance
from aurora_ray.control.model.state import DBInstance
from aurora_ray.control.observe.outages import Outages
from aurora_ray.control.perform import steps as perform
from aurora_ray.errors import AuroraError, QuorumLostError, UnsupportedRoleError, UsageError
from tests.control.local_runtime import HALF_MADE, LocalInstance, LocalRuntime
from tests.control.test_plane import Running, new_plane, started
from tests.control.test_takeover import left_behind
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from aurora_ray.compute.config import InstanceConfig, InstanceStatus, Opened

pytestmark = pytest.mark.allowed_logs(r".*")


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The first opening succeeds, and its answer reaches nobody; set once it has."""
    opened, heard = asyncio.Event(), LocalInstance.open

    async def opens(instance: LocalInstance, config: InstanceConfig) -> Opened:
        answer = await heard(instance, config)
        if not opened.is_set():
            opened.set()
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(LocalInstance, "open", opens)
    return opened


async def test_a_volume_that_is_served_is_kept_though_the_control_plane_died_before_it_knew(
    runtime: LocalRuntime, unheard: asyncio.Event
) -> None:
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await unheard.wait()
    await first.vanish()
    async with started(runtime) as second:
        await second.api.wait_available("demo", 20)
        volume = second.plane.fleet.cluster("demo").volume
        await poll_until(lambda: second.plane.fleet.cluster("demo").volume.initialised, what="it is noted")
        runtime.errors.append(HALF_MADE)  # an instance that is wrong about it
        runtime.instances["demo-1"].kill_engine()
        await poll_until(lambda: not runtime.errors, what="opened in vain")
        await second.api.wait_available("demo", 20)
        assert second.plane.fleet.cluster("demo").volume.volume_id == volume.volume_id
        assert not second.plane.fleet.dropped_volumes
        assert not runtime.instances["demo-1"].configs[-1].initialise
    await left_behind(first)


async def test_a_note_that_could_not_be_saved_is_saved_later(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        store = running.plane.declared.store
        assert store is not None
        save, failures = store.save, [QuorumLostError("no quorum")] * 2

        async def saves(fleet: Any) -> int:
            if fleet.cluster("demo").volume.initialised and failures:
                raise failures.pop()
            return await save(fleet)

        store.save = saves  # type: ignore[method-assign]
        await running.api.wait_available("demo", 20)
        await poll_until(lambda: running.plane.fleet.cluster("demo").volume.initialised, 20, what="it is noted")
        assert not failures
        assert len(runtime.instances["demo-1"].configs) == 1


@pytest.mark.parametrize("error", [TimeoutError(), AuroraError("no"), RuntimeError("what nobody expects")])
async def test_an_opening_that_succeeded_is_noticed_though_the_look_after_it_failed(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    opens, says, failures = LocalInstance.open, LocalInstance.status, [error] * 2

    async def open_(instance: LocalInstance, config: InstanceConfig) -> Opened:
        answer = await opens(instance, config)
        monkeypatch.setattr(LocalInstance, "status", status)
        return answer

    async def status(instance: LocalInstance) -> InstanceStatus | None:
        if failures:
            raise failures.pop()
        return await says(instance)

    monkeypatch.setattr(LocalInstance, "open", open_)
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 10)
        assert not failures
        assert len(runtime.instances["demo-1"].configs) == 1


@pytest.mark.parametrize("error", [TimeoutError(), UsageError("demo-1 is open already"), RuntimeError("its answer")])
async def test_an_opening_whose_answer_is_an_error_counts_if_the_instance_serves(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    opens = LocalInstance.open

    async def open_(instance: LocalInstance, config: InstanceConfig) -> Opened:
        await opens(instance, config)
        raise error

    monkeypatch.setattr(LocalInstance, "open", open_)
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 10)
        assert len(runtime.instances["demo-1"].configs) == 1


async def test_a_declared_instance_that_nothing_can_run_keeps_nobody_from_writing(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        cluster = running.plane.fleet.cluster("demo")
        reader = DBInstance("demo-2", Role.STATIC, "b", 15999)
        await running.plane.commit(
            lambda fleet: fleet.with_cluster(replace(cluster, instances=(*cluster.instances, reader)))
        )
        await poll_until(lambda: any("nothing can run a static yet" in note for note in running.plane.notes))
        for action in (StartInstance("", "demo", "demo-2"), OpenInstance("", "demo", "demo-2", initialise=False)):
            running.plane.processes.instances["demo-2"] = running.plane.processes.instances["demo-1"]
            with pytest.raises(UnsupportedRoleError, match="demo-2 is a static"):
                await perform.perform(running.plane.means, action)
            del running.plane.processes.instances["demo-2"]
        running.plane.failovers.lost("demo-2", "it ended", 0, 0)
        assert not Outages(runtime.directory).load(), "that is no outage of the writer"
        assert len(runtime.instances["demo-1"].configs) == 1
        assert "demo-2" not in runtime.started
