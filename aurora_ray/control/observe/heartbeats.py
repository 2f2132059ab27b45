"""The control plane's look at the processes of instances: which of them hang.

An end is seen by the watches of `Processes`; a process that is there and does nothing (stopped, stuck) is not. So each
is asked for its status now and then, and `compute.health` says what its silence means. If the control plane was itself
delayed, the rule takes that off; if the volume has no write quorum, a new writer would not be better off, so nobody is
replaced for that. A writer that has redo and cannot make it durable for `ISOLATED_AFTER_S`, while a write quorum of
nodes answers *us* and none of them gets any more of it, is cut off from them and is replaced as well. (Nodes that get
it and are slow to say so have too much to do: the next writer would find the same ones.) So is a reader that hears
nothing from any copy for as long: who is connected to it would be shown the past for ever. What the volume does says
nothing else of those that only read it: neither that they live, because it moves, nor that they are excused, because
it stands.

A process that hangs is killed, never asked: the volume's seal keeps it from writing whatever it does, and what takes
its place starts in a process of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.watch import Watch, Watched
from aurora_ray.control.decide.reconcile import Action
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.placement import quorum_up
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from aurora_ray.control.model.changes import Changes
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.state import VolumeState
    from aurora_ray.control.observe.known import Instance
    from aurora_ray.control.observe.processes import Processes

STATE_TIMEOUT_S: Final = 0.4
UNHEARD_S: Final = 3.0  # a copy that is followed says something every second
ISOLATED_AFTER_S: Final = 8.0
LOOK_FROM_S: Final = 2.0  # of waiting: from then on nodes are asked what comes
GONE_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class KillInstance(Action):
    """End the process of an instance at once, whatever state it is in."""

    kind: ClassVar = Kind.KILL
    of: ClassVar = ("instance_id",)
    instance_id: str


class Isolation:
    """Pure: for how long an instance has been waiting for storage that answers others. `now_s` is any monotonic
    time."""

    def __init__(self) -> None:
        self.good_s = 0.0  # the last look that found all well
        self._vdl = -1
        self._since_s: float | None = None
        self._held: Mapping[str, int] = {}  # by the nodes, when they were last asked

    def waits(self, status: InstanceStatus, now_s: float) -> float:
        """Seconds that a writer's redo has been waiting without any of it becoming durable, or that a reader was found
        to hear nothing; 0 while all is well."""
        redo_waits = status.role.traits.writes and status.tail_lsn > status.vdl == self._vdl
        deaf = status.role.traits.reads and status.unheard_s >= UNHEARD_S
        waiting = status.phase is IncarnationPhase.AVAILABLE and (redo_waits or deaf)
        self._vdl = status.vdl
        if not waiting:
            self.good_s, self._since_s, self._held = now_s, None, {}
            return 0.0
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s

    def arrives(self, held: Mapping[str, int]) -> bool:
        """Whether any node has more of the writer's redo than when it was last asked: then the waiting begins anew.
        `held`: what those have that answer, as a sum of LSNs."""
        before, self._held = self._held, held
        more = any(held[node_id] > lsn for node_id, lsn in before.items() if node_id in held)
        if more:
            self._since_s = None
        return more

    def storage_is_down(self) -> None:
        """Others are not better off: the waiting does not count."""
        self._since_s = None


@dataclass(slots=True)
class _Heartbeat:
    instance: Instance
    watch: Watch
    hung: str = ""


class Heartbeats:
    """Belongs to the control plane's event loop."""

    def __init__(
        self,
        declared: Declared,
        processes: Processes,
        changes: Changes,
        rules: HealthRules,
        on_hung: Callable[[str, str, int], None],
    ) -> None:
        """`on_hung` is told of an instance whose process hangs: its id, why, and when it was last known to be good
        (Unix time in ns; 0: at its last heartbeat)."""
        self._declared = declared
        self._processes = processes
        self._changes = changes
        self._rules = rules
        self._on_hung = on_hung
        self._heartbeats: dict[str, _Heartbeat] = {}

    def good_at_ns(self, instance_id: str) -> int:
        """When the instance's process was last known to be good, Unix time; 0: not known."""
        heartbeat = self._heartbeats.get(instance_id)
        return heartbeat.watch.good_at_ns if heartbeat is not None else 0

    def wanted(self) -> Iterator[Action | str]:
        """Actions, as in `reconcile`; begins to watch whoever is new."""
        instances = self._processes.instances
        for instance_id in [i for i, p in self._heartbeats.items() if instances.get(i) is not p.instance]:
            del self._heartbeats[instance_id]
        for instance_id, instance in instances.items():
            if instance_id not in self._heartbeats:
                self._begin(instance_id, instance)
            elif hung := self._heartbeats[instance_id].hung:
                yield KillInstance(f"the process of {instance_id} is hung: {hung}", instance_id)

    async def perform(self, action: KillInstance) -> None:
        """Kills it and waits until it is gone. Raises ProcessGoneError if it does not go."""
        instance = self._processes.instances.get(action.instance_id)
        if instance is None:
            return
        # From now on nothing is led to it and nothing is asked of it.
        instance.stopping(action.why)
        self._changes.notify()
        await instance.process.abort()
        try:
            async with asyncio.timeout(GONE_TIMEOUT_S):
                await instance.process.wait_gone()
        except TimeoutError:
            raise ProcessGoneError(f"the process of {action.instance_id} was killed and is still there") from None

    def _begin(self, instance_id: str, instance: Instance) -> None:
        asked: list[asyncio.Task[InstanceStatus | None]] = []
        isolation = Isolation()

        async def ask(timeout_s: float) -> bool:
            if not asked:  # one question at a time, so that they do not pile up over there
                asked.append(asyncio.create_task(instance.process.status(), name=f"heartbeat {instance_id}"))
            done, _ = await asyncio.wait(asked, timeout=timeout_s)
            if not done:
                return False
            heard = asked.pop()
            if heard.cancelled():
                return False
            error = heard.exception()
            if isinstance(error, ProcessGoneError):
                return True  # that is seen elsewhere
            if error is None:
                await self._look_at_isolation(instance_id, isolation, heard.result())
            return error is None

        watched = Watched(instance_id, ask, lambda: instance.process.local_pid, self._storage_of(instance_id))
        heartbeat = self._heartbeats[instance_id] = _Heartbeat(instance, Watch(watched, self._rules))

        async def watch() -> None:
            waiting = asyncio.create_task(heartbeat.watch.wait_hung(), name=f"heartbeats {instance_id}")
            gone = asyncio.create_task(instance.process.wait_gone(), name=f"end of {instance_id}")
            try:
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done() and not gone.done():
                    heartbeat.hung = waiting.result().why
                    self._on_hung(instance_id, heartbeat.hung, 0)
                    self._changes.notify()
                else:
                    gone.result()
            finally:
                for task in (waiting, gone, *asked):
                    task.cancel()
                await asyncio.gather(waiting, gone, *asked, return_exceptions=True)
                asked.clear()

        self._processes.tasks.watch(watch, f"heartbeats {instance_id}")

    async def _look_at_isolation(self, instance_id: str, isolation: Isolation, status: InstanceStatus | None) -> None:
        waited_s = 0.0 if status is None else isolation.waits(status, asyncio.get_running_loop().time())
        if status is None or waited_s < min(LOOK_FROM_S, ISOLATED_AFTER_S):
            return
        heartbeat = self._heartbeats.get(instance_id)
        volume = self._volume_of(instance_id)
        if heartbeat is None or heartbeat.hung or volume is None:
            return
        nodes = list(self._processes.nodes)
        answers = await asyncio.gather(*(self._known(node_id, volume) for node_id in nodes))
        answering = {node_id: known for node_id, known in zip(nodes, answers, strict=True) if known is not None}
        if not all(quorum_up(group, set(answering)) for group in volume.groups):
            isolation.storage_is_down()
            return
        arrives = status.role.traits.writes and isolation.arrives({n: scls for n, (_, scls) in answering.items()})
        if arrives or waited_s < ISOLATED_AFTER_S:
            return
        if status.role.traits.writes:
            heartbeat.hung = (
                f"its redo has been waiting for {ISOLATED_AFTER_S:g} s for storage nodes that answer others"
            )
        else:
            heartbeat.hung = f"for {ISOLATED_AFTER_S:g} s it has heard nothing from storage nodes that answer others"
        good_ago_s = asyncio.get_running_loop().time() - isolation.good_s
        self._on_hung(instance_id, heartbeat.hung, time.time_ns() - int(good_ago_s * 1e9))
        self._changes.notify()

    def _volume_of(self, instance_id: str) -> VolumeState | None:
        cluster = self._declared.fleet.cluster_of(instance_id)
        return cluster.volume if cluster is not None else None

    def _storage_of(self, instance_id: str) -> Callable[[], asyncio.Future[tuple[int, bool]]]:
        """The VDL as the nodes know it, and whether too few of them run for anyone to write."""

        async def look() -> tuple[int, bool]:
            volume, instance = self._volume_of(instance_id), self._processes.instances.get(instance_id)
            if volume is None or instance is None or not instance.seen.role.traits.writes:
                return 0, False
            nodes = dict(self._processes.nodes)
            vdls = await asyncio.gather(*(self._vdl(node_id, volume) for node_id in nodes))
            # Whoever hears nobody at all is cut off itself, and knows nothing of others.
            deaf = all(vdl is None for vdl in vdls)
            stalled = deaf or not all(quorum_up(group, set(nodes)) for group in volume.groups)
            return max((vdl or 0 for vdl in vdls), default=0), stalled

        return lambda: asyncio.ensure_future(look())

    async def _vdl(self, node_id: str, volume: VolumeState) -> int | None:
        """None if the node does not answer."""
        known = await self._known(node_id, volume)
        return known[0] if known is not None else None

    async def _known(self, node_id: str, volume: VolumeState) -> tuple[int, int] | None:
        """The VDL as a node knows it, and its segments' SCLs in sum; None if it does not answer."""
        node = self._processes.nodes.get(node_id)
        if node is None:
            return None
        try:
            reply = await self._processes.clients.state(node_id, node.seen.address, timeout_s=STATE_TIMEOUT_S)
        except AuroraError:
            return None
        mine = [v for v in reply.volumes if v.volume == volume.volume_id.bytes]
        segments = [segment for each in mine for segment in each.segments]
        return max((int(s.vdl) for s in segments), default=0), sum(int(s.scl) for s in segments)
