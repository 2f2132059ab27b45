"""What a control plane acts upon, in memory: disks, storage nodes, volumes, instances, endpoints, and its own volume.

The world outlives control planes and goes on without them: an instance that was asked to open its volume does so
whether anybody hears of it or not. It notes whatever must never happen (`lost`), at the moment at which it does.

Each change that the control plane makes, and each step of an opening, is an *effect*. A `Crash` says what happens right
after one of them: the control plane ends, the process that it talked to ends, or the answer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from aurora_ray.compute.config import HalfMadeVolumeError, IncarnationPhase, Opened, Outcome
from aurora_ray.control.model.codec import pack, unpack
from aurora_ray.control.model.runtime import NodeInfo, ProcessGoneError
from aurora_ray.control.model.store import Version
from aurora_ray.control.observe.nodes import NodeCallError
from aurora_ray.endpoint.host import EndpointOrder
from aurora_ray.errors import ConfigurationError, EngineError, FencedError, PortInUseError, QuorumLostError, UsageError
from aurora_ray.mount.gate import Gate
from aurora_ray.volume.spec import GroupPlacement

if TYPE_CHECKING:
    from aurora_ray.compute.config import CapacityOrder, InstanceConfig
    from aurora_ray.control.decide.reconcile import SegmentOrder
    from aurora_ray.control.model.state import Fleet, VolumeState
    from aurora_ray.volume.spec import NodeAddress

T = TypeVar("T")
STEP_S = 0.02
WRITE_QUORUM = 4
READ_QUORUM = 3


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
    only_forked: bool = False  # nobody has opened it yet: what it holds, its parent holds

    def members(self) -> set[str]:
        return {n for p in self.placements.values() for n in p.all_node_ids}


@dataclass(slots=True)
class Disk:
    """A storage node's directory."""

    segments: set[tuple[UUID, int]] = field(default_factory=set)
    retention: dict[UUID, tuple[int, int]] = field(default_factory=dict)


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
        self.world, self.az, self.host = world, az, "here"
        self.phase: IncarnationPhase | None = None
        self.reason = ""
        self.epoch = 0
        self.config: InstanceConfig | None = None
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.addresses: tuple[NodeAddress, ...] = ()
        self.groups: frozenset[int] = frozenset()
        self.free_bytes: int | None = None
        self.repaired: tuple[str, ...] = ()
        self.hangs = False
        self.gate = Gate(lambda _: None, clock=asyncio.get_running_loop().time)
        self.capacity: CapacityOrder | None = None
        self.sessions_cut = 0  # how often whoever used it lost it

    def end_incarnation(self, reason: str, *, asked: bool = False) -> None:
        if self.phase not in (None, IncarnationPhase.ENDED):
            self.sessions_cut += self.phase is IncarnationPhase.AVAILABLE
            self.phase, self.reason = IncarnationPhase.ENDED, reason
            self.ended.set_result(Outcome(asked, reason))

    def kill(self) -> None:
        super().kill()
        self.sessions_cut += self.phase is IncarnationPhase.AVAILABLE
        if self.phase is not None:
            self.phase = IncarnationPhase.ENDED

    @property
    def serves(self) -> bool:
        return self.alive and self.phase is IncarnationPhase.AVAILABLE

    @property
    def volume(self) -> Volume:
        assert self.config is not None
        return self.world.volumes[self.config.volume.volume_id]

    async def open(self, config: InstanceConfig) -> Opened:
        if self.phase not in (None, IncarnationPhase.ENDED):
            raise UsageError(f"{self.name} is open already")
        self.config, self.phase, self.ended = (
            config,
            IncarnationPhase.SEALING,
            asyncio.get_running_loop().create_future(),
        )
        try:
            await self._open(config)
        except BaseException as error:
            self.end_incarnation(f"it could not be opened: {error}")
            raise
        return Opened(self.epoch, 1, 1, config.port, {})

    async def _open(self, config: InstanceConfig) -> None:
        world = self.world
        if config.port in world.taken_ports:
            raise PortInUseError(f"port {config.port} is in use")
        volume = world.volume_of(config)
        if not config.role.traits.owns:
            await self._follow(volume)
            return
        world.require_quorum(volume)
        epoch = max(volume.epoch + 1, config.epochs.start)
        if epoch >= config.epochs.stop:
            raise FencedError("a later generation has it")
        self.epoch = volume.epoch = epoch
        if volume.owner is not None and volume.owner is not self:
            volume.owner.end_incarnation("a higher epoch exists")
        volume.owner, volume.only_forked = self, False
        self.groups = frozenset(volume.placements)
        await self._step("seal")
        if config.role.traits.copies:
            volume.content = Content.COMPLETE
            await self._step("pages")
        elif volume.content is Content.NOTHING:
            if config.restore is not None:
                self.phase = IncarnationPhase.INITIALISING
                await self._step("half a restore")  # its end says how far it is: nothing is half
                volume.content = Content.COMPLETE
                await self._step("a restore")
            elif not config.initialise:
                raise EngineError("it is empty, though it held a data directory")
        if volume.content is Content.NOTHING:
            self.phase = IncarnationPhase.INITIALISING
            volume.content = Content.HALF
            await self._step("half an import")
            volume.content = Content.COMPLETE
            await self._step("an import")
        elif volume.content is Content.HALF:
            raise HalfMadeVolumeError("the initialisation was cut short")
        self.phase, self.repaired, self.capacity = IncarnationPhase.AVAILABLE, config.repairs, config.capacity
        volume.rows += 1
        await self._step("available")

    async def _follow(self, volume: Volume) -> None:
        """A reader has no epoch, and leaves no trace."""
        if volume.owner is self:
            volume.owner = None
        self.epoch, self.repaired = 0, ()
        self.groups = frozenset(volume.placements)
        self.world.require_quorum(volume, READ_QUORUM)
        if volume.content is not Content.COMPLETE:
            self.world.lost.append(f"{self.name} was to read a volume with {volume.content}")
        await self._step("mount")
        self.phase, self.capacity = IncarnationPhase.AVAILABLE, self.config.capacity if self.config else None
        await self._step("follow")

    async def _step(self, name: str) -> None:
        """Somewhere on the way: whoever is to end now ends; a writer that was sealed out goes no further."""
        self.world.passed(f"instance: {name}", self)
        await asyncio.sleep(STEP_S)  # not synchronisation: the clock is virtual
        self.check()
        if self.volume.epoch != self.epoch and self.config is not None and self.config.role.traits.owns:
            raise FencedError("a higher epoch exists")


class FakeEndpoints(Process):
    """The endpoints' process."""

    host = "here"

    def __init__(self) -> None:
        super().__init__("endpoints")
        self.orders: tuple[EndpointOrder, ...] = ()
        self.generation = 0
        self.held: set[str] = set()  # clusters for which somebody waits
        self.used: set[str] = set()  # clusters with which somebody is connected

    def serve(self) -> None:
        """Whoever waited where there is a target now is connected."""
        for order in self.orders:
            cluster, _, endpoint = order.name.partition("/")
            if endpoint == "cluster" and order.targets and cluster in self.held:
                self.held.discard(cluster)
                self.used.add(cluster)


class World:
    """See the module's text."""

    def __init__(self) -> None:
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, FakeNode] = {}
        self.instances: dict[str, FakeInstance] = {}
        self.endpoints: FakeEndpoints | None = None
        self.volumes: dict[UUID, Volume] = {}
        self.saved: list[bytes] = []
        self.usage = b""
        self.pools: dict[str, float] = {}  # what instances hold of their machines, in ACUs
        self.rooms = {("here", "a"): 64.0}  # ... and what each machine has for each of them; its AZ
        self.control_epoch = 0
        self.crash: Crash | None = None
        self.hand = Hand(self)
        self.struck = asyncio.Event()  # when the crash ends a control plane
        self.lost: list[str] = []  # what must never happen
        self.asked_to_delete: set[str] = set()  # clusters, by the user's word
        self.broken: set[str] = set()  # storage nodes that do not start
        self.taken_ports: set[int] = set()
        self.unfit: set[str] = set()  # storage nodes that can fork nothing
        self.unreadable = False  # no version of the control state can be used
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
            self.struck.set()
            self.struck = asyncio.Event()
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

    def volume_of(self, config: InstanceConfig) -> Volume:
        groups = {p.group: p for p in config.volume.groups}
        volume = self.volumes.setdefault(config.volume.volume_id, Volume(config.volume.volume_id, dict(groups)))
        for group, placement in groups.items():
            volume.placements.setdefault(group, placement)
        return volume

    def require_quorum(self, volume: Volume, quorum: int = WRITE_QUORUM) -> None:
        running = self.running()
        for group, placement in volume.placements.items():
            for members in placement.sets:
                copies = [n for n in members if n in running and (volume.volume_id, group) in self.disks[n].segments]
                if len(copies) < quorum:
                    raise QuorumLostError(f"{len(copies)} copies of group {group} run")

    def fork(self, node_id: str, order: SegmentOrder) -> None:
        """A node makes its part of a fork; the first to do so shows what it is."""
        assert order.origin is not None
        parent, disk = self.volumes[order.origin.parent], self.disks[node_id]
        if node_id in self.unfit or any((parent.volume_id, group) not in disk.segments for group in order.groups):
            raise NodeCallError(f"{node_id} cannot fork {parent.volume_id}")
        placements = {group: GroupPlacement(group, order.members) for group in order.groups}
        child = self.volumes.setdefault(order.volume_id, Volume(order.volume_id, placements))
        if child.content is Content.NOTHING:
            child.only_forked = True
            child.epoch, child.content, child.rows = order.origin.first_epoch, parent.content, parent.rows
        disk.segments |= {(order.volume_id, group) for group in order.groups}

    def shut_out(self, volume: Volume) -> None:
        """Somebody opens the volume for a moment; nobody may be on it who is to write."""
        volume.epoch += 1
        owner = volume.owner
        if owner is not None and owner.phase is IncarnationPhase.AVAILABLE and owner.volume is volume:
            self.lost.append(f"the writer {owner.name} was shut out of {volume.volume_id}")

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
            if volume is None or volume.content is Content.NOTHING or volume.only_forked:
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
    async def open(
        cls, hand: Hand, volume: VolumeState, on_fenced: Callable[[], None], *, even_damaged: bool
    ) -> tuple[Store, Fleet | None]:
        world = hand.world

        async def opens() -> tuple[Store, Fleet | None]:
            known = world.control_volume(volume)
            world.require_quorum(known)
            if world.unreadable and not even_damaged:
                raise ConfigurationError("no version of the control state can be used: see `aurora repair state`")
            readable = world.saved and not world.unreadable
            return cls(hand, known, on_fenced), unpack(world.saved[-1]) if readable else None

        return await hand.do("control: seal", opens, answer=QuorumLostError("no answer"))

    async def save(self, fleet: Fleet) -> int:
        async def saves() -> int:
            if self._hand.world.control_epoch != self.epoch:
                self._on_fenced()
                raise FencedError("a higher epoch exists")
            self._hand.world.require_quorum(self._volume)
            self._hand.world.saved.append(pack(fleet))
            self._hand.world.unreadable = False
            return len(self._hand.world.saved)

        return await self._hand.do("control: save", saves, answer=QuorumLostError("no answer"))

    @property
    def usage(self) -> bytes:
        return self._hand.world.usage

    async def save_usage(self, counts: bytes) -> None:
        async def saves() -> None:
            if self._hand.world.control_epoch != self.epoch:
                self._on_fenced()
                raise FencedError("a higher epoch exists")
            self._hand.world.require_quorum(self._volume)
            self._hand.world.usage = counts

        await self._hand.do("control: usage", saves, answer=QuorumLostError("no answer"))

    async def versions(self) -> list[Version]:
        saved = self._hand.world.saved
        return [Version(number, 0.0, len(each), unpack(each)) for number, each in enumerate(saved)]

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
