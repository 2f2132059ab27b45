"""Processes for the control plane without processes: storage nodes are real servers in this event loop, instances obey
a script, or open their volume for real. Anything can be made to vanish as if it had been killed."""

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aurora_ray.compute import commands
from aurora_ray.compute.commands import Command
from aurora_ray.compute.config import (
    CapacityOrder,
    EngineChoice,
    HalfMadeVolumeError,
    IncarnationPhase,
    InstanceConfig,
    InstanceStatus,
    Opened,
    Outcome,
)
from aurora_ray.compute.copier import Copier
from aurora_ray.compute.role import Role
from aurora_ray.control.model.runtime import ControlConfig, NodeInfo, ProcessGoneError, Room
from aurora_ray.control.model.state import StorageNode
from aurora_ray.engine.base import StopMode
from aurora_ray.errors import AuroraError
from aurora_ray.rpc.partition import Cut
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server.server import StorageServer
from aurora_ray.volume.spec import GroupPlacement, NodeAddress
from aurora_ray.volume.write.volume import Volume
from tests.support.secret import given_secret


def stats_of(capacity: CapacityOrder | None) -> dict[str, int | float]:
    """What an idle instance tells that has it, on a machine with room for 64 ACU."""
    stats: dict[str, int | float] = {"connections": 0, "cpu_percent": 0.0}
    if capacity is None:
        return stats
    return stats | {
        "acu": capacity.acu,
        "acu_room": 64.0,
        "cpus_per_acu": capacity.cpus_per_acu,
        "cpus": 0.0,
        "looked_at_s": asyncio.get_running_loop().time(),
        "acu_s": 1.0,
        "metered_since_ns": 1,
    }


class LocalNode:
    """A storage node in this loop."""

    def __init__(self, server: StorageServer, address: str) -> None:
        self.info = NodeInfo(address, 1, "here")
        self.server = server
        self.together: Callable[[], Sequence[LocalNode]] = list  # with whom it shares a process
        self.cuts: list[Cut] = []
        self._gone = asyncio.Event()

    async def wait_gone(self) -> str:
        await self._gone.wait()
        return "it was killed"

    async def kill(self) -> None:
        await self.server.stop(0)
        self._gone.set()

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        for node in (self, *self.together()):
            await node.kill()
        return [self.info.pid]

    async def cut(self, cut: Cut) -> None:
        self.cuts.append(cut)

    async def stop(self, *, destroy: bool, timeout_s: float) -> None:
        await self.kill()
        if destroy:
            shutil.rmtree(self.server.node.config.data_dir, ignore_errors=True)

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()


class LocalInstance:
    """An instance that opens as it is told: `errors` are raised by the next openings, one each."""

    def __init__(self, runtime: "LocalRuntime") -> None:
        self.host = "here"
        self.local_pid: int | None = None
        self.pid = 1
        self.configs: list[InstanceConfig] = []
        self.groups: tuple[int, ...] = (0,)
        self.free_bytes: int | None = None
        self.addresses: tuple[NodeAddress, ...] = ()
        self.parameters: dict[str, str] = {}
        self.heard: dict[str, Command[Any]] = {}  # the newest of each of some kinds of commands
        self.volume: Volume | None = None  # if the runtime opens volumes
        self.copier: Copier | None = None  # the last one
        self._runtime = runtime
        self._gone = asyncio.Event()
        self._ended: asyncio.Future[Outcome] | None = None
        self._opens = False
        self.capacity: CapacityOrder | None = None

    async def wait_gone(self) -> str:
        await self._gone.wait()
        return "it was killed"

    async def open(self, config: InstanceConfig) -> Opened:
        self._check()
        self.configs.append(config)
        if self._runtime.errors:
            raise self._runtime.errors.pop(0)
        self.groups = tuple(placement.group for placement in config.volume.groups)
        if config.role is Role.REPLICATOR:
            return await self._replicate(config)
        if self._runtime.opens_volumes:
            await self._close_volume()
            self.volume = await Volume.open(config.volume, config.nodes, timeout_s=20, epochs=config.epochs)
            self._runtime.volumes.append(self.volume)
        self._opens = True
        await self._runtime.may_open.wait()
        self._opens = False
        self._ended = asyncio.get_running_loop().create_future()
        self.capacity = config.capacity
        return Opened(len(self.configs), 0, 1, config.port, {})

    async def _replicate(self, config: InstanceConfig) -> Opened:
        self.copier = Copier(config)
        opened = await self.copier.start()
        ended = self._ended = asyncio.get_running_loop().create_future()

        async def watch(copier: Copier) -> None:
            outcome = await copier.wait_ended()
            if not ended.done():
                ended.set_result(outcome)

        self._watch = asyncio.create_task(watch(self.copier))
        return opened

    async def wait_ended(self) -> Outcome:
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def status(self) -> InstanceStatus | None:
        self._check()
        if self._opens:
            return InstanceStatus(IncarnationPhase.STARTING, groups=self.groups, free_bytes=self.free_bytes)
        if self._ended is None:
            return None
        if self.configs[-1].role is Role.REPLICATOR and self.copier is not None:
            return self.copier.status()
        phase = IncarnationPhase.ENDED if self._ended.done() else IncarnationPhase.AVAILABLE
        volume = self.volume
        return InstanceStatus(
            phase,
            epoch=volume.epoch if volume is not None else 0,
            vdl=volume.vdl if volume is not None else 0,
            groups=self.groups,
            free_bytes=self.free_bytes,
            pid=1,
            placements=volume.spec.groups if volume is not None else (),
            repaired=self.configs[-1].repairs if self.configs else (),
            declared_memory_bytes=self.configs[-1].memory_bytes if self.configs else 0,
            role=self.configs[-1].role if self.configs else Role.WRITER,
            stats=stats_of(self.capacity),
        )

    async def _update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        self.addresses = tuple(nodes)
        if self.volume is not None:
            await self.volume.update_nodes(nodes)

    async def _change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        self._check()
        assert self.volume is not None
        placements = await self.volume.members.try_step(placement, filled)
        if self._runtime.answers_to_changes is not None:
            await self._runtime.answers_to_changes.wait()
        return placements

    async def _close_volume(self) -> None:
        if self.copier is not None:
            await self.copier.stop(StopMode.FAST, reopens=False)
        if self.volume is not None:
            await self.volume.close()

    async def _configure(self, parameters: Mapping[str, str]) -> None:
        self._check()
        self.parameters = dict(parameters)

    async def _add_group(self, placement: GroupPlacement) -> None:
        self.groups = (*self.groups, placement.group)

    async def metrics(self, timeout_s: float) -> bytes:
        return b""

    async def do(self, command: Command[Any]) -> Any:  # noqa: PLR0911 - a table of commands
        if self.copier is not None and self.configs[-1].role is Role.REPLICATOR:
            return await self.copier.do(command)
        match command:
            case commands.UpdateNodes(nodes):
                return await self._update_nodes(nodes)
            case commands.ChangeMembers(placement, filled):
                return await self._change_members(placement, filled)
            case commands.Configure(parameters):
                return await self._configure(parameters)
            case commands.AddGroup(placement):
                return await self._add_group(placement)
            case commands.Scale(order):
                self._check()
                self.capacity = order
                return order.acu if order is not None else 0.0
            case commands.AcknowledgeUntil():
                return asyncio.get_running_loop().time()
            case commands.ReplicaStatus() | commands.HoldHorizon() | commands.WriteBack():
                self.heard[type(command).__name__] = command
                return None
            case commands.FirstWrite(after_ns):
                return after_ns, 1
        raise AssertionError(command)

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        self.kill()
        return [1]

    async def close(self, timeout_s: float) -> None:
        self._check()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(Outcome(asked=True, reason="it was asked to stop"))
        await self._close_volume()

    async def abort(self) -> None:
        self.kill()

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float, replaced: bool = False) -> None:
        self.kill()

    def kill_engine(self) -> None:
        assert self._ended is not None
        self._ended.set_result(Outcome(asked=False, reason="the engine was killed by signal 9"))

    def kill(self) -> None:
        self._gone.set()

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()

    def _check(self) -> None:
        if self._gone.is_set():
            raise ProcessGoneError("its process died")


@dataclass
class LocalRuntime:
    """Outlives control planes, as the processes do."""

    directory: Path
    nodes: dict[str, LocalNode] = field(default_factory=dict)
    instances: dict[str, LocalInstance] = field(default_factory=dict)
    errors: list[AuroraError] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    made_ready: list[tuple[str, str]] = field(default_factory=list)
    spares: set[str] = field(default_factory=set)
    opens_volumes: bool = False
    volumes: list[Volume] = field(default_factory=list)
    answers_to_changes: asyncio.Event | None = None  # a change of members is answered only after this, if it is given
    broken: set[str] = field(default_factory=set)  # storage nodes that do not start
    pools: dict[str, float] = field(default_factory=dict)  # what instances hold of their machine, in ACUs ...
    room_acu: float = 64.0  # ... of which it has so many for each
    may_wipe: asyncio.Event = field(default_factory=asyncio.Event)  # set, unless a test holds the removing of data up
    may_open: asyncio.Event = field(default_factory=asyncio.Event)  # set, unless a test holds openings up

    wiped: list[str] = field(default_factory=list)  # storage nodes whose directories were removed

    def __post_init__(self) -> None:
        given_secret()
        self.may_wipe.set()
        self.may_open.set()

    async def start_node(self, node: StorageNode, config: ControlConfig) -> LocalNode:
        self.started.append(node.node_id)
        if node.node_id in self.broken:
            raise ProcessGoneError(f"{node.node_id} does not start")
        data_dir = self._data_dir(node.node_id)
        server = StorageServer(
            StorageConfig(
                node_id=node.node_id, az=node.az, data_dir=data_dir, disk_reserve_bytes=0, gossip_interval_s=0.05
            )
        )
        made = self.nodes[node.node_id] = LocalNode(server, await server.start())
        if config.small:
            made.info = replace(made.info, pid=1 + ord(node.az[0]))
            made.together = lambda: [other for other in self.nodes.values() if other.info.pid == made.info.pid]
        return made

    async def find_node(self, node: StorageNode) -> LocalNode | None:
        found = self.nodes.get(node.node_id)
        return found if found is not None and found.alive else None

    async def wipe_node(self, node: StorageNode, config: ControlConfig) -> None:
        await self.may_wipe.wait()
        self.wiped.append(node.node_id)
        shutil.rmtree(self._data_dir(node.node_id), ignore_errors=True)

    def _data_dir(self, node_id: str) -> Path:
        return self.directory / "nodes" / node_id

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> LocalInstance:
        self.started.append(instance_id)
        self.instances[instance_id] = LocalInstance(self)
        return self.instances[instance_id]

    async def have_spare(self, instance_id: str, az: str, choice: EngineChoice, *, wanted: bool) -> None:
        (self.spares.add if wanted else self.spares.discard)(instance_id)

    async def ready_instance(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        self.made_ready.append((instance_id, az))

    async def rooms(self, cpus_per_acu: float) -> list[Room]:
        return [Room("here", ("a",), self.room_acu)]

    async def end_waiting(self) -> None:
        """There are none."""

    async def held_capacity(self) -> dict[str, float]:
        return dict(self.pools)

    async def hold_capacity(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        self.pools[instance_id] = min(acu, self.room_acu)
        if not acu:
            del self.pools[instance_id]
        return self.pools.get(instance_id, 0.0)

    async def find_instance(self, instance_id: str) -> LocalInstance | None:
        return (await self.find_instances()).get(instance_id)

    async def find_instances(self) -> dict[str, LocalInstance]:
        return {instance_id: instance for instance_id, instance in self.instances.items() if instance.alive}

    async def close(self) -> None:
        for instance in self.instances.values():
            if instance.copier is not None:
                await instance.copier.stop(StopMode.KILL, reopens=False)
        for volume in self.volumes:
            await volume.close()
        for node in self.nodes.values():
            await node.kill()


HALF_MADE = HalfMadeVolumeError("volume is not initialised and has content already")
