"""A process that is there and does nothing is found, killed and replaced; one without storage is left alone."""

import asyncio
import itertools
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_ray import telemetry
from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.role import Role
from aurora_ray.control.observe import heartbeats, processes
from aurora_ray.control.observe.heartbeats import UNHEARD_S, Heartbeats, Isolation
from aurora_ray.control.observe.nodes import NodeCallError, NodeCalls
from aurora_ray.control.plane import ControlPlane
from aurora_ray.control.report import events
from aurora_ray.telemetry.spanreader import read_traces
from tests.control.local_runtime import LocalInstance, LocalRuntime
from tests.control.test_plane import started
from tests.support.polling import poll_until

QUICK = HealthRules(look_every_s=0.02, answer_within_s=0.03, hung_after_s=0.2, late_s=0.2)

pytestmark = pytest.mark.allowed_logs(r".*")


def hang(instance: LocalInstance) -> None:
    async def never() -> InstanceStatus | None:
        await asyncio.Event().wait()
        return None

    instance.status = never  # type: ignore[method-assign]


async def test_a_hung_process_is_killed_and_replaced_and_its_trace_is_whole(
    runtime: LocalRuntime, tmp_path: Path
) -> None:
    telemetry.configure("test", span_dir=tmp_path / "telemetry")
    try:
        async with started(runtime) as running:
            running.plane.heartbeats = quick_heartbeats(running.plane)
            await running.api.create("demo", timeout_s=20)
            await running.api.wait_available("demo", 20)
            first = runtime.instances["demo-1"]
            hang(first)
            await poll_until(lambda: runtime.instances["demo-1"] is not first, what="a new process")
            await running.api.wait_available("demo", 20)
            assert not first.alive
            assert any("is hung" in sentence for _, sentence in running.plane.journal.trail)
            await poll_until(lambda: any("without a writer" in s for _, s in running.plane.journal.trail))
    finally:
        telemetry.shutdown()
    traces = read_traces(tmp_path / "telemetry").values()
    (spans,) = [spans for spans in traces if any(span.name == "failover" for span in spans)]
    names = [span.name for span in spans]
    for name in ("failover", "failover.detect", "failover.decide", "control.StartInstance", "control.OpenInstance"):
        assert name in names


async def test_heartbeats_go_on_whatever_a_look_ended_with(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WATCH_AGAIN_S", 0.02)
    async with started(runtime) as running:
        running.plane.heartbeats = quick_heartbeats(running.plane)
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        instance = runtime.instances["demo-1"]
        status, ends = instance.status, [asyncio.CancelledError(), RuntimeError("what nobody expects")]

        async def says() -> InstanceStatus | None:
            asking = asyncio.current_task()
            if ends and asking is not None and asking.get_name().startswith("heartbeat "):
                raise ends.pop()
            return await status()

        instance.status = says  # type: ignore[method-assign]
        await poll_until(lambda: not ends, what="it was asked twice")
        hang(instance)
        await poll_until(lambda: runtime.instances["demo-1"] is not instance, what="a new process")


async def test_a_call_whose_connection_is_closed_fails_and_cancels_nobody() -> None:
    clients = NodeCalls()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        asking = asyncio.create_task(clients.state("a-1", address, timeout_s=5))
        await poll_until(lambda: clients._clients._clients, what="it is asked")
        await asyncio.sleep(0.1)  # not synchronisation: the call is to be under way, at whatever stage
        await clients.forget("a-1")
        with pytest.raises(NodeCallError):
            await asking
        assert not asking.cancelled()


async def test_a_watch_begins_anew_when_it_fails_and_ends_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "WATCH_AGAIN_S", 0.0)
    tasks, begun = processes.Tasks(), [0]

    async def look() -> None:
        begun[0] += 1
        if begun[0] == 1:
            raise RuntimeError("no")
        if begun[0] == 2:
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    tasks.watch(look, "look")
    await poll_until(lambda: begun[0] == 3, what="it began anew twice")
    await tasks.cancel()
    assert not tasks.running


async def test_nobody_is_replaced_while_storage_has_no_write_quorum(runtime: LocalRuntime) -> None:
    async with started(runtime) as running:
        running.plane.heartbeats = quick_heartbeats(running.plane)
        await running.api.create("demo", timeout_s=20)
        await running.api.wait_available("demo", 20)
        instance = runtime.instances["demo-1"]
        hold_nodes(running.plane)
        for node in ("a-1", "a-2", "b-1"):
            await runtime.nodes[node].kill()
        await poll_until(lambda: len(running.plane.processes.nodes) == 3)
        hang(instance)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await instance.wait_gone()


async def test_a_reader_that_hangs_is_not_excused_by_what_the_writer_writes(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    vdls = itertools.count(1)

    async def moves(*_: object) -> int:
        return next(vdls)

    monkeypatch.setattr(Heartbeats, "_vdl", moves)
    async with started(runtime) as running:
        running.plane.heartbeats = quick_heartbeats(running.plane)
        await running.api.create("demo", reader_count=1, timeout_s=20)
        await running.api.wait_available("demo", 20, all_readers=True)
        writer, reader = runtime.instances["demo-1"], runtime.instances["demo-2"]
        hang(reader)
        await poll_until(lambda: runtime.instances["demo-2"] is not reader, what="a new process")
        assert runtime.instances["demo-1"] is writer
        assert writer.alive
    told = [event for event in events.read(runtime.directory) if "is hung" in event["sentence"]]
    assert [(event["kind"], event["subject"], event["cluster"]) for event in told] == [("reader", "demo-2", "demo")]


def test_a_reader_that_hears_nothing_is_isolated_and_one_that_hears_is_not() -> None:
    reader = InstanceStatus(IncarnationPhase.AVAILABLE, vdl=5, role=Role.READER)
    deaf, slow, opening = Isolation(), Isolation(), Isolation()
    for second in range(20):
        waits_s = deaf.waits(replace(reader, unheard_s=float(second)), second)
        assert waits_s == max(0, second - UNHEARD_S), "from the first look that found it so"
        assert slow.waits(replace(reader, unheard_s=second % UNHEARD_S), second) == 0
        assert opening.waits(replace(reader, phase=IncarnationPhase.STARTING, unheard_s=99.0), second) == 0
    deaf.storage_is_down()
    assert deaf.waits(replace(reader, unheard_s=21.0), 21.0) == 0, "storage has been back for no time at all"


async def test_a_reader_that_storage_does_not_reach_gets_a_new_process(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "ISOLATED_AFTER_S", 1.0)

    async def answers(*_: object) -> tuple[int, int]:
        return 1, 1

    monkeypatch.setattr(Heartbeats, "_known", answers)
    async with started(runtime) as running:
        running.plane.heartbeats = quick_heartbeats(running.plane)
        await running.api.create("demo", reader_count=1, timeout_s=20)
        await running.api.wait_available("demo", 20, all_readers=True)
        writer, reader = runtime.instances["demo-1"], runtime.instances["demo-2"]
        plain = reader.status

        async def unheard() -> InstanceStatus | None:
            status = await plain()
            return None if status is None else replace(status, unheard_s=UNHEARD_S)

        monkeypatch.setattr(reader, "status", unheard)
        await poll_until(lambda: runtime.instances["demo-2"] is not reader, what="a new process")
        assert runtime.instances["demo-1"] is writer
    told = [event["sentence"] for event in events.read(runtime.directory) if "heard nothing" in event["sentence"]]
    assert len(told) == 1


def test_only_a_writer_can_be_isolated_from_what_makes_redo_durable() -> None:
    waiting = InstanceStatus(IncarnationPhase.AVAILABLE, vdl=5, tail_lsn=9)
    for status, waits_s in ((waiting, 7.0), (replace(waiting, role=Role.READER), 0.0)):
        isolation = Isolation()
        isolation.waits(status, 0.0)
        isolation.waits(status, 1.0)
        assert isolation.waits(status, 8.0) == waits_s


def quick_heartbeats(plane: ControlPlane) -> Heartbeats:
    return Heartbeats(plane.declared, plane.processes, plane.changes, QUICK, plane.hung)


def hold_nodes(plane: ControlPlane) -> None:
    """Nodes that end are not started again."""
    runtime = plane.processes.runtime

    class Held:
        async def start_node(self, *_: object) -> None:
            await asyncio.Event().wait()

        def __getattr__(self, name: str) -> object:
            return getattr(runtime, name)

    plane.processes.runtime = Held()  # type: ignore[assignment]
