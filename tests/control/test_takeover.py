"""Taking over: by the next control plane while something is going on, and by a writer in another place."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from aurora_ray.control.model.runtime import NoPlaceError
from aurora_ray.control.observe.heartbeats import Isolation
from aurora_ray.control.observe.outages import FILE_NAME, Outage, Outages
from aurora_ray.control.perform import steps as perform
from aurora_ray.errors import ConfigurationError, QuorumLostError
from aurora_ray.storage.disk.datadir import DataDir
from tests.control.local_runtime import LocalInstance, LocalRuntime
from tests.control.test_chaos import status
from tests.control.test_heartbeats import hang, quick_heartbeats
from tests.control.test_plane import Running, new_plane, started
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.compute.config import EngineChoice

pytestmark = pytest.mark.allowed_logs(r".*")


async def left_behind(running: Running) -> None:
    """What the process of a control plane that was killed took with it."""
    await running.plane.processes.clients.close()
    assert running.plane.declared.store is not None
    await running.plane.declared.store.close()


async def test_a_process_that_hangs_is_taken_over_and_replaced(runtime: LocalRuntime) -> None:
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    await first.vanish()
    instance = runtime.instances["demo-1"]
    hang(instance)
    async with started(runtime) as second:
        second.plane.heartbeats = quick_heartbeats(second.plane)
        await second.api.wait_open(20)
        await poll_until(lambda: runtime.instances["demo-1"] is not instance, what="a new process")
        await second.api.wait_available("demo", 20)
        assert not instance.alive
    await left_behind(first)


async def test_the_next_control_plane_knows_since_when_the_writer_is_away(runtime: LocalRuntime) -> None:
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    runtime.errors += [QuorumLostError("no")] * 100
    runtime.instances["demo-1"].kill_engine()
    await poll_until((runtime.directory / FILE_NAME).exists)
    (noted,) = Outages(runtime.directory).load().values()
    await first.vanish()
    runtime.errors.clear()
    async with started(runtime) as second:
        await second.api.wait_available("demo", 20)
        await poll_until(lambda: not (runtime.directory / FILE_NAME).exists(), what="the outage is over")
        (said,) = [(at_s, each) for at_s, each in second.plane.journal.trail if "without a writer" in each]
        found = re.search(r"for ([\d.]+) s", said[1])
        assert found is not None
        assert float(found[1]) == pytest.approx(said[0] - noted.good_at_ns / 1e9, abs=1.0)
    await left_behind(first)


async def test_a_writer_moves_when_its_az_went_together_with_the_control_plane(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perform, "AZ_GRACE_S", 1.0)
    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    await first.vanish()
    start, tried = runtime.start_instance, []

    async def start_instance(instance_id: str, az: str, choice: EngineChoice) -> LocalInstance:
        tried.append(az)
        if az == "a":
            raise NoPlaceError("there is no machine of AZ a in the cluster now")
        return await start(instance_id, az, choice)

    monkeypatch.setattr(runtime, "start_instance", start_instance)
    runtime.broken |= {"a-1", "a-2"}
    for node in ("a-1", "a-2"):
        await runtime.nodes[node].kill()
    runtime.instances["demo-1"].kill()
    async with started(runtime) as second:
        await second.api.wait_available("demo", 20)
        assert second.plane.fleet.cluster("demo").writer().az != "a"
        assert tried[0] == "a", "it is given time to come up"
    await left_behind(first)


async def test_before_a_writer_moves_its_new_process_is_there(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        before = runtime.instances["demo-1"]
        was_there = []
        end = before.end

        async def ends(**options: Any) -> None:
            was_there.extend(runtime.made_ready)
            await end(**options)

        before.end = ends  # type: ignore[method-assign]
        await running.api.failover("demo", None, 20)
        (declared,) = running.plane.fleet.cluster("demo").instances
        assert was_there == [("demo-1", declared.az)]
        assert "WriteBack" in before.heard
        assert runtime.instances["demo-1"] is not before


async def test_who_is_stopped_in_order_is_not_away(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        runtime.errors += [QuorumLostError("no")] * 100
        runtime.instances["demo-1"].kill_engine()
        await poll_until((runtime.directory / FILE_NAME).exists)
    assert not Outages(runtime.directory).load()


def test_outages_are_noted_until_they_are_struck_out(tmp_path: Path) -> None:
    outages = Outages(tmp_path)
    outages.note("demo-1", Outage("it ended", 5, 7))
    outages.note("demo-2", Outage("it hung", 6, 8))
    outages.strike("demo-2")
    assert Outages(tmp_path).load() == {"demo-1": Outage("it ended", 5, 7)}
    (tmp_path / FILE_NAME).write_text("[1]")
    assert Outages(tmp_path).load() == {}
    outages.forget()
    assert not (tmp_path / FILE_NAME).exists()


def test_isolation_began_after_the_last_look_that_found_all_well() -> None:
    isolation = Isolation()
    for second, vdl in enumerate((1, 2, 3, 3, 3, 3)):
        isolation.waits(status(vdl, 9), float(second))
    assert isolation.good_s == 2.0


def test_a_directory_whose_process_is_on_its_way_out_is_waited_for(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "n1", "n1")
    ending = threading.Timer(0.2, first.release)
    ending.start()
    second = DataDir(tmp_path / "n1", "n1")
    ending.join()
    with pytest.raises(ConfigurationError, match="another process serves"):
        DataDir(tmp_path / "n1", "n1")
    second.release()
