"""Processes as Ray actors: placed by AZ, named so that the next control plane finds them, detached from whoever made
them.

An AZ is a custom resource, `az:<name>`, of which every machine in that AZ has plenty; an actor takes a crumb. A storage
node that has run once is also held to its machine, where its directory is, by the resource `node:<ip>` that Ray gives
every machine. Nothing is restarted by Ray itself: restarting is a decision, and decisions are made in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import ray
import ray._private.state
import ray.util

from aurora_ray import telemetry
from aurora_ray.compute.config import IncarnationPhase
from aurora_ray.control.model.runtime import NodeInfo, NoPlaceError, ProcessGoneError
from aurora_ray.ray.actors import HOLD_S, ActorInfo, InstanceActor, StorageNodeActor, remote_class
from aurora_ray.ray.calls import result_of
from aurora_ray.ray.pool import AZ_PREFIX, Pools
from aurora_ray.ray.reach import (
    CALL_TIMEOUT_S,
    CRUMB,
    FIND_TIMEOUT_S,
    START_TIMEOUT_S,
    abort,
    answers,
    find,
    info_of,
    is_here,
    noted_info,
    signal,
    wait_gone,
)
from aurora_ray.ray.spares import Spares, instance_of, names
from aurora_ray.ray.waiting import PREFIX, Waiting, WhoseInRay
from aurora_ray.rpc.admission import OURS
from aurora_ray.storage.config import StorageConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.compute.commands import Command
    from aurora_ray.compute.config import EngineChoice, InstanceConfig, InstanceStatus, Opened, Outcome
    from aurora_ray.control.model.runtime import ControlConfig, InstanceProcess, NodeProcess, Room
    from aurora_ray.control.model.state import StorageNode
    from aurora_ray.rpc.partition import Cut

_log = logging.getLogger(__name__)
T = TypeVar("T")

LEGACY_NAMESPACE: Final = "aurora-ray"  # of all fleets, before one Ray cluster could run several
CONTROL_NAME: Final = "control"
NODE_PREFIX: Final = "storage-"
INSTANCE_PREFIX: Final = "instance-"
LOOK_FOR_PLACE_EVERY_S: Final = 2.0
WIPE_TIMEOUT_S: Final = 10.0


def namespace_of(fleet_id: str) -> str:
    """Where a fleet's actors have their names; empty: those of a fleet of an older version."""
    return f"{LEGACY_NAMESPACE}-{fleet_id}" if fleet_id else LEGACY_NAMESPACE


def az_resource(az: str) -> str:
    """The custom resource that a machine of this AZ has."""
    return AZ_PREFIX + az


class RayNode:
    """A storage node in its actor, which it may have for itself or share."""

    def __init__(self, node_id: str, handle: Any, found: ActorInfo) -> None:
        self._node_id = node_id
        self._handle = handle
        self._found = found
        self.info = NodeInfo(found.address, found.pid, found.host)

    async def wait_gone(self) -> str:
        """Why it ended."""
        return await wait_gone(self._handle, self._node_id)

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        """To the actor's process and all below it."""
        return await signal(self._found, signo, resume_after_s)

    async def cut(self, cut: Cut) -> None:
        """Whom the node does not hear from now on."""
        await result_of(self._handle.cut.remote(cut), CALL_TIMEOUT_S)

    async def stop(self, *, destroy: bool, timeout_s: float) -> None:
        """Ends it in order; with `destroy` its directory goes too. Its process ends with the last node in it, and so
        does one that does not say how many are left."""
        left = 0
        try:
            left = await result_of(self._handle.stop.remote(self._node_id, destroy, 0.5), timeout_s)
        finally:
            if not left:
                ray.kill(self._handle)


class RayInstance:
    """An instance actor."""

    def __init__(self, instance_id: str, handle: Any, info: ActorInfo, on_end: Callable[[], Awaitable[None]]) -> None:
        self._instance_id = instance_id
        self._handle = handle
        self._found = info
        self._on_end = on_end
        self.host = info.host
        self.pid = info.pid
        self.local_pid = info.pid if is_here(info) else None

    async def wait_gone(self) -> str:
        """Why it ended."""
        return await wait_gone(self._handle)

    async def open(self, config: InstanceConfig) -> Opened:
        """Opens a new incarnation. A recovery may take long: then the caller finds out later what became of it."""
        trace = telemetry.inject_dict()
        opened: Opened = await result_of(self._handle.open.remote(config, trace), config.open_timeout_s + 60.0)
        return opened

    async def promote(self, config: InstanceConfig) -> Opened:
        """See InstanceProcess; it gives up by itself before that is too late."""
        promoted = self._handle.promote.remote(config, telemetry.inject_dict())
        opened: Opened = await result_of(promoted, CALL_TIMEOUT_S)
        return opened

    async def wait_ended(self) -> Outcome:
        """How the open incarnation ended."""
        while True:
            with contextlib.suppress(TimeoutError):  # it is silent; whether it hangs is for others to find
                outcome: Outcome | None = await result_of(self._handle.wait_ended.remote(), HOLD_S + CALL_TIMEOUT_S)
                if outcome is not None:
                    return outcome

    async def status(self) -> InstanceStatus | None:
        """The latest incarnation."""
        status: InstanceStatus | None = await result_of(self._handle.status.remote(), CALL_TIMEOUT_S)
        return status

    async def do(self, command: Command[T]) -> T:
        """See InstanceProcess."""
        trace = telemetry.inject_dict()
        answer: T = await result_of(self._handle.do.remote(command, trace), command.limit_s + CALL_TIMEOUT_S)
        return answer

    async def metrics(self, timeout_s: float) -> bytes:
        """What the process counts, as Prometheus text."""
        text: bytes = await result_of(self._handle.metrics.remote(), timeout_s)
        return text

    async def signal(self, signo: int, resume_after_s: float | None) -> list[int]:
        """To the actor's process and all below it."""
        return await signal(self._found, signo, resume_after_s)

    async def answers(self, timeout_s: float) -> bool:
        """Whether it is there and at work."""
        return await answers(self._handle, timeout_s)

    async def close(self, timeout_s: float) -> None:
        """See InstanceProcess."""
        await result_of(self._handle.close.remote(), timeout_s)

    async def abort(self) -> None:
        """SIGKILL where it can be sent, which ends stopped processes too; elsewhere it is Ray that ends it."""
        await abort(self._handle, self._found)

    async def end(self, *, fast: bool, destroy: bool, timeout_s: float, replaced: bool = False) -> None:
        """Ends the incarnation and the process, and the one in waiting unless that takes over."""
        if not replaced:
            await self._on_end()
        try:
            await result_of(self._handle.stop.remote(fast, self._instance_id if destroy else ""), timeout_s)
        except ProcessGoneError:
            return
        finally:
            ray.kill(self._handle)


class RayWaiting:
    """An instance actor that is nobody's yet, see waiting.py."""

    def __init__(self, name: str, handle: Any, info: ActorInfo) -> None:
        self.name = name
        self.handle = handle
        self.info = info

    async def offers(self, az: str) -> bool:
        """Whether its machine lives and is of this AZ."""
        machines = await asyncio.to_thread(ray.nodes)
        return any(
            machine["Alive"]
            and machine["NodeManagerAddress"] == self.info.host
            and az_resource(az) in machine["Resources"]
            for machine in machines
        )

    async def answers(self, timeout_s: float) -> bool:
        """Whether it is there and at work."""
        return await answers(self.handle, timeout_s)

    async def abort(self) -> None:
        """Ends it."""
        await abort(self.handle, self.info)


class RayRuntime:
    """See `runtime.Runtime`. `namespace` is the fleet's. `small`: it has no processes in waiting."""

    def __init__(self, namespace: str, *, small: bool = False) -> None:
        self._namespace = namespace
        self._small = small
        self._spares: Spares[RayInstance] = Spares(self._new_instance)
        self._whose = WhoseInRay(namespace)
        self._choice: EngineChoice | None = None  # what was started last
        self._waiting: Waiting[RayWaiting] = Waiting(self._new_waiting, self._whose)
        self._pools = Pools(namespace)

    async def held_capacity(self) -> Mapping[str, float]:
        """See Runtime and pool.py."""
        return await self._pools.held()

    async def hold_capacity(self, instance_id: str, host: str, acu: float, cpus_per_acu: float) -> float:
        """See Runtime and pool.py."""
        return await self._pools.hold(instance_id, host, acu, cpus_per_acu)

    async def rooms(self, cpus_per_acu: float) -> Sequence[Room]:
        """See Runtime and pool.py."""
        return await self._pools.rooms(cpus_per_acu)

    async def start_node(self, node: StorageNode, config: ControlConfig) -> NodeProcess:
        """A storage node that serves, in an actor of its own; in a small fleet in that of its AZ, made if need be."""
        existing = await self.find_node(node)
        if existing is not None:  # someone started it and did not live to note it
            return existing
        owner, place = node.az if config.small else node.node_id, (node.az, node.host)
        arguments = (owner, node.az, str(config.data_dir), OURS.secret)
        handle = _create(
            StorageNodeActor, NODE_PREFIX + owner, self._namespace, place, *arguments, get_if_exists=config.small
        )
        starting = handle.start.remote(storage_config(node, config))
        info = await _started(handle, starting, node.az, node.host, shared=config.small)
        return RayNode(node.node_id, handle, info)

    async def find_node(self, node: StorageNode) -> NodeProcess | None:
        """The node in an actor of an earlier control plane, of whatever kind. One that hangs is left alone, and found
        when it answers again."""
        for owner in filter(None, (node.node_id, node.az)):
            handle = await find(NODE_PREFIX + owner, self._namespace)
            if handle is None:
                continue
            try:
                info = await info_of(handle, node.node_id)
            except TimeoutError:
                continue
            if info is not None and info.address:
                return RayNode(node.node_id, handle, info)
        return None

    async def wipe_node(self, node: StorageNode, config: ControlConfig) -> None:
        """Here directly, on another machine by a task of Ray's there."""
        path = _node_dir(node, config)
        if node.host in ("", ray.util.get_node_ip_address()):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            return
        there = ray.remote(shutil.rmtree).options(num_cpus=0, resources={f"node:{node.host}": CRUMB}, max_retries=0)
        ref = there.remote(path, ignore_errors=True)
        try:
            await result_of(ref, WIPE_TIMEOUT_S)
        except TimeoutError:
            ray.cancel(ref)
            raise NoPlaceError(f"machine {node.host} does not remove {path}: is it there?") from None

    async def start_instance(self, instance_id: str, az: str, choice: EngineChoice) -> InstanceProcess:
        """An idle instance actor: one that is in waiting, or a new one."""
        self._choice = choice

        async def otherwise() -> RayInstance:
            found = await self.find_instance(instance_id)
            if found is None and (waiting := await self._waiting.take(instance_id, az)) is not None:
                found = self._instance(instance_id, waiting.handle, waiting.info, waiting.name)
            return found or await self._new_instance(instance_id, az, choice)

        instance = await self._spares.take(instance_id, az, choice, otherwise)
        assert instance is not None, "there is another way to get one"  # noqa: S101
        if not self._small:
            self._waiting.make_later(az)
        return instance

    async def end_waiting(self) -> None:
        """See Runtime."""
        await self._waiting.close()

    async def have_spare(self, instance_id: str, az: str, choice: EngineChoice, *, wanted: bool) -> None:
        """See Runtime."""
        if wanted and not self._small:
            self._spares.make_later(instance_id, az, choice)
        else:
            await self._spares.drop(instance_id)

    async def ready_instance(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> None:
        """Has a process in waiting there."""
        await self._spares.ready(instance_id, az, choice, host)

    async def find_instance(self, instance_id: str) -> RayInstance | None:
        """What someone started who had no answer, or did not live to note it."""
        for name in (*names(INSTANCE_PREFIX, instance_id), *await self._whose.names_of(instance_id)):
            found = await self._find_instance(name, instance_id)
            if found is not None:
                return found
        return None

    async def _new_waiting(self, name: str, az: str) -> RayWaiting:
        choice = self._choice
        assert choice is not None, "an instance was started before"  # noqa: S101
        handle = _create(InstanceActor, name, self._namespace, (az, ""), "", az, choice, OURS.secret)
        return RayWaiting(name, handle, await _started(handle, handle.info.remote(), az, ""))

    async def _new_instance(self, instance_id: str, az: str, choice: EngineChoice, host: str = "") -> RayInstance:
        first, other = names(INSTANCE_PREFIX, instance_id)
        arguments = (self._namespace, (az, host), instance_id, az, choice, OURS.secret)
        try:
            handle = _create(InstanceActor, first, *arguments)
        except ProcessGoneError:
            handle = _create(InstanceActor, other, *arguments)
        return self._instance(instance_id, handle, await _started(handle, handle.info.remote(), az, host))

    def _instance(self, instance_id: str, handle: Any, info: ActorInfo, waited: str = "") -> RayInstance:
        """`waited`: its name, of one that has been in waiting for anyone."""

        async def on_end() -> None:
            await self._spares.drop(instance_id)
            if waited:
                await self._whose.forget(waited, instance_id)

        return RayInstance(instance_id, handle, info, on_end)

    async def find_instances(self) -> dict[str, InstanceProcess]:
        """The actors of an earlier control plane. Where there are two, one of them was in waiting and is ended."""
        found_names = await asyncio.to_thread(ray.util.list_named_actors, True)
        named = [one["name"] for one in found_names if isinstance(one, dict) and one["namespace"] == self._namespace]
        whose = await self._whose.all()
        ours = {name: instance_of(INSTANCE_PREFIX, name) for name in named if name.startswith(INSTANCE_PREFIX)} | whose
        instances = await asyncio.gather(*(self._find_instance(name, ours[name]) for name in sorted(ours)))
        found: dict[str, list[RayInstance]] = {}
        for name, instance in zip(sorted(ours), instances, strict=True):
            if instance is not None:
                found.setdefault(ours[name], []).append(instance)
        await asyncio.gather(
            *(self._end_nobodys(name) for name in named if name.startswith(PREFIX) and name not in whose)
        )
        return {instance_id: await _busiest(those) for instance_id, those in found.items()}

    async def _end_nobodys(self, name: str) -> None:
        """Nothing was ever opened in it."""
        if (handle := await find(name, self._namespace)) is not None:
            ray.kill(handle)

    async def _find_instance(self, name: str, instance_id: str) -> RayInstance | None:
        """One that does not answer is there all the same: whether it hangs is for the heartbeats to find, which take
        their time and look at what it does."""
        waited = name if name.startswith(PREFIX) else ""
        handle = await find(name, self._namespace)
        if handle is None:
            if waited:
                await self._whose.forget(name, instance_id)
            return None
        try:
            info = await info_of(handle)
        except TimeoutError:
            info = await asyncio.to_thread(noted_info, handle)
        return self._instance(instance_id, handle, info, waited) if info is not None else None


async def _busiest(instances: Sequence[RayInstance]) -> RayInstance:
    """Of the processes of one instance the one that has most to lose; the others are ended."""
    if len(instances) == 1:
        return instances[0]
    standings = await asyncio.gather(*map(_standing, instances))
    kept = instances[standings.index(max(standings))]
    for other in instances:
        if other is not kept:
            await other.abort()
    return kept


async def _standing(instance: RayInstance) -> int:
    """0: gone, 1: nothing is open in it, 2: it does not say, 3: it opens something, 4: it serves."""
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            status = await instance.status()
    except ProcessGoneError:
        return 0
    except TimeoutError:
        return 2
    if status is None or status.phase is IncarnationPhase.ENDED:
        return 1
    return 4 if status.phase is IncarnationPhase.AVAILABLE else 3


def _node_dir(node: StorageNode, config: ControlConfig) -> Path:
    return config.data_dir / "nodes" / node.node_id


def storage_config(node: StorageNode, config: ControlConfig) -> StorageConfig:
    """Of a storage node in this fleet; in a small one it buffers less."""
    found = StorageConfig(
        node_id=node.node_id,
        az=node.az,
        data_dir=_node_dir(node, config),
        retention_s=config.retention_s,
        retention_bytes=config.retention_bytes,
        graveyard_s=config.graveyard_s,
    )
    if not config.small:
        return found
    return replace(found, write_buffers_bytes=64 << 20, block_cache_bytes=8 << 20, index_bytes=16 << 20)


def _create(
    cls: type[Any], name: str, namespace: str, place: tuple[str, str], *arguments: Any, get_if_exists: bool = False
) -> Any:
    """`place`: an AZ, and a machine in it (empty: any)."""
    az, host = place
    resources = {az_resource(az): CRUMB, **({f"node:{host}": CRUMB} if host else {})}
    try:
        made = remote_class(cls, name=name, namespace=namespace, resources=resources, get_if_exists=get_if_exists)
        return made.remote(*arguments)
    except ValueError as error:  # the name is taken: an earlier one is on its way out
        raise ProcessGoneError(f"actor {name} is still there and cannot be started anew yet") from error


async def _started(handle: Any, ref: Any, az: str, host: str, *, shared: bool = False) -> ActorInfo:
    """Waits for the first answer; an actor that found no place is taken back, at once if there is no machine for it.
    One that is `shared` and runs is not: others may be in it."""
    starting = asyncio.ensure_future(result_of(ref, START_TIMEOUT_S))
    where = f"machine {host} in AZ {az}" if host else f"AZ {az}"
    try:
        while not (await asyncio.wait({starting}, timeout=LOOK_FOR_PLACE_EVERY_S))[0]:
            await asyncio.to_thread(_check_offered, az, host)
        info: ActorInfo = await starting
    except BaseException as error:
        starting.cancel()
        if not shared or await asyncio.to_thread(noted_info, handle) is None:
            ray.kill(handle)
        if isinstance(error, TimeoutError):
            raise NoPlaceError(
                f"no process could be started in {START_TIMEOUT_S:g} s: is {where} part of it?"
            ) from None
        raise
    return info


def _check_offered(az: str, host: str) -> None:
    """Raises NoPlaceError unless a living machine of the cluster offers that place."""
    offered = ray.cluster_resources()
    if az_resource(az) not in offered or (host and f"node:{host}" not in offered):
        machine = f"machine {host}" if host else "machine"
        raise NoPlaceError(f"no process can be started: there is no {machine} of AZ {az} in the cluster now")
