"""The control plane at work: six real storage nodes, scripted instances, and kills."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast
from uuid import UUID

import pytest

from aurora_ray.control.api.calls import ControlApi
from aurora_ray.control.model import bootstrap
from aurora_ray.control.model.runtime import ControlConfig, Runtime
from aurora_ray.control.plane import ControlPlane
from aurora_ray.control.report import events
from aurora_ray.errors import AuroraError, ConfigurationError, FencedError, QuorumLostError, UsageError
from tests.control.local_runtime import HALF_MADE, LocalRuntime
from tests.support.polling import poll_until

AZS = ("a", "b", "c")
GROUP_BYTES = 64 << 20
# Storage nodes that are stopped at the end of a test may be talking to each other.
pytestmark = pytest.mark.allowed_logs(r"ExecuteBatchError raised in core")


class Running:
    """A control plane whose loop runs."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.api = ControlApi(plane)
        self.task = asyncio.create_task(plane.run())

    async def vanish(self) -> None:
        """As if it had been killed: nothing is stopped in order."""
        self.task.cancel()
        await self.plane.processes.tasks.cancel()
        with contextlib.suppress(asyncio.CancelledError, FencedError):
            await self.task


def new_plane(runtime: LocalRuntime, *, small: bool = False) -> ControlPlane:
    config = ControlConfig(runtime.directory, "somewhere", AZS, GROUP_BYTES, 1 << 30, 300.0, 1 << 28, small=small)
    (runtime.directory / "passfiles").mkdir(exist_ok=True)
    return ControlPlane(config, cast("Runtime", runtime))


@asynccontextmanager
async def started(runtime: LocalRuntime, *, small: bool = False) -> AsyncIterator[Running]:
    running = Running(new_plane(runtime, small=small))
    try:
        yield running
    finally:
        if not running.task.done():
            await running.plane.shutdown()
        with contextlib.suppress(asyncio.CancelledError, FencedError):
            await running.task


async def test_from_nothing_to_an_available_cluster_and_back_with_everything_known(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        assert await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        assert not await running.api.create("demo", exist_ok=True)
        (config,) = runtime.instances["demo-1"].configs
        assert config.initialise
        status = await running.api.status("demo")
        assert status["state"] == "available"
        assert [node["state"] for node in status["storage_nodes"]] == ["healthy"] * 6
        assert status["endpoints"]["cluster"]["dsn"].startswith("postgresql://postgres@127.0.0.1:")
        revision = running.plane.fleet.revision
    async with started(runtime) as running:
        await running.api.wait_available("demo", 20)
        assert running.plane.fleet.revision >= revision
        (config,) = runtime.instances["demo-1"].configs
        assert not config.initialise


async def test_what_is_killed_comes_back(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        instance = runtime.instances["demo-1"]
        instance.kill_engine()
        await poll_until(lambda: len(instance.configs) == 2, what="opened again in the same process")
        await poll_until(lambda: running.api._state(running.plane.fleet.cluster("demo")) == "available")
        instance.kill()
        await poll_until(lambda: runtime.instances["demo-1"] is not instance, what="a new process")
        await running.api.wait_available("demo", 20)
        await runtime.nodes["b-1"].kill()
        await poll_until(lambda: runtime.nodes["b-1"].alive, what="the node runs again")
        instance = runtime.instances["demo-1"]
        address = runtime.nodes["b-1"].info.address
        await poll_until(lambda: address in [node.address for node in instance.addresses], what="the writer knows it")


async def test_a_killed_control_plane_is_succeeded_by_one_that_touches_nothing_that_runs(runtime: LocalRuntime) -> None:
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    began = list(runtime.started)
    await first.vanish()
    async with started(runtime) as second:
        await second.api.wait_available("demo", 20)
        assert runtime.started == began
        assert second.plane.declared.epoch > first.plane.declared.epoch
        with pytest.raises(FencedError):
            await first.plane.commit(lambda fleet: fleet.without_cluster("demo"))
        assert [c["cluster"] for c in await second.api.clusters()] == ["demo"]
    await first.plane.processes.clients.close()
    assert first.plane.declared.store is not None
    await first.plane.declared.store.close()


async def test_an_older_control_plane_ends_when_a_newer_one_takes_over(runtime: LocalRuntime) -> None:
    async with started(runtime) as first:
        await first.api.wait_open(20)
        async with started(runtime) as second:
            await second.api.wait_open(20)
            await poll_until(first.task.done, what="the first one ends by itself")
            with pytest.raises(FencedError, match="taken over"):
                first.task.result()
        await first.plane.processes.clients.close()
        assert first.plane.declared.store is not None
        await first.plane.declared.store.close()


async def test_with_three_nodes_nothing_is_declared_and_with_four_it_is(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.wait_open(20)
        running.plane.processes.runtime = cast("Runtime", _Broken(runtime))
        for node in ("a-1", "a-2", "b-1"):
            await runtime.nodes[node].kill()
        waiting = asyncio.create_task(running.api.create("demo", timeout_s=20))
        await poll_until(lambda: len(running.plane.processes.nodes) == 3)
        assert not waiting.done()
        running.plane.processes.runtime = cast("Runtime", runtime)
        assert await waiting


async def test_nodes_that_cannot_start_are_said_at_once(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        error = ConfigurationError("the data directory holds something else")
        running.plane.processes.runtime = cast("Runtime", _Broken(runtime, error))
        with pytest.raises(ConfigurationError, match="storage nodes do not start; the first says: the data directory"):
            await running.api.wait_open(20)


async def test_a_half_made_volume_is_replaced(runtime: LocalRuntime) -> None:
    runtime.errors.append(HALF_MADE)
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        first, second = runtime.instances["demo-1"].configs
        assert first.volume.volume_id != second.volume.volume_id
        assert first.initialise
        assert second.initialise
        await poll_until(lambda: not running.plane.fleet.dropped_volumes, what="the old one is dropped everywhere")


async def test_what_a_person_must_mend_is_said_at_once(runtime: LocalRuntime) -> None:
    runtime.errors.append(ConfigurationError("port 15432 on 127.0.0.1 is in use"))
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        with pytest.raises(ConfigurationError, match="in use"):
            await running.api.wait_available("demo", 20)
        status = await running.api.status("demo")
        assert status["state"] == "failed"
        assert "in use" in status["instances"][0]["reason"]


async def test_a_volume_that_fills_gets_another_group(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        instance = runtime.instances["demo-1"]
        instance.free_bytes = GROUP_BYTES // 10
        await poll_until(lambda: instance.groups == (0, 1), what="a second group")
        instance.free_bytes = GROUP_BYTES
        assert len(running.plane.fleet.cluster("demo").volume.groups) == 2


async def test_an_engine_that_needs_room_to_come_up_is_given_another_group(runtime: LocalRuntime) -> None:
    runtime.may_open.clear()
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await poll_until(lambda: "demo-1" in runtime.instances and runtime.instances["demo-1"].configs, what="it opens")
        instance = runtime.instances["demo-1"]
        instance.free_bytes = 0
        await poll_until(lambda: instance.groups == (0, 1), what="a second group")
        instance.free_bytes = GROUP_BYTES
        runtime.may_open.set()
        await running.api.wait_available("demo", 20)
        assert len(running.plane.fleet.cluster("demo").volume.groups) == 2


async def test_delete_and_purge_remove_every_segment(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        volume_id = running.plane.fleet.cluster("demo").volume.volume_id
        await running.api.delete("demo", 20)
        await running.api.purge("demo", 20)
        directories = [runtime.directory / "nodes" / node / "volumes" / str(volume_id) for node in runtime.nodes]
        await poll_until(lambda: not any(path.exists() for path in directories), what="no segment is left")
        with pytest.raises(UsageError, match="there is no cluster"):
            await running.api.status("demo")


async def test_wrong_use_is_refused(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        with pytest.raises(UsageError, match="no cluster name"):
            await running.api.create("Demo!")
        with pytest.raises(UsageError, match="not known"):
            await running.api.create("demo", engine="oracle")
        await running.api.create("demo", timeout_s=20)
        with pytest.raises(UsageError, match="already"):
            await running.api.create("demo")
        with pytest.raises(UsageError, match="exists with postgres"):
            await running.api.create("demo", version="9", exist_ok=True)
        with pytest.raises(QuorumLostError, match="took longer"):
            await running.plane.wait_until(lambda: False, 0.01, "waiting for nothing")


async def test_a_cluster_that_is_there_is_taken_as_it_is_unless_an_engine_is_said(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        other = replace(running.plane.fleet.cluster("demo"), engine="mysql", engine_version="10.11")
        await running.plane.commit(lambda fleet: fleet.with_cluster(other))
        assert not await running.api.create("demo", exist_ok=True)
        with pytest.raises(UsageError, match="exists with mysql"):
            await running.api.create("demo", engine="postgres", exist_ok=True)


async def test_of_one_key_one_action_runs_even_when_one_begins_as_the_other_ends(runtime: LocalRuntime) -> None:
    plane = new_plane(runtime)
    release = asyncio.Event()

    async def second() -> None:
        await release.wait()

    async def first() -> None:
        plane._busy.pop("key")  # as an action does at its end, whereupon the loop starts the next one
        plane._start("key", second())

    plane._start("key", first())
    for _ in range(5):
        await asyncio.sleep(0)
    assert "key" in plane.observe().busy
    release.set()
    await poll_until(lambda: not plane.observe().busy, what="the second one ends")


class _Broken:
    """A machine on which no storage node starts."""

    def __init__(self, runtime: LocalRuntime, error: AuroraError | None = None) -> None:
        self._runtime = runtime
        self._error = error or QuorumLostError("no machine")

    async def start_node(self, *_: object) -> None:
        raise self._error

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)


async def test_a_change_that_is_durable_stays_though_the_fleets_file_cannot_be_written(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ConfigurationError("fleet.toml cannot be written: No space left on device")

    async with started(runtime) as running:
        await running.api.wait_open(20)
        plane, node = running.plane, running.plane.fleet.nodes[0]
        with monkeypatch.context() as patched:
            patched.setattr(bootstrap, "save", full)
            await plane.commit(lambda fleet: fleet.with_node(replace(node, host="10.0.0.17")))
            assert plane.fleet.node(node.node_id).host == "10.0.0.17"
            assert any("No space left" in sentence for _, sentence in plane.journal.trail)
        await poll_until(lambda: _host_in_file(runtime, node.node_id) == "10.0.0.17", what="the file follows")


def _host_in_file(runtime: LocalRuntime, node_id: str) -> str:
    loaded = bootstrap.load(runtime.directory)
    return loaded.node(node_id).host if loaded is not None else ""


async def test_a_control_volume_without_the_state_that_was_saved_in_it_is_not_begun_anew(
    runtime: LocalRuntime,
) -> None:
    bootstrap.save(runtime.directory, replace(bootstrap.new_fleet("somewhere", AZS), revision=7))
    async with started(runtime) as running:
        with pytest.raises(ConfigurationError, match=r"though a state was saved in it.*aurora repair state"):
            await running.api.wait_open(20)
        assert not running.plane.is_open


async def test_the_state_of_another_fleet_is_not_taken_over(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.wait_open(20)
        fleet = running.plane.fleet
    bootstrap.save(runtime.directory, replace(fleet, fleet_id=UUID(int=5)))
    async with started(runtime) as running:
        with pytest.raises(ConfigurationError, match="aurora repair fleet"):
            await running.api.wait_open(20)
    bootstrap.save(runtime.directory, replace(fleet, fleet_id=bootstrap.UNKNOWN_FLEET))
    async with started(runtime) as running:
        await running.api.wait_open(20)
        loaded = bootstrap.load(runtime.directory)
        assert loaded is not None
        assert loaded.fleet_id == running.plane.fleet.fleet_id == fleet.fleet_id


@pytest.mark.allowed_logs(r"the disk is", r"less than the reserve", r"ExecuteBatchError raised in core")
async def test_a_full_disk_is_an_event_and_so_is_its_end(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.wait_open(20)
        node = runtime.nodes["b-1"].server.node
        node.config = replace(node.config, disk_reserve_bytes=1 << 20)
        node._free_bytes = lambda _: 0
        await poll_until(lambda: _events(runtime, "b-1") == ["trouble"], what="it is noticed")
        node._free_bytes = lambda _: 1 << 30
        await poll_until(lambda: _events(runtime, "b-1") == ["trouble", "trouble_over"], what="it is over")


def _events(runtime: LocalRuntime, name: str) -> list[str]:
    return [event["kind"] for event in events.read(runtime.directory, name)]
