"""What a control plane holds of the world in `world.py`: clients of storage nodes, handles of processes, the runtime.

Each call goes through a `Hand`, which knows whether its control plane still lives, and counts the effects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from aurora_ray.compute import commands
from aurora_ray.compute.commands import Command
from aurora_ray.compute.config import CopyStatus, InstanceStatus, Opened, Outcome
from aurora_ray.compute.role import Role
from aurora_ray.control.model.runtime import NoPlaceError, ProcessGoneError, Room
from aurora_ray.control.observe.nodes import NodeCallError
from aurora_ray.endpoint.host import EndpointOrder, EndpointState
from aurora_ray.endpoint.relay import RelayStats
from aurora_ray.errors import FencedError
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.origin import GroupPlace

if TYPE_CHECKING:
    from aurora_ray.compute.config import CapacityOrder, EngineChoice, InstanceConfig
    from aurora_ray.control.decide.reconcile import SegmentOrder
    from aurora_ray.control.model.runtime import ControlConfig
    from aurora_ray.control.model.state import StorageNode
    from aurora_ray.rpc.partition import Cut
    from aurora_ray.volume.origin import Target
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec

from tests.control.crash.promoted import promote
from tests.control.crash.world import STEP_S, Disk, FakeEndpoints, FakeInstance, FakeNode, Hand
from tests.control.local_runtime import stats_of

T = TypeVar("T")
PAGE_BYTES = 8192
HERE = "here"  # the machine of all that no other one was asked for
LSN = 8  # that everything is durable up to
COPY = CopyStatus(True, LSN, LSN, 0.0, 0, 0.0, 0.0, 0.0, 0, 1, 1)


class Clients:
    """In the place of NodeCalls."""

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

    async def fork(self, node_id: str, address: str, order: SegmentOrder) -> None:
        await self._do(node_id, address, "fork segments", lambda _: self._hand.world.fork(node_id, order))

    async def locate(self, node_id: str, address: str, volume_id: UUID, _: Target) -> list[GroupPlace]:
        await self._hand.alive()
        self._node(node_id, address)
        epoch, now_us = self._hand.world.volumes[volume_id].epoch, int(time.time() * 1e6)
        groups = [group for volume, group in self._hand.world.disks[node_id].segments if volume == volume_id]
        return [GroupPlace(group, LSN, now_us, epoch=epoch, vdl=LSN, floor_lsn=0, floor_time_us=1) for group in groups]

    async def recover(self, spec: VolumeSpec, nodes: Sequence[NodeAddress], _: float) -> int:
        volume = self._hand.world.volumes[spec.volume_id]

        def seal(_: Disk) -> None:
            volume.epoch += 1

        await self._do(nodes[0].node_id, nodes[0].address, "recover a volume", seal)
        return LSN

    async def change_members(
        self, spec: VolumeSpec, nodes: Sequence[NodeAddress], wanted: GroupPlacement, filled: str, _: float
    ) -> tuple[GroupPlacement, ...]:
        world = self._hand.world
        volume = world.volumes[spec.volume_id]
        world.shut_out(volume)

        def change(_: Disk) -> None:
            if volume.placements[wanted.group] in (spec.placements[wanted.group], wanted):
                world.change_members(volume, wanted, filled)

        await self._do(nodes[0].node_id, nodes[0].address, "change members of a volume without a writer", change)
        return tuple(volume.placements.values())

    async def hold(self, node_id: str, address: str, *_: object) -> None:
        await self._do(node_id, address, "hold history", lambda disk: None)

    async def keep_history(self, node_id: str, address: str, volume_id: UUID, seconds: int, log_bytes: int) -> None:
        def keep(disk: Disk) -> None:
            disk.retention[volume_id] = (seconds, log_bytes)

        await self._do(node_id, address, "keep history", keep)

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
            seconds, log_bytes = self._hand.world.disks[node_id].retention.get(volume, (0, 0))
            state = reply.volumes.add(volume=volume.bytes, page_size=PAGE_BYTES)
            state.retention.seconds, state.retention.log_bytes = seconds, log_bytes
            for group in groups:
                told = self._hand.world.volumes.get(volume)
                placement = None if told is None else told.placements.get(group)
                members = placement.node_ids if placement is not None else ()
                state.segments.add(group=group, members=members, members_number=1 if members else 0)
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

    pid, local_pid = 1, None

    def __init__(self, hand: Hand, instance: FakeInstance) -> None:
        self._hand, self._instance, self.host = hand, instance, instance.host

    async def _do(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        self._instance.check()
        return await self._hand.do(f"instance: {name}", work, self._instance, TimeoutError())

    async def wait_gone(self) -> str:
        await self._instance.gone.wait()
        await self._hand.alive()
        return "it was killed"

    async def open(self, config: InstanceConfig) -> Opened:
        opening = self._hand.world.go_on(self._instance.open(config))
        return await self._do("open", lambda: asyncio.shield(opening))

    async def promote(self, config: InstanceConfig) -> Opened:
        promoting = self._hand.world.go_on(promote(self._instance, config))
        return await self._do("promote", lambda: asyncio.shield(promoting))

    async def wait_ended(self) -> Outcome:
        ended, gone = self._instance.ended, asyncio.ensure_future(self._instance.gone.wait())
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        await self._hand.alive()
        self._instance.check()
        return ended.result()

    async def status(self) -> InstanceStatus | None:
        await self._hand.alive()
        if self._instance.hangs:
            await asyncio.Event().wait()
        self._instance.check()
        one = self._instance
        if one.phase is None:
            return None
        placements = tuple(one.volume.placements.values()) if one.config and one.groups else ()
        return InstanceStatus(
            one.phase,
            epoch=one.epoch,
            vdl=1,
            pid=1,
            groups=tuple(one.groups),
            free_bytes=one.free_bytes,
            reason=one.reason,
            repaired=one.repaired,
            declared_memory_bytes=one.config.memory_bytes if one.config is not None else 0,
            stats=stats_of(one.capacity),
            role=one.config.role if one.config is not None else Role.WRITER,
            lag_ms=1.0 if one.config is not None and one.config.role is Role.READER else None,
            volume_id=str(one.config.volume.volume_id) if one.config is not None else "",
            described=one.config.backup.digest if one.config is not None and one.config.backup is not None else "",
            placements=tuple(p for p in placements if p.group in one.groups),
            copy=COPY if one.config is not None and one.config.role.traits.copies else None,
        )

    async def _update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        async def updates() -> None:
            self._instance.addresses = tuple(nodes)

        await self._do("update nodes", updates)

    async def _scale(self, order: CapacityOrder | None) -> float:
        async def scales() -> float:
            self._instance.capacity = order
            return order.acu if order is not None else 0.0

        return await self._do("scale", scales)

    async def _leave_as_it_is(self, name: str) -> None:
        async def does() -> None:
            pass

        await self._do(name, does)

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

    async def do(self, command: Command[Any]) -> Any:  # noqa: PLR0911
        match command:
            case commands.UpdateNodes(nodes):
                return await self._update_nodes(nodes)
            case commands.Configure() | commands.WriteBack():
                return await self._leave_as_it_is(
                    "configure" if isinstance(command, commands.Configure) else "write back"
                )
            case commands.AddGroup(placement):
                return await self._add_group(placement)
            case commands.ChangeMembers(placement, filled):
                return await self._change_members(placement, filled)
            case commands.Scale(order):
                return await self._scale(order)
            case commands.ReplicaStatus() | commands.HoldHorizon() | commands.UpdateSource():
                return await self._hand.alive()
            case commands.AcknowledgeUntil(until_s, lowers):
                await self._hand.alive()
                self._instance.check()
                return self._instance.gate.lower(until_s) if lowers else self._instance.gate.limit(until_s)
            case commands.FirstWrite(after_ns):
                await self._hand.alive()
                self._instance.check()
                return after_ns, 1
        raise AssertionError(command)

    async def close(self, timeout_s: float) -> None:
        async def closes() -> None:
            self._instance.end_incarnation("it was asked to stop", asked=True)

        await self._do("close", closes)

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
            self._process.serve()
            taken = {o.name for o in orders if o.port in self._hand.world.taken_ports}
            return [EndpointState(o.name, o.port, "in use" * (o.name in taken), o.name in taken) for o in orders]

        self._process.check()
        return await self._hand.do("endpoints: point", applies, self._process, ProcessGoneError("no answer"))

    async def states(self, timeout_s: float) -> Sequence[EndpointState]:
        await self._hand.alive()
        self._process.check()
        return [EndpointState(o.name, o.port, stats=self._stats(o.name)) for o in self._process.orders]

    def _stats(self, name: str) -> RelayStats:
        cluster, _, endpoint = name.partition("/")
        if endpoint != "cluster":
            return RelayStats()
        return RelayStats(open=cluster in self._process.used, held=cluster in self._process.held)

    async def withdraw(self, names: Sequence[str], generation: int, timeout_s: float) -> Sequence[str]:
        async def withdraws() -> Sequence[str]:
            if generation < self._process.generation:
                raise FencedError("there were later ones")
            used = [n for n in names if n.partition("/")[0] in self._process.used | self._process.held]
            if not used:
                orders = self._process.orders
                self._process.orders = tuple(
                    replace(o, targets=(), fallback=()) if o.name in names else o for o in orders
                )
            return used[:1]

        self._process.check()
        return await self._hand.do("endpoints: withdraw", withdraws, self._process, ProcessGoneError("no answer"))

    async def wait_held(self, names: Sequence[str]) -> Sequence[str]:
        while True:
            await self._hand.alive()
            self._process.check()
            if held := [n for n in names if n.endswith("/cluster") and n.partition("/")[0] in self._process.held]:
                return held
            await asyncio.sleep(STEP_S)  # not synchronisation: the clock is virtual

    async def end(self) -> None:
        async def ends() -> None:
            self._process.kill()

        await self._hand.do("endpoints: end", ends)


class FakeRuntime:
    """Both runtimes of one control plane."""

    def __init__(self, hand: Hand) -> None:
        self._hand, self._world = hand, hand.world
        self._ready: dict[str, str] = {}  # machines of processes in waiting, by instance

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

    async def find_node(self, node: StorageNode) -> NodeHandle | None:
        await self._hand.alive()
        found = self._world.nodes.get(node.node_id)
        return NodeHandle(self._hand, found) if found is not None and found.alive else None

    async def wipe_node(self, node: StorageNode, config: ControlConfig) -> None:
        async def wipes() -> None:
            disk = self._world.disks.pop(node.node_id, Disk())
            self._world.destroys(node.node_id, disk.segments, "wipe")

        await self._hand.do("node: wipe", wipes, answer=NoPlaceError("no answer"))

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> InstanceHandle:
        await self._hand.alive()
        found = self._world.instances.get(instance_id)
        started = found if found is not None and found.alive else FakeInstance(self._world, instance_id, az)
        if started is not found:
            started.host = self._ready.pop(instance_id, HERE)
        self._world.instances[instance_id] = started

        async def starts() -> InstanceHandle:
            return InstanceHandle(self._hand, started)

        return await self._hand.do("instance: start", starts, started, ProcessGoneError("no answer"))

    async def end_waiting(self) -> None:
        await self._hand.alive()

    async def have_spare(self, instance_id: str, az: str, choice: EngineChoice, *, wanted: bool) -> None:
        await self._hand.alive()

    async def ready_instance(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        async def makes_ready() -> None:
            self._ready[instance_id] = host or HERE

        await self._hand.do("instance: make ready", makes_ready, answer=ProcessGoneError("no answer"))

    async def rooms(self, cpus_per_acu: float) -> list[Room]:
        await self._hand.alive()
        return [Room(host, (az,), room) for (host, az), room in self._world.rooms.items()]

    async def held_capacity(self) -> dict[str, float]:
        await self._hand.alive()
        return dict(self._world.pools)

    async def hold_capacity(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        async def holds() -> float:
            room = sum(room for (machine, _), room in self._world.rooms.items() if machine == host)
            self._world.pools[instance_id] = min(acu, room)
            if not acu:
                del self._world.pools[instance_id]
            return self._world.pools.get(instance_id, 0.0)

        return await self._hand.do("pool: hold", holds, answer=NoPlaceError("no answer"))

    async def find_instance(self, instance_id: str) -> InstanceHandle | None:
        return (await self.find_instances()).get(instance_id)

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
