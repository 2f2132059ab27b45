"""Storage nodes that are lost for good are replaced while commits go on: real nodes and volumes, every actor killed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from aurora_ray.control.decide import ailing
from aurora_ray.control.model.runtime import ControlConfig, Runtime
from aurora_ray.control.model.state import Fleet
from aurora_ray.control.observe.nodes import NodeCallError, NodeCalls
from aurora_ray.control.plane import ControlPlane
from aurora_ray.log.record import page_full
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.read.pages import PageRange
from aurora_ray.volume.write.volume import Volume
from tests.control.local_runtime import LocalRuntime
from tests.control.test_plane import AZS, GROUP_BYTES, Running
from tests.support.polling import poll_until

# Nodes, writers and control planes go while others talk to them.
pytestmark = pytest.mark.allowed_logs(r".*")
PAGES = 40


@pytest.fixture
async def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalRuntime]:
    monkeypatch.setattr(ailing, "SETTLED_S", 0.3)
    local = LocalRuntime(tmp_path, opens_volumes=True)
    yield local
    await local.close()


def new_plane(runtime: LocalRuntime, replace_after_s: float) -> ControlPlane:
    config = ControlConfig(
        runtime.directory,
        "somewhere",
        AZS,
        GROUP_BYTES,
        1 << 30,
        300.0,
        1 << 28,
        replace_after_s=replace_after_s,
        replace_empty_after_s=0.5,
    )
    (runtime.directory / "passfiles").mkdir(exist_ok=True)
    return ControlPlane(config, cast("Runtime", runtime))


class Planes:
    """One control plane after the other; the last one is `now`."""

    def __init__(self, runtime: LocalRuntime, replace_after_s: float) -> None:
        self._runtime = runtime
        self._replace_after_s = replace_after_s
        self._gone: list[Running] = []
        self._start()

    def _start(self) -> None:
        self.now = Running(new_plane(self._runtime, self._replace_after_s))

    async def succeed(self) -> None:
        """The control plane is killed and the next one starts."""
        await self.now.vanish()
        self._gone.append(self.now)
        self._start()

    async def restart(self) -> None:
        """Down and up."""
        await self._end()
        self._start()

    async def _end(self) -> None:
        await self.now.plane.shutdown()
        await asyncio.gather(self.now.task, return_exceptions=True)

    async def close(self) -> None:
        await self._end()
        for gone in self._gone:
            await gone.plane.processes.clients.close()
            if gone.plane.declared.store is not None:
                await gone.plane.declared.store.close()

    @property
    def fleet(self) -> Fleet:
        return self.now.plane.fleet

    async def until(self, condition: Callable[[Fleet], object], what: str, timeout_s: float = 40.0) -> None:
        try:
            await poll_until(lambda: self.now.plane.is_open and condition(self.fleet), timeout_s, what=what)
        except AssertionError as error:
            trail = "\n".join(sentence for _, sentence in self.now.plane.journal.trail)
            raise AssertionError(f"{error}\n{trail}") from None


@asynccontextmanager
async def running(runtime: LocalRuntime, replace_after_s: float = 1.5) -> AsyncIterator[Planes]:
    planes = Planes(runtime, replace_after_s)
    try:
        await planes.now.api.create("demo", timeout_s=20)
        await planes.now.api.wait_available("demo", 20)
        await planes.until(lambda f: len(f.cluster("demo").volume.groups[0].created_on) == 6, "all six have copies")
        yield planes
    finally:
        await planes.close()


class Load:
    """Writes pages through whichever volume is open, for ever; what was acknowledged."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self.acknowledged: dict[int, bytes] = {}
        self.count = 0
        self._runtime = runtime
        self._task = asyncio.create_task(self._run())

    def volume(self) -> Volume:
        volume = self._runtime.instances["demo-1"].volume
        assert volume is not None
        return volume

    async def _run(self) -> None:
        while True:
            page, content = self.count % PAGES, b"%d" % self.count * 100
            try:
                await self.volume().append([page_full(1, page, content)], timeout_s=20)
            except Exception:
                await asyncio.sleep(0.02)  # not synchronisation: its writer is gone, it is written again
                continue
            self.acknowledged[page] = content
            self.count += 1

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def check(self) -> None:
        """All that was acknowledged is there."""
        await self.stop()
        (run,) = await self.volume().read_pages([PageRange(0, 1, 0, PAGES)])
        size = self.volume().spec.page_size
        for page, content in self.acknowledged.items():
            found = run.pages[page * size : (page + 1) * size].rstrip(b"\0")
            assert int(found[: len(found) // 100]) in (int(content[: len(content) // 100]), self.count), page


@pytest.fixture
async def load(runtime: LocalRuntime) -> AsyncIterator[Callable[[], Load]]:
    loads: list[Load] = []

    def begin() -> Load:
        loads.append(Load(runtime))
        return loads[-1]

    yield begin
    for each in loads:
        await each.stop()


async def writes(load: Load) -> None:
    count = load.count
    await poll_until(lambda: load.count > count + 10, 20, what="commits go on")


def healed(fleet: Fleet) -> bool:
    """Nothing is being moved, and six nodes hold everything."""
    groups = [group for volume in fleet.volumes() for group in volume.groups]
    nodes = {node.node_id for node in fleet.nodes}
    return (
        len(nodes) == 6
        and not fleet.replacements()
        and all(set(group.node_ids) == nodes and not group.next_node_ids for group in groups)
    )


async def identical(runtime: LocalRuntime, fleet: Fleet) -> None:
    """The six copies of each group have the same content and the same log, up to what is durable."""
    for volume in fleet.volumes():
        for group in volume.groups:
            servers = [runtime.nodes[node_id].server for node_id in group.node_ids]
            key = (volume.volume_id.bytes, group.group)
            segments = [server.node.segments[key] for server in servers]
            lsn = max(segment.vdl for segment in segments)
            await poll_until(lambda held=segments, lsn=lsn: all(s.scl >= lsn for s in held), 20, what=f"all at {lsn}")
            floor_lsn = max(segment.meta.floor_lsn for segment in segments)
            request = pb.DigestRequest(volume=key[0], group=key[1], lsn=lsn, with_log=True, log_after_lsn=floor_lsn)
            replies = []
            for number, node_id in enumerate(group.node_ids):
                client = servers[number - 1].peers.client(node_id)
                assert client is not None
                replies.append(await client.digest(request, 20, until_ready=True))
            assert len({(r.digest, r.log_digest, r.pages, r.log_batches) for r in replies}) == 1
            assert replies[0].pages


async def test_a_node_killed_for_good_is_replaced_under_load(runtime: LocalRuntime, load: Callable[[], Load]) -> None:
    async with running(runtime) as planes:
        clients = load()
        await writes(clients)
        struck = await planes.now.plane.chaos.strike("kill", "node:b-1", "demo", None, for_good=True)
        assert [one["target"] for one in struck] == ["node:b-1"]
        await writes(clients)
        await planes.until(lambda f: f.replacements() == {"b-1": "b-3"}, "it is being replaced")
        await planes.until(healed, "it is replaced")
        await writes(clients)
        assert {node.node_id for node in planes.fleet.nodes} == {"a-1", "a-2", "b-2", "b-3", "c-1", "c-2"}
        await clients.check()
        await identical(runtime, planes.fleet)
        status = await planes.now.api.status("demo")
        assert [node["state"] for node in status["storage_nodes"]] == ["healthy"] * 6
        assert not (runtime.directory / "nodes" / "b-1").exists()
        await runtime.nodes["c-1"].kill()
        await poll_until(lambda: runtime.nodes["c-1"].alive, what="the others are looked after as before")
        runtime.started.clear()
        await planes.restart()
        await planes.now.api.wait_available("demo", 20)
        assert "b-3" in runtime.started
        assert "b-1" not in runtime.started
        assert healed(planes.fleet)


STAGES: dict[str, Callable[[Fleet], bool]] = {
    "declared": lambda f: bool(f.replacements()),
    "begun": lambda f: bool(f.control_volume.groups[0].next_node_ids),
    "half-way": lambda f: "b-3" in f.control_volume.groups[0].node_ids,
    "all but forgotten": lambda f: bool(f.replacements()) and not f.holds("b-1"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_control_plane_killed_on_the_way_is_succeeded_by_one_that_goes_on(
    runtime: LocalRuntime, load: Callable[[], Load], stage: str
) -> None:
    async with running(runtime) as planes:
        clients = load()
        await planes.now.plane.chaos.strike("kill", "node:b-1", "demo", None, for_good=True)
        runtime.may_wipe.clear()  # or it could be forgotten between two looks
        await planes.until(STAGES[stage], f"it is {stage}")
        await planes.succeed()
        runtime.may_wipe.set()
        await planes.until(healed, "it is replaced")
        assert {node.node_id for node in planes.fleet.nodes} == {"a-1", "a-2", "b-2", "b-3", "c-1", "c-2"}
        await writes(clients)
        await clients.check()
        await identical(runtime, planes.fleet)


async def test_steps_that_were_taken_and_never_noted_are_found(runtime: LocalRuntime, load: Callable[[], Load]) -> None:
    async with running(runtime) as planes:
        clients = load()
        runtime.answers_to_changes = asyncio.Event()
        await planes.now.plane.chaos.strike("kill", "node:b-1", "demo", None, for_good=True)
        volume_id = planes.fleet.cluster("demo").volume.volume_id
        for condition in (
            lambda: clients.volume().spec.groups[0].next_node_ids is not None,
            lambda: "b-3" in clients.volume().spec.groups[0].node_ids,
        ):
            await poll_until(condition, 30, what="a step that nobody hears of")
            (volume,) = [v for v in planes.fleet.volumes() if v.volume_id == volume_id]
            assert volume.groups[0].placement != clients.volume().spec.groups[0]
            await planes.succeed()
        runtime.answers_to_changes.set()
        await planes.until(healed, "it is replaced")
        await clients.check()
        await identical(runtime, planes.fleet)


async def test_a_writer_killed_on_the_way_comes_back_and_the_change_goes_on(
    runtime: LocalRuntime, load: Callable[[], Load]
) -> None:
    async with running(runtime) as planes:
        clients = load()
        await planes.now.plane.chaos.strike("kill", "node:b-1", "demo", None, for_good=True)
        await planes.until(lambda f: bool(f.cluster("demo").volume.groups[0].next_node_ids), "it is begun")
        instance = runtime.instances["demo-1"]
        instance.kill_engine()
        await poll_until(lambda: len(instance.configs) == 2, what="opened again")
        await planes.until(healed, "it is replaced")
        await writes(clients)
        await clients.check()
        await identical(runtime, planes.fleet)


async def test_a_new_node_that_never_comes_up_makes_room_for_another(
    runtime: LocalRuntime, load: Callable[[], Load]
) -> None:
    runtime.broken.add("b-3")
    async with running(runtime) as planes:
        clients = load()
        await planes.now.plane.chaos.strike("kill", "node:b-1", "demo", None, for_good=True)
        await planes.until(lambda f: f.replacements() == {"b-1": "b-4"}, "another one is declared")
        await planes.until(healed, "it is replaced")
        await clients.check()
        assert {node.node_id for node in planes.fleet.nodes} == {"a-1", "a-2", "b-2", "b-4", "c-1", "c-2"}
        await identical(runtime, planes.fleet)


async def test_an_old_node_that_comes_back_in_time_stays(runtime: LocalRuntime, load: Callable[[], Load]) -> None:
    async with running(runtime) as planes:
        clients = load()
        runtime.broken |= {"b-1", "b-3"}
        await runtime.nodes["b-1"].kill()
        await planes.until(lambda f: bool(f.replacements()), "it is to be replaced")
        runtime.broken.discard("b-1")
        await planes.until(healed, "it is back")
        assert any("b-1 is well again" in sentence for _, sentence in planes.now.plane.journal.trail)
        await clients.check()
        assert {node.node_id for node in planes.fleet.nodes} == {"a-1", "a-2", "b-1", "b-2", "c-1", "c-2"}
        await identical(runtime, planes.fleet)


async def test_a_node_that_answers_nobody_is_replaced_and_ended(
    runtime: LocalRuntime, load: Callable[[], Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = NodeCalls.state

    async def deaf(clients: NodeCalls, node_id: str, *arguments: Any, **options: Any) -> pb.StateReply:
        if node_id == "b-1":
            raise NodeCallError("Storage node b-1 could not tell its state: it is cut off.")
        return await look(clients, node_id, *arguments, **options)

    async with running(runtime) as planes:
        clients = load()
        monkeypatch.setattr(NodeCalls, "state", deaf)
        await planes.until(lambda f: healed(f) and not any(n.node_id == "b-1" for n in f.nodes), "it is replaced")
        assert not runtime.nodes["b-1"].alive
        assert not (runtime.directory / "nodes" / "b-1").exists()
        await clients.check()
        await identical(runtime, planes.fleet)


async def test_a_node_that_hangs_does_not_keep_the_next_control_plane_waiting(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = NodeCalls.state
    deaf = {"b-1"}

    async def state(clients: NodeCalls, node_id: str, *arguments: Any, **options: Any) -> pb.StateReply:
        if node_id in deaf:
            raise NodeCallError("Storage node b-1 could not tell its state: it is cut off.")
        return await look(clients, node_id, *arguments, **options)

    async with running(runtime, replace_after_s=300) as planes:
        monkeypatch.setattr(NodeCalls, "state", state)
        runtime.started.clear()
        await planes.succeed()
        await planes.until(lambda _: "b-1" in planes.now.plane.processes.nodes, "it is open")
        node = planes.now.plane.processes.nodes["b-1"]
        assert node.seen.silent
        deaf.clear()
        await poll_until(lambda: node.seen.segments and not node.seen.silent, what="it is known again")
        assert runtime.started == []
        assert healed(planes.fleet)


async def test_two_nodes_lost_at_once_are_replaced_one_after_the_other(
    runtime: LocalRuntime, load: Callable[[], Load]
) -> None:
    async with running(runtime) as planes:
        clients = load()
        for node in ("a-1", "c-2"):
            await planes.now.plane.chaos.strike("kill", f"node:{node}", "demo", None, for_good=True)
        counts: list[int] = []

        def both(fleet: Fleet) -> bool:
            counts.append(len(fleet.replacements()))
            return healed(fleet) and {"a-1", "c-2"}.isdisjoint(node.node_id for node in fleet.nodes)

        await planes.until(both, "both are replaced", timeout_s=60)
        assert max(counts) == 1
        await clients.check()
        await identical(runtime, planes.fleet)


async def test_nothing_is_replaced_without_a_quorum(runtime: LocalRuntime) -> None:
    async with running(runtime) as planes:
        runtime.broken |= {"a-1", "b-1", "c-1"}
        for node in ("a-1", "b-1", "c-1"):
            await runtime.nodes[node].kill()
        await poll_until(lambda: any("cannot be replaced yet" in note for note in planes.now.plane.notes), 20)
        assert not planes.fleet.replacements()
        runtime.broken.clear()
        await planes.until(healed, "they are back")
        assert {node.node_id for node in planes.fleet.nodes} == {"a-1", "a-2", "b-1", "b-2", "c-1", "c-2"}
