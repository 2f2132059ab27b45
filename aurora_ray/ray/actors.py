"""The two Ray actors that hold data: a storage node, and an instance (an engine on a mount). Thin: the work is done by
StorageServer and Writer, on a loop thread of their own.

They are asyncio actors: each call is a coroutine on Ray's loop that hands another one to the loop thread and waits for
it without a thread. So every method is one (a plain method would stop them all while it runs), and none waits without a
limit, because Ray does not end the calls of a caller that died: a watch (`hold`, `wait_ended`) answers after `HOLD_S`
at the latest that nothing has ended yet, and is asked again by callers that still live. Of one that does not, its last
question is left, for that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.util

from aurora_ray import telemetry
from aurora_ray.compute.instance import Instance
from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.compute.loop import LoopThread
from aurora_ray.compute.process import configure_process
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.errors import UsageError
from aurora_ray.rpc.admission import OURS, Secret
from aurora_ray.rpc.partition import PARTY, Cut, instance_party, storage_party

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import EngineChoice, InstanceConfig, InstanceStatus, Opened, Outcome
    from aurora_ray.storage.config import StorageConfig

CONCURRENCY: Final = 1000
HOLD_S: Final = 20.0
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_MAX_S: Final = 300.0  # whoever asks has a limit of its own


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """Where an actor runs. `address` is a storage node's; `host` the machine as Ray names it. `ticks`: start_ticks."""

    pid: int
    host: str
    address: str = ""
    ticks: int = 0


class StorageNodeActor:
    """The process of a storage node; in a small fleet, of all nodes of an AZ. `name`: whose it is, a node or an AZ."""

    def __init__(self, name: str, az: str, fleet_dir: str, secret: Secret) -> None:
        from aurora_ray.storage.server.servers import Servers

        attributes = {"aurora.node": name, "aurora.az": az}
        PARTY.name = storage_party(name)
        OURS.set(secret)
        configure_process("storage", f"storage-{name}", Path(fleet_dir), attributes)
        # Others reach it where Ray reaches this machine: 127.0.0.1 for a Ray that is on one machine only.
        self._servers = Servers(ray.util.get_node_ip_address())
        self._loop = LoopThread("storage")

    async def start(self, config: StorageConfig) -> ActorInfo:
        """Opens a node's segments and serves. Raises ConfigurationError."""
        await self._loop.ask(self._servers.start(config), START_TIMEOUT_S)
        return await self.info(config.node_id)

    async def info(self, node_id: str) -> ActorInfo:
        """Where it is; without an address if it does not serve that node."""
        return _info(self._servers.address(node_id))

    async def hold(self, node_id: str) -> None:
        """A watch: raises at the caller when the process has gone, or does not serve that node any more; returns when
        it is time to ask again."""
        with contextlib.suppress(TimeoutError):
            await self._loop.ask(self._servers.wait_stopped(node_id), HOLD_S)
            raise ProcessGoneError(f"storage node {node_id} was stopped")

    async def cut(self, cut: Cut) -> None:
        """Whom the process does not hear from now on."""
        await self._loop.ask(_set_cut(cut), START_TIMEOUT_S)

    async def stop(self, node_id: str, destroy: bool, grace_s: float) -> int:
        """Ends serving a node; with `destroy` removes its directory. How many the process still serves."""
        left = await self._loop.ask(self._servers.stop(node_id, grace_s, destroy=destroy), START_TIMEOUT_S)
        if not left:
            telemetry.shutdown()
        return left


class InstanceActor:
    """An instance's process. Without an instance's id it is nobody's yet, and becomes its who opens it first."""

    def __init__(self, instance_id: str, az: str, choice: EngineChoice, secret: Secret) -> None:
        OURS.set(secret)
        self._data_dir = choice.data_dir
        self._instance_id = ""
        if instance_id:
            self._become(instance_id, az)
        self._instance = Instance()
        self._loop = LoopThread("writer")
        self._loop.submit(self._instance.get_ready(choice))

    def _become(self, instance_id: str, az: str) -> None:
        self._instance_id = instance_id
        PARTY.name = instance_party(instance_id, os.getpid())
        attributes = {"aurora.instance": instance_id, "aurora.az": az}
        configure_process("compute", f"instance-{instance_id}", self._data_dir, attributes)

    async def info(self) -> ActorInfo:
        """Where it is."""
        return _info()

    async def hold(self) -> None:
        """A watch: raises at the caller when the process has gone; returns when it is time to ask again."""
        await asyncio.sleep(HOLD_S)

    async def open(self, config: InstanceConfig, trace: Mapping[str, str]) -> Opened:
        """See Instance.open, which ends by itself when nothing moves. Raises UsageError for another's process."""
        if not self._instance_id:
            self._become(config.instance_id, config.az)
        if self._instance_id != config.instance_id:
            raise UsageError(f"{config.instance_id} cannot be opened in the process of {self._instance_id}")
        return await self._loop.ask(self._instance.open(config, trace), None)

    async def promote(self, config: InstanceConfig, trace: Mapping[str, str]) -> Opened:
        """See Instance.promote, which ends by itself in a bounded time."""
        return await self._loop.ask(self._instance.promote(config, trace), None)

    async def wait_ended(self) -> Outcome | None:
        """A watch, see Instance.wait_ended; None when it is time to ask again."""
        try:
            return await self._loop.ask(self._instance.wait_ended(), HOLD_S)
        except TimeoutError:
            return None

    async def status(self) -> InstanceStatus | None:
        """See Instance.status."""
        return await self._loop.ask(self._instance.status(), START_TIMEOUT_S)

    async def metrics(self) -> bytes:
        """This process's, as Prometheus text."""
        return telemetry.exposition()

    async def do(self, command: Command[Any], trace: Mapping[str, str]) -> Any:
        """See Instance.do."""
        return await self._loop.ask(self._instance.do(command, trace), command.limit_s)

    async def close(self) -> None:
        """Ends the incarnation in order; the process stays, and opens again."""
        await self._loop.ask(self._instance.stop(fast=True, reopens=True), STOP_TIMEOUT_MAX_S)

    async def stop(self, fast: bool, destroyed: str) -> Outcome | None:
        """Ends the incarnation, in order if `fast`, else at once; then removes the directory of that instance, if one
        is named: its own, where others may have been before it."""
        outcome = await self._loop.ask(self._instance.stop(fast=fast), STOP_TIMEOUT_MAX_S)
        if destroyed:
            directory = self._data_dir / "instances" / destroyed
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        telemetry.shutdown()
        return outcome


def _info(address: str = "") -> ActorInfo:
    pid = os.getpid()
    return ActorInfo(pid, ray.util.get_node_ip_address(), address, start_ticks(pid) or 0)


async def _set_cut(cut: Cut) -> None:
    PARTY.set_cut(cut)


def remote_class(cls: type[Any], **options: Any) -> Any:
    """`cls` as a Ray actor class: without a CPU of its own, outliving whoever makes it."""
    defaults = {"num_cpus": 0, "max_concurrency": CONCURRENCY, "lifetime": "detached", "max_restarts": 0}
    return ray.remote(cls).options(**{**defaults, **options})
