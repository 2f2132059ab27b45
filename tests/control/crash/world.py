"""What a control plane acts upon, in memory: disks, storage nodes, volumes, instances, endpoints, and its own volume.

The world outlives control planes and goes on without them: an instance that was asked to open its volume does so
whether anybody hears of it or not. It notes whatever must never happen (`lost`), at the moment at which it does.

Each change that the control plane makes, and each step of an opening, is an *effect*. A `Crash` says what happens right
after one of them: the control plane ends, the process that it talked to ends, or the answer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from aurora_ray.compute.config import HalfMadeVolumeError, Opened, Outcome, WriterPhase, WriterStatus
from aurora_ray.control.model import pack, unpack
from aurora_ray.control.nodes import NodeCallError
from aurora_ray.control.runtime import NodeInfo, NoPlaceError, ProcessGoneError
from aurora_ray.endpoint.host import EndpointOrder, EndpointState
from aurora_ray.errors import EngineError, FencedError, PortInUseError, QuorumLostError, UsageError
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from aurora_ray.compute.config import EngineChoice, WriterConfig
    from aurora_ray.control.model import Fleet, StorageNode, VolumeState
    from aurora_ray.control.reconcile import SegmentOrder
    from aurora_ray.control.runtime import ControlConfig
    from aurora_ray.rpc.partition import Cut
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress

T = TypeVar("T")
STEP_S = 0.02
WRITE_QUORUM = 4


class Ends(StrEnum):
    """What a crash ends."""

    CONTROL = "control"  # the control plane
    ACTOR = "actor"  # the process that it talked to
    ANSWER = "answer"  # neither, but the answer is lost


@dataclass(slots=True)
class Crash:
    """After the effect number `at` (from 1 on; 0: never). `effects`: what there was to count, by name."""

    ends: Ends
    at: int = 0
    effects: list[str] = field(default_factory=list)

    def hits(self, name: str, *, has_actor: bool, has_answer: bool) -> bool:
        """Counts an effect, and says whether it is the one."""
        if (self.ends is Ends.ACTOR and not has_actor) or (self.ends is Ends.ANSWER and not has_answer):
            return False
        self.effects.append(name)
        return len(self.effects) == self.at


class Content(StrEnum):
    """What a volume holds."""

    NOTHING = "nothing"
    HALF = "half of a data directory"
    COMPLETE = "a data directory"


@dataclass(slots=True)
class Volume:
    """The truth about a volume, which its copies know."""

    volume_id: UUID
    placements: dict[int, GroupPlacement]
    epoch: int = 0
    content: Content = Content.NOTHING
    rows: int = 0
    owner: FakeInstance | None = None

    def members(self) -> set[str]:
        return {n for p in self.placements.values() for n in p.all_node_ids}


@dataclass(slots=True)
class Disk:
    """A storage node's directory."""

    segments: set[tuple[UUID, int]] = field(default_factory=set)


class Process:
    """Something that can end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gone = asyncio.Event()

    @property
    def alive(self) -> bool:
        return not self.gone.is_set()

    def kill(self) -> None:
        self.gone.set()

    def check(self) -> None:
        if not self.alive:
            raise ProcessGoneError("its process died")


class FakeNode(Process):
    """A storage node's process."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name)
        self.info = NodeInfo(address, 1, "here")


class FakeInstance(Process):
    """An instance's process, with the incarnation that it has or had."""

    def __init__(self, world: World, name: str, az: str) -> None:
        super().__init__(name)
        self.world, self.az = world, az
        self.phase: WriterPhase | None = None
        self.reason = ""
        self.epoch = 0
        self.config: WriterConfig | None = None
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.addresses: tuple[NodeAddress, ...] = ()
        self.groups: frozenset[int] = frozenset()
        self.free_bytes: int | None = None
        self.hangs = False

    def end_incarnation(self, reason: str, *, asked: bool = False) -> None:
        if self.phase not in (None, WriterPhase.ENDED):
            self.phase, self.reason = WriterPhase.ENDED, reason
            self.ended.set_result(Outcome(asked, reason))

    def kill(self) -> None:
        super().kill()
        if self.phase is not None:
            self.phase = WriterPhase.ENDED

    @property
    def volume(self) -> Volume:
        assert self.config is not None
        return self.world.volumes[self.config.volume.volume_id]

    async def open(self, config: WriterConfig) -> Opened:
        if self.phase not in (None, WriterPhase.ENDED):
            raise UsageError(f"{self.name} is open already")
        self.config, self.phase, self.ended = config, WriterPhase.SEALING, asyncio.get_running_loop().create_future()
        try:
            await self._open(config)
        except BaseException as error:
            self.end_incarnation(f"it could not be opened: {error}")
            raise
        return Opened(self.epoch, 1, 1, config.port, {})

    async def _open(self, config: WriterConfig) -> None:
        world = self.world
        if config.port in world.taken_ports:
            raise PortInUseError(f"port {config.port} is in use")
        volume = world.volume_of(config)
        world.require_quorum(volume)
        volume.epoch += 1
        self.epoch = volume.epoch
        if volume.owner is not None and volume.owner is not self:
            volume.owner.end_incarnation("a higher epoch exists")
        volume.owner = self
        self.groups = frozenset(volume.placements)
        await self._step("seal")
        if volume.content is Content.NOTHING:
            if not config.initialise:
                raise EngineError("it is empty, though it held a data directory")
            self.phase = WriterPhase.INITIALISING
            volume.content = Content.HALF
            await self._step("half an import")
            volume.content = Content.COMPLETE
            await self._step("an import")
        elif volume.content is Content.HALF:
            raise HalfMadeVolumeError("the initialisation was cut short")
        self.phase = WriterPhase.AVAILABLE
        volume.rows += 1
        await self._step("available")

    async def _step(self, name: str) -> None:
        """Somewhere on the way: whoever is to end now ends; a writer that was sealed out goes no further."""
        self.world.passed(f"instance: {name}", self)
        await asyncio.sleep(STEP_S)
        self.check()
        if self.volume.epoch != self.epoch:
            raise FencedError("a higher epoch exists")


class FakeEndpoints(Process):
    """The endpoints' process."""

    host = "here"

    def __init__(self) -> None:
        super().__init__("endpoints")
        self.orders: tuple[EndpointOrder, ...] = ()
        self.generation = 0


class World:
    """See the module's text."""

    def __init__(self) -> None:
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, FakeNode] = {}
        self.instances: dict[str, FakeInstance] = {}
        self.endpoints: FakeEndpoints | None = None
        self.volumes: dict[UUID, Volume] = {}
        self.saved: list[bytes] = []
        self.control_epoch = 0
        self.crash: Crash | None = None
        self.hand = Hand(self)
        self.lost: list[str] = []  # what must never happen
        self.asked_to_delete: set[str] = set()  # clusters, by the user's word
        self.broken: set[str] = set()  # storage nodes that do not start
        self.taken_ports: set[int] = set()
        self._starts = 0
        self._going_on: set[asyncio.Task[Any]] = set()

    # ---- crashes

    def passed(self, name: str, actor: Process | None = None, answer: Exception | None = None) -> None:
        """An effect happened; raises what its caller is to hear."""
        crash = self.crash
        if crash is None or not crash.hits(name, has_actor=actor is not None, has_answer=answer is not None):
            return
        if crash.ends is Ends.CONTROL:
            self.hand.die()
        elif crash.ends is Ends.ACTOR:
            assert actor is not None
            actor.kill()
        else:
            assert answer is not None
            raise answer

    def go_on(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Something that goes on whoever asked for it."""
        task = asyncio.ensure_future(work)
        self._going_on.add(task)  # type: ignore[arg-type]
        task.add_done_callback(self._going_on.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear it
        return task

    # ---- what there is

    def start(self, node_id: str) -> FakeNode:
        self._starts += 1
        self.disks.setdefault(node_id, Disk())
        self.nodes[node_id] = FakeNode(node_id, f"127.0.0.1:{10000 + self._starts}")
        return self.nodes[node_id]

    def running(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.alive}

    def volume_of(self, config: WriterConfig) -> Volume:
        groups = {p.group: p for p in config.volume.groups}
        volume = self.volumes.setdefault(config.volume.volume_id, Volume(config.volume.volume_id, dict(groups)))
        for group, placement in groups.items():
            volume.placements.setdefault(group, placement)
        return volume

    def require_quorum(self, volume: Volume) -> None:
        running = self.running()
        for group, placement in volume.placements.items():
            for members in placement.sets:
                copies = [n for n in members if n in running and (volume.volume_id, group) in self.disks[n].segments]
                if len(copies) < WRITE_QUORUM:
                    raise QuorumLostError(f"{len(copies)} copies of group {group} run")

    def change_members(self, volume: Volume, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        self.require_quorum(volume)
        for node_id in placement.all_node_ids:
            if node_id in self.disks and node_id not in volume.placements[placement.group].all_node_ids:
                self.disks[node_id].segments.add((volume.volume_id, placement.group))
        if filled and filled not in self.running():
            raise QuorumLostError(f"{filled} is not filled")
        volume.placements[placement.group] = placement
        return tuple(volume.placements.values())

    # ---- what must never happen

    def destroys(self, node_id: str, segments: Iterable[tuple[UUID, int]], how: str) -> None:
        for volume_id, _ in segments:
            volume = self.volumes.get(volume_id)
            if volume is None or volume.content is Content.NOTHING:
                continue
            if how.startswith("drop") and volume.content is Content.COMPLETE and not self._may_go(volume):
                self.lost.append(f"{node_id} was told to drop volume {volume_id}, which was served")
            if how.startswith("wipe") and node_id in volume.members():
                self.lost.append(f"the directory of {node_id} was removed, with a copy that counts")

    def _may_go(self, volume: Volume) -> bool:
        return (
            volume.owner is not None
            and volume.owner.config is not None
            and (volume.owner.config.cluster in self.asked_to_delete)
        )

    # ---- the control volume

    def control_volume(self, declared: VolumeState) -> Volume:
        placements = {g.group: g.placement for g in declared.groups}
        volume = self.volumes.setdefault(declared.volume_id, Volume(declared.volume_id, placements))
        volume.content = Content.COMPLETE if self.saved else Content.HALF
        return volume


class Hand:
    """A control plane's hold on the world, until it dies."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = asyncio.Event()

    def die(self) -> None:
        self.dead.set()

    async def alive(self) -> None:
        """The dead do nothing any more."""
        if self.dead.is_set():
            await asyncio.Event().wait()

    async def do(
        self, name: str, work: Callable[[], Awaitable[T]], actor: Process | None = None, answer: Exception | None = None
    ) -> T:
        """One change of the world, and what comes of it."""
        await self.alive()
        result = await work()
        try:
            self.world.passed(name, actor, answer)
            if actor is not None:
                actor.check()
        finally:
            await self.alive()
        return result


class Store:
    """In the place of ControlStore: a save is whole or not there; one of an older epoch is refused."""

    damaged = ()

    def __init__(self, hand: Hand, volume: Volume, on_fenced: Callable[[], None]) -> None:
        self._hand, self._volume, self._on_fenced = hand, volume, on_fenced
        hand.world.control_epoch += 1
        self.epoch = hand.world.control_epoch

    @classmethod
    async def open(cls, hand: Hand, volume: VolumeState, on_fenced: Callable[[], None]) -> tuple[Store, Fleet | None]:
        world = hand.world

        async def opens() -> tuple[Store, Fleet | None]:
            known = world.control_volume(volume)
            world.require_quorum(known)
            return cls(hand, known, on_fenced), unpack(world.saved[-1]) if world.saved else None

        return await hand.do("control: seal", opens, answer=QuorumLostError("no answer"))

    async def save(self, fleet: Fleet) -> int:
        async def saves() -> int:
            if self._hand.world.control_epoch != self.epoch:
                self._on_fenced()
                raise FencedError("a higher epoch exists")
            self._hand.world.require_quorum(self._volume)
            self._hand.world.saved.append(pack(fleet))
            return len(self._hand.world.saved)

        return await self._hand.do("control: save", saves, answer=QuorumLostError("no answer"))

    @property
    def placements(self) -> tuple[GroupPlacement, ...]:
        return tuple(self._volume.placements.values())

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        await self._hand.alive()

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        async def changes() -> tuple[GroupPlacement, ...]:
            return self._hand.world.change_members(self._volume, placement, filled)

        return await self._hand.do("control: change members", changes, answer=QuorumLostError("no answer"))

    async def close(self) -> None:
        pass


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
            placements=tuple(p for p in placements if p.group in one.groups),
        )

    async def update_nodes(self, nodes: Sequence[NodeAddress]) -> None:
        async def updates() -> None:
            self._instance.addresses = tuple(nodes)

        await self._do("update nodes", updates)

    async def configure(self, parameters: Mapping[str, str]) -> None:
        async def configures() -> None:
            pass

        await self._do("configure", configures)

    async def add_group(self, placement: GroupPlacement) -> None:
        async def adds() -> None:
            self._instance.volume.placements.setdefault(placement.group, placement)
            self._instance.groups |= {placement.group}
            self._instance.free_bytes = None

        await self._do("add a group", adds)

    async def change_members(self, placement: GroupPlacement, filled: str) -> tuple[GroupPlacement, ...]:
        async def changes() -> tuple[GroupPlacement, ...]:
            return self._hand.world.change_members(self._instance.volume, placement, filled)

        return await self._do("change members", changes)

    async def metrics(self, timeout_s: float) -> bytes:
        return b""

    async def first_write(self, after_ns: int, timeout_s: float) -> tuple[int, int] | None:
        await self._hand.alive()
        self._instance.check()
        return after_ns, 1

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
            await asyncio.sleep(STEP_S)
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
