"""What a control plane holds of the world in `world.py`: clients of storage nodes, handles of processes, the runtime.

Each call goes through a `Hand`, which knows whether its control plane still lives, and counts the effects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from aurora_ray.compute import commands
from aurora_ray.compute.commands import Command
from aurora_ray.compute.config import Opened, Outcome, WriterStatus
from aurora_ray.control.model.runtime import NoPlaceError, ProcessGoneError
from aurora_ray.control.observe.nodes import NodeCallError
from aurora_ray.endpoint.host import EndpointOrder, EndpointState
from aurora_ray.errors import FencedError
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.compute.config import EngineChoice, WriterConfig
    from aurora_ray.control.decide.reconcile import SegmentOrder
    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.model.state import StorageNode
    from aurora_ray.rpc.partition import Cut
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

from tests.control.crash.world import STEP_S, Disk, FakeEndpoints, FakeInstance, FakeNode, Hand

T = TypeVar("T")


class Clients:
    """In the place of NodeClients."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand

    def _node(self, node_id: str, address: str) -> FakeNode:
        node = self._hand.world.nodes.get(node_id)
        if node is None or not node.alive or node.info.address != address:
            raise NodeCallError(f"{node_id} does not answer")
        return node

    async def _do(self, node_id: str, address: str, what: str, change: Callable[[Disk], None]) -> None:
        node = self._node(node_id, address)

        async def work() -> None:
            change(self._hand.world.disks[node_id])

        try:
            await self._hand.do(f"node: {what}", work, node, NodeCallError("no answer"))
        except ProcessGoneError as error:
            raise NodeCallError(str(error)) from error

    async def set_peers(self, node_id: str, address: str, addresses: Any) -> None:
        await self._do(node_id, address, "learn peers", lambda disk: None)

    async def create_segments(self, node_id: str, address: str, order: SegmentOrder) -> None:
        made = {(order.volume_id, group) for group in order.groups}
        await self._do(node_id, address, "create segments", lambda disk: disk.segments.update(made))

    async def drop_volume(self, node_id: str, address: str, volume_id: UUID, *_: object) -> None:
        def drop(disk: Disk) -> None:
            gone = {s for s in disk.segments if s[0] == volume_id}
            self._hand.world.destroys(node_id, gone, "drop")
            disk.segments -= gone

        await self._do(node_id, address, "drop a volume", drop)

    async def purge_volume(self, node_id: str, address: str, volume_id: UUID, *_: object) -> None:
        await self._do(node_id, address, "purge a volume", lambda disk: None)

    async def state(self, node_id: str, address: str, volume_id: UUID | None = None, timeout_s: float = 0) -> Any:
        await self._hand.alive()
        self._node(node_id, address)
        reply = pb.StateReply(node_id=node_id)
        by_volume: dict[UUID, list[int]] = {}
        for volume, group in sorted(self._hand.world.disks[node_id].segments, key=str):
            by_volume.setdefault(volume, []).append(group)
        for volume, groups in by_volume.items():
            state = reply.volumes.add(volume=volume.bytes)
            for group in groups:
                state.segments.add(group=group)
        return reply

    async def forget(self, node_id: str) -> None:
        pass

    async def close(self) -> None:
        pass


class NodeHandle:
    """A control plane's handle of a storage node."""

    def __init__(self, hand: Hand, node: FakeNode) -> None:
        self._hand, self._node, self.info = hand, node, node.info

    async def wait_gone(self) -> str:
        await self._node.gone.wait()
        return "it was killed"

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        self._node.kill()
        return [1]

    async def cut(self, cut: Cut) -> None:
        await self._hand.alive()

    async def stop(self, *, destroy: bool, timeout_s: float) -> None:
        async def stops() -> None:
            self._node.kill()
            if destroy:
                self._hand.world.destroys(self._node.name, self._hand.world.disks[self._node.name].segments, "wipe")
                self._hand.world.disks.pop(self._node.name, None)

        await self._hand.do("node: stop", stops, answer=TimeoutError())


class InstanceHandle:
    """A control plane's handle of an instance."""

    host, pid, local_pid = "here", 1, None

    def __init__(self, hand: Hand, instance: FakeInstance) -> None:
        self._hand, self._instance = hand, instance

    async def _do(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        self._instance.check()
        return await self._hand.do(f"instance: {name}", work, self._instance, TimeoutError())

    async def wait_gone(self) -> str:
        await self._instance.gone.wait()
        await self._hand.alive()
        return "it was killed"

    async def open(self, config: WriterConfig) -> Opened:
        opening = self._hand.world.go_on(self._instance.open(config))
        return await self._do("open", lambda: asyncio.shield(opening))

    async def wait_ended(self) -> Outcome:
        ended, gone = self._instance.ended, asyncio.ensure_future(self._instance.gone.wait())
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        await self._hand.alive()
        self._instance.check()
        return ended.result()

    async def status(self) -> WriterStatus | None:
        await self._hand.alive()
        if self._instance.hangs:
            await asyncio.Event().wait()
        self._instance.check()
        one = self._instance
        if one.phase is None:
            return None
        placements = tuple(one.volume.placements.values()) if one.config and one.groups else ()
        return WriterStatus(
            one.phase,
            epoch=one.epoch,
            vdl=1,
            pid=1,
            groups=tuple(one.groups),
            free_bytes=one.free_bytes,
            reason=one.reason,
            repaired=one.repaired,
            declared_memory_bytes=one.config.memory_bytes if one.config is not None else 0,
            placements=tuple(p for p in placements if p.group in one.groups),
        )

    async def _update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        async def updates() -> None:
            self._instance.addresses = tuple(nodes)

        await self._do("update nodes", updates)

    async def _configure(self, parameters: Mapping[str, str]) -> None:
        async def configures() -> None:
            pass

        await self._do("configure", configures)

    async def _add_group(self, placement: GroupPlacement) -> None:
        async def adds() -> None:
            self._instance.volume.placements.setdefault(placement.group, placement)
            self._instance.groups |= {placement.group}
            self._instance.free_bytes = None

        await self._do("add a group", adds)

    async def _change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        async def changes() -> tuple[GroupPlacement, ...]:
            return self._hand.world.change_members(self._instance.volume, placement, filled)

        return await self._do("change members", changes)

    async def metrics(self, timeout_s: float) -> bytes:
        return b""

    async def do(self, command: Command[Any]) -> Any:
        match command:
            case commands.UpdateNodes(nodes):
                return await self._update_nodes(nodes)
            case commands.Configure(parameters):
                return await self._configure(parameters)
            case commands.AddGroup(placement):
                return await self._add_group(placement)
            case commands.ChangeMembers(placement, filled):
                return await self._change_members(placement, filled)
            case commands.FirstWrite(after_ns):
                await self._hand.alive()
                self._instance.check()
                return after_ns, 1
        raise AssertionError(command)

    async def abort(self) -> None:
        async def aborts() -> None:
            self._instance.kill()

        await self._hand.do("instance: abort", aborts, answer=TimeoutError())

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float, replaced: bool = False) -> None:
        async def ends() -> None:
            self._instance.end_incarnation("it was asked to stop", asked=True)
            self._instance.kill()

        await self._hand.do("instance: end", ends, answer=TimeoutError())


class EndpointsHandle:
    """A control plane's handle of the endpoints."""

    host = "here"

    def __init__(self, hand: Hand, process: FakeEndpoints) -> None:
        self._hand, self._process = hand, process

    async def wait_gone(self) -> str:
        await self._process.gone.wait()
        return "it was killed"

    async def apply(
        self, orders: Sequence[EndpointOrder], generation: int, timeout_s: float
    ) -> Sequence[EndpointState]:
        async def applies() -> Sequence[EndpointState]:
            if generation < self._process.generation:
                raise FencedError("there were later ones")
            self._process.orders, self._process.generation = tuple(orders), generation
            taken = {o.name for o in orders if o.port in self._hand.world.taken_ports}
            return [EndpointState(o.name, o.port, "in use" * (o.name in taken), o.name in taken) for o in orders]

        self._process.check()
        return await self._hand.do("endpoints: point", applies, self._process, ProcessGoneError("no answer"))

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        return []

    async def end(self) -> None:
        async def ends() -> None:
            self._process.kill()

        await self._hand.do("endpoints: end", ends)


class FakeRuntime:
    """Both runtimes of one control plane."""

    def __init__(self, hand: Hand) -> None:
        self._hand, self._world = hand, hand.world

    async def start_node(self, node: StorageNode, config: ControlConfig) -> NodeHandle:
        await self._hand.alive()
        if node.node_id in self._world.broken:
            await asyncio.sleep(STEP_S)  # not synchronisation: the clock is virtual
            raise NoPlaceError(f"{node.node_id} does not start")
        found = self._world.nodes.get(node.node_id)
        started = found if found is not None and found.alive else self._world.start(node.node_id)

        async def starts() -> NodeHandle:
            return NodeHandle(self._hand, started)

        return await self._hand.do("node: start", starts, started, ProcessGoneError("no answer"))

    async def find_node(self, node_id: str) -> NodeHandle | None:
        await self._hand.alive()
        node = self._world.nodes.get(node_id)
        return NodeHandle(self._hand, node) if node is not None and node.alive else None

    async def wipe_node(self, node: StorageNode, config: ControlConfig) -> None:
        async def wipes() -> None:
            disk = self._world.disks.pop(node.node_id, Disk())
            self._world.destroys(node.node_id, disk.segments, "wipe")

        await self._hand.do("node: wipe", wipes, answer=NoPlaceError("no answer"))

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> InstanceHandle:
        await self._hand.alive()
        found = self._world.instances.get(instance_id)
        started = found if found is not None and found.alive else FakeInstance(self._world, instance_id, az)
        self._world.instances[instance_id] = started

        async def starts() -> InstanceHandle:
            return InstanceHandle(self._hand, started)

        return await self._hand.do("instance: start", starts, started, ProcessGoneError("no answer"))

    async def ready_instance(self, instance_id: str, az: str, choice: EngineChoice) -> None:
        await self._hand.alive()

    async def find_instances(self) -> dict[str, InstanceHandle]:
        await self._hand.alive()
        return {n: InstanceHandle(self._hand, i) for n, i in self._world.instances.items() if i.alive}

    async def start(self, config: ControlConfig) -> EndpointsHandle:
        await self._hand.alive()
        process = self._world.endpoints
        if process is None or not process.alive:
            process = self._world.endpoints = FakeEndpoints()
        there = process

        async def starts() -> EndpointsHandle:
            return EndpointsHandle(self._hand, there)

        return await self._hand.do("endpoints: start", starts, there, ProcessGoneError("no answer"))

    async def find(self) -> EndpointsHandle | None:
        await self._hand.alive()
        process = self._world.endpoints
        return EndpointsHandle(self._hand, process) if process is not None and process.alive else None
