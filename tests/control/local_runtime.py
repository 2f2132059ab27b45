"""Processes for the control plane without processes: storage nodes are real servers in this event loop, instances obey
a script. Anything can be made to vanish as if it had been killed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aurora_ray.compute.config import (
    EngineChoice,
    HalfMadeVolumeError,
    Opened,
    Outcome,
    WriterConfig,
    WriterPhase,
    WriterStatus,
)
from aurora_ray.control.model import StorageNode
from aurora_ray.control.runtime import ControlConfig, NodeInfo, ProcessGoneError
from aurora_ray.errors import AuroraError
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.server import StorageServer
from aurora_ray.volume.spec import GroupPlacement, NodeAddress


class LocalNode:
    """A storage node in this loop."""

    def __init__(self, server: StorageServer, address: str) -> None:
        self.info = NodeInfo(address, 1, "here")
        self._server = server
        self._gone = asyncio.Event()

    async def wait_gone(self) -> str:
        await self._gone.wait()
        return "it was killed"

    async def kill(self) -> None:
        await self._server.stop(0)
        self._gone.set()

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        await self.kill()
        return [1]

    async def stop(self, *, destroy: bool, timeout_s: float) -> None:
        await self.kill()

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()


class LocalInstance:
    """An instance that opens as it is told: `errors` are raised by the next openings, one each."""

    def __init__(self, runtime: "LocalRuntime") -> None:
        self.host = "here"
        self.local_pid: int | None = None
        self.pid = 1
        self.configs: list[WriterConfig] = []
        self.groups: tuple[int, ...] = (0,)
        self.free_bytes: int | None = None
        self.addresses: tuple[NodeAddress, ...] = ()
        self._runtime = runtime
        self._gone = asyncio.Event()
        self._ended: asyncio.Future[Outcome] | None = None

    async def wait_gone(self) -> str:
        await self._gone.wait()
        return "it was killed"

    async def open(self, config: WriterConfig) -> Opened:
        self._check()
        self.configs.append(config)
        if self._runtime.errors:
            raise self._runtime.errors.pop(0)
        self.groups = tuple(placement.group for placement in config.volume.groups)
        self._ended = asyncio.get_running_loop().create_future()
        return Opened(len(self.configs), 0, 1, config.port, {})

    async def wait_ended(self) -> Outcome:
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def status(self) -> WriterStatus | None:
        self._check()
        if self._ended is None:
            return None
        phase = WriterPhase.ENDED if self._ended.done() else WriterPhase.AVAILABLE
        return WriterStatus(phase, groups=self.groups, free_bytes=self.free_bytes, pid=1)

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        self.addresses = tuple(nodes)

    async def add_group(self, placement: GroupPlacement) -> None:
        self.groups = (*self.groups, placement.group)

    async def metrics(self, timeout_s: float) -> bytes:
        return b""

    async def first_write(self, after_ns: int, timeout_s: float) -> tuple[int, int] | None:
        return after_ns, 1

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        self.kill()
        return [1]

    async def abort(self) -> None:
        self.kill()

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float) -> None:
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

    async def start_node(self, node: StorageNode, config: ControlConfig) -> LocalNode:
        self.started.append(node.node_id)
        data_dir = self.directory / "nodes" / node.node_id
        server = StorageServer(
            StorageConfig(
                node_id=node.node_id, az=node.az, data_dir=data_dir, disk_reserve_bytes=0, gossip_interval_s=0.05
            )
        )
        self.nodes[node.node_id] = LocalNode(server, await server.start())
        return self.nodes[node.node_id]

    async def find_node(self, node_id: str) -> LocalNode | None:
        node = self.nodes.get(node_id)
        return node if node is not None and node.alive else None

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> LocalInstance:
        self.started.append(instance_id)
        self.instances[instance_id] = LocalInstance(self)
        return self.instances[instance_id]

    async def find_instances(self) -> dict[str, LocalInstance]:
        return {instance_id: instance for instance_id, instance in self.instances.items() if instance.alive}

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.kill()


HALF_MADE = HalfMadeVolumeError("volume is not initialised and has content already")
