"""Faults on purpose: what a target means, who hears whom, where a writer goes, who is cut off."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.control.faults.chaos import Victims, cut_for
from aurora_ray.control.faults.record import FILE_NAME, Faults, Island
from aurora_ray.control.model.placement import az_to_start
from aurora_ray.control.model.runtime import SMALL_MEMORY_BYTES
from aurora_ray.control.observe.heartbeats import ISOLATED_AFTER_S, Isolation
from aurora_ray.errors import UsageError
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import Running, new_plane, started
from tests.support.polling import poll_until

REFUSED = (("reader:1", "no instance"), ("az:x", "no AZ"), ("node:x", "no storage"), ("x", "no target"))

pytestmark = pytest.mark.allowed_logs(r".*")


async def test_targets(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        chaos = running.plane.chaos
        assert chaos.victims("writer", "demo") == Victims(instance_ids=("demo-1",))
        assert chaos.victims("node:b-2", "demo") == Victims(node_ids=("b-2",))
        assert chaos.victims("az:a", "demo") == Victims(("a-1", "a-2"), ("demo-1",))
        assert chaos.victims("control", "demo") == Victims(control=True)
        for wrong, words in REFUSED:
            with pytest.raises(UsageError, match=words):
                chaos.victims(wrong, "demo")


async def test_a_lost_az_stays_away_and_the_writer_moves(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        await poll_until(lambda: len(running.plane.processes.nodes) == 6)
        az = running.plane.fleet.cluster("demo").writer().az
        first = runtime.instances["demo-1"]
        assert await running.plane.chaos.strike("kill", f"az:{az}", "demo", 60.0)
        await poll_until(lambda: runtime.instances["demo-1"] is not first, what="a new process")
        await running.api.wait_available("demo", 20)
        assert running.plane.fleet.cluster("demo").writer().az != az
        assert len(running.plane.processes.nodes) == 4
        await running.plane.chaos.strike("resume", f"az:{az}", "demo", None)
        await poll_until(lambda: len(running.plane.processes.nodes) == 6, what="the nodes come back")


async def test_in_a_small_fleet_what_strikes_a_node_strikes_all_of_its_process(runtime: LocalRuntime) -> None:
    async with started(runtime, small=True) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        plane, nodes = running.plane, running.plane.processes.nodes
        await poll_until(lambda: len(nodes) == 6)
        assert plane.fleet.cluster("demo").writer().memory_bytes == SMALL_MEMORY_BYTES
        assert any("one process" in note for note in (await running.api.status("demo"))["notes"])
        struck = await plane.chaos.strike("kill", "node:b-2", "demo", 60.0)
        assert [(one["target"], one["pid"]) for one in struck] == [("node:b-1", 99), ("node:b-2", 99)]
        await poll_until(lambda: set(nodes) == {"a-1", "a-2", "c-1", "c-2"})
        assert plane.chaos.held() == {"node:b-1", "node:b-2"}, "neither comes back before its time"
        await plane.chaos.strike("resume", "node:b-1", "demo", None)
        await poll_until(lambda: len(nodes) == 6, what="both come back")

        await plane.chaos.strike("partition", "node:c-1", "demo", None)
        for of_c in ("c-1", "c-2"):
            assert not runtime.nodes[of_c].cuts[-1].mutes("storage-c")
            assert runtime.nodes[of_c].cuts[-1].mutes("storage-a")
        assert runtime.nodes["a-1"].cuts[-1].mutes("storage-c")
        await plane.chaos.strike("heal", "node:c-1", "demo", None)

        struck = await plane.chaos.strike("kill", "node:c-1", "demo", None, for_good=True)
        assert [one["target"] for one in struck] == ["node:c-1", "node:c-2"]
        await poll_until(lambda: len(nodes) == 6, what="both come back")
        assert runtime.wiped == ["c-1"], "the data of the one that was named goes alone"


async def test_a_control_plane_that_is_cut_off_hears_of_nothing(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        first = runtime.instances["demo-1"]
        seen = running.plane.processes.instances["demo-1"]
        struck = await running.plane.chaos.strike("partition", "control", "demo", None)
        assert [one["target"] for one in struck] == ["control"]
        first.kill()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await seen.process.status()
        assert running.plane.processes.instances["demo-1"] is seen
        await running.plane.chaos.strike("heal", "control", "demo", None)
        await poll_until(lambda: runtime.instances["demo-1"] is not first, what="a new process")
        await running.api.wait_available("demo", 20)


@pytest.mark.parametrize(
    ("running", "before", "expected"),
    [
        (["a", "a", "b", "b"], {"a", "b"}, "a"),
        (["a", "b", "b"], {"a", "b"}, "a"),
        (["b", "c", "c"], {"a", "b", "c"}, "c"),
        (["b", "c"], {"a", "b", "c"}, "b"),
        (["b", "b", "c"], {"b", "c"}, "a"),  # at a fleet's start its own nodes may be the last to come
        ([], {"a"}, "a"),
    ],
)
def test_where_a_writer_starts(running: list[str], before: set[str], expected: str) -> None:
    assert az_to_start("a", ("a", "b", "c"), running, before) == expected


def test_who_hears_whom() -> None:
    writer, node, other = "instance-demo-1-7", "storage-a-1", "storage-b-1"
    assert cut_for(node, []).mutes(writer) is False
    island = frozenset({node, writer})
    assert not cut_for(node, [island]).mutes(writer)
    assert cut_for(node, [island]).mutes(other)
    assert cut_for(other, [island]).mutes(node)
    assert cut_for(other, [island]).mutes(writer)
    assert not cut_for(other, [island]).mutes("control")


async def test_a_partition_outlives_a_control_plane_and_a_node_that_restarts(runtime: LocalRuntime) -> None:
    def cut(node: str) -> bool:
        cuts = runtime.nodes[node].cuts
        return bool(cuts) and cuts[-1].mutes("storage-b-1")

    first = Running(new_plane(runtime))
    await first.api.create("demo", timeout_s=20)
    await first.api.wait_available("demo", 20)
    await poll_until(lambda: len(first.plane.processes.nodes) == 6)
    struck = await first.plane.chaos.strike("partition", "node:b-1", "demo", None)
    assert [one["target"] for one in struck] == ["storage-b-1"]
    await first.plane.chaos.strike("partition", "node:c-1", "demo", 1.0)
    assert cut("a-1")
    await first.vanish()
    for node in runtime.nodes.values():
        node.cuts.clear()
    async with started(runtime) as second:
        await poll_until(lambda: cut("a-1") and not cut("b-1"), what="the next one goes on with it")
        await runtime.nodes["a-2"].kill()
        await poll_until(lambda: runtime.nodes["a-2"].alive and cut("a-2"), what="a node that restarts is told")
        await poll_until(
            lambda: not runtime.nodes["a-1"].cuts[-1].mutes("storage-c-1"), what="the other one ends in time"
        )
        assert cut("a-1")
        healed = await second.plane.chaos.strike("heal", "node:b-1", "demo", None)
        assert [one["target"] for one in healed] == ["storage-b-1"]
        await poll_until(lambda: not any(map(cut, runtime.nodes)), what="a node that is starting is told as well")
        assert not (runtime.directory / FILE_NAME).exists()
        assert await second.plane.chaos.strike("heal", "node:b-1", "demo", None) == []
        await second.plane.chaos.strike("partition", "node:b-1", "demo", None)
    assert not (runtime.directory / FILE_NAME).exists(), "it ends with the fleet"
    await first.plane.processes.clients.close()
    assert first.plane.declared.store is not None
    await first.plane.declared.store.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"islands": {"x": {}}, "away": {}}', '{"islands": {}, "away": {"a": "b"}}']
)
def test_a_file_of_faults_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    faults = Faults.load(tmp_path)
    assert (faults.islands, faults.away_until_s) == ({}, {})


def test_faults_are_kept_as_they_are(tmp_path: Path) -> None:
    faults = Faults.load(tmp_path)
    faults.islands["az:a"] = Island(frozenset({"storage-a-1", "storage-a-2"}), 12.5)
    faults.islands["control"] = Island(frozenset({"control"}))
    faults.away_until_s["a-1"] = 99.0
    faults.save()
    again = Faults.load(tmp_path)
    assert (again.islands, again.away_until_s) == (faults.islands, faults.away_until_s)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


async def test_for_good_is_for_one_storage_node(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        for verb, target in (("kill", "writer"), ("kill", "az:a"), ("kill", "control"), ("pause", "node:a-1")):
            with pytest.raises(UsageError, match="for good is for one storage node"):
                await running.plane.chaos.strike(verb, target, "demo", None, for_good=True)


def status(vdl: int, tail: int) -> InstanceStatus:
    return InstanceStatus(IncarnationPhase.AVAILABLE, vdl=vdl, tail_lsn=tail)


def test_only_redo_that_waits_for_storage_that_answers_is_isolation() -> None:
    idle, busy, stuck = Isolation(), Isolation(), Isolation()
    for second in range(20):
        assert idle.waits(status(5, 5), second) == 0
        assert busy.waits(status(second, second + 5), second) == 0
    waits = [stuck.waits(status(5, 9), float(second)) for second in range(20)]
    assert waits[:2] == [0, 0]
    assert waits[-1] > ISOLATED_AFTER_S
    stuck.storage_is_down()
    assert stuck.waits(status(5, 9), 21.0) == 0


def test_a_writer_whose_redo_arrives_is_not_isolated_however_late_it_is_acknowledged() -> None:
    slow, cut_off = Isolation(), Isolation()
    for second in range(60):
        assert slow.waits(status(5, 999), float(second)) < ISOLATED_AFTER_S
        slow.arrives({"a-1": 100 + second // 5, "b-1": 7})  # a little more all five seconds
        cut_off.waits(status(5, 999), float(second))
        filled = {"a-1": min(100 + second, 110), "b-1": 7}  # copies fill each other's holes for a while
        assert cut_off.arrives(filled if second % 2 else {**filled, "c-1": 9}) is (0 < second <= 10)
    assert cut_off.waits(status(5, 999), 60.0) > ISOLATED_AFTER_S


async def test_all_metrics_of_the_fleet_are_one_text(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        await poll_until(lambda: len(running.plane.processes.nodes) == 6)
        families = {f.name: f for f in text_string_to_metric_families((await running.plane.metrics()).decode())}
        assert [sample.value for sample in families["aurora_cluster_up"].samples] == [1.0]
        assert sum(sample.value for sample in families["aurora_storage_up"].samples) == 6
        assert families["aurora_storage_scl_bytes"].samples
        assert families["aurora_storage_events"].samples
