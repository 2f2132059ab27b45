"""The processes of a fleet as the control plane sees them: found, started, watched, and what is known of each.

A watch is a call that returns when the thing has ended, so an end is seen at once and costs nothing while it lasts.
Nothing is decided here; whoever owns this is told that something changed (`on_change`) and what it was (`say`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.compute.config import IncarnationPhase, InstanceStatus
from aurora_ray.control.model.observed import Addresses, InstancePhase, NodeSeen
from aurora_ray.control.model.runtime import InstanceProcess, NodeProcess, ProcessGoneError, Runtime
from aurora_ray.control.observe.known import Instance, Node
from aurora_ray.control.observe.nodes import NodeCalls, lost_segments_of, segments_of
from aurora_ray.control.observe.reach import Reachable
from aurora_ray.errors import AuroraError
from aurora_ray.rpc.node_client import CHANGE_S
from aurora_ray.volume.spec import NodeAddress

if TYPE_CHECKING:
    from aurora_ray.control.model.state import StorageNode

_log = logging.getLogger(__name__)

OPENING_POLL_S: Final = 0.25
STATUS_TIMEOUT_S: Final = 5.0
ADOPT_TIMEOUT_S: Final = 2.0
WATCH_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class Tasks:
    """Tasks that go on by themselves; held until done, which the loop alone does not do. None fails unnoticed."""

    running: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs `work`, which handles its own errors; one that it does not handle is logged."""
        task = asyncio.create_task(work, name=name)
        self.running.add(task)
        task.add_done_callback(self._ended)
        return task

    def watch(self, begin: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """Runs what watches something: it ends by returning, and begins anew when it fails or is cancelled by a call
        that it waited for."""

        async def run() -> None:
            while True:
                try:
                    return await begin()
                except asyncio.CancelledError:
                    if is_cancelled():
                        raise
                    _log.warning("%s was cut short, and begins anew", name)
                except Exception:
                    _log.exception("%s failed, and begins anew", name)
                await asyncio.sleep(WATCH_AGAIN_S)

        return self.start(run(), name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def cancel(self) -> None:
        """Cancels all of them and waits for their ends."""
        tasks = [task for task in self.running if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Processes:
    """`clock` is monotonic, in seconds. `on_end` is told of an incarnation that ended (id, reason, seconds), `on_lost`
    of an available one that is lost (id, reason, Unix times in ns: last known to be good, noticed; 0: not known)."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        clock: Callable[[], float],
        say: Callable[[str], None],
        on_change: Callable[[], None],
        on_end: Callable[[str, str, float], None],
        on_lost: Callable[[str, str, int, int], None] = lambda *_: None,
    ) -> None:
        self.runtime = runtime
        self.nodes: dict[str, Node] = {}
        self.nodes_seen: set[str] = set()  # that ran at some time
        self.instances: dict[str, Instance] = {}
        self.unsure: set[str] = set()  # instances that were to be started, without an answer: a process may be there
        self.lost: set[str] = set()  # writers that ended by nobody's will, until they are back, or readers
        self.clients = NodeCalls()
        self.tasks = Tasks()
        self._clock = clock
        self._say = say
        self._on_change = on_change
        self._on_end = on_end
        self._on_lost = on_lost
        self._last_statuses: dict[str, InstanceStatus] = {}

    async def adopt(self, nodes: Iterable[StorageNode]) -> None:
        """Takes over what an earlier control plane started."""
        declared = tuple(nodes)
        found = await asyncio.gather(*map(self.runtime.find_node, declared))
        there = [(node.node_id, process) for node, process in zip(declared, found, strict=True) if process is not None]
        await asyncio.gather(*(self._adopt_node(node_id, process) for node_id, process in there))
        instances = await self.runtime.find_instances()
        await asyncio.gather(*(self._adopt_instance(*found) for found in instances.items()))
        if self.nodes or self.instances:
            self._say(f"found {len(self.nodes)} storage nodes and {len(self.instances)} instances running")

    def addresses(self, declared: Iterable[StorageNode]) -> tuple[NodeAddress, ...]:
        """The running ones of the declared storage nodes, for a volume client."""
        azs = {node.node_id: node.az for node in declared}
        return tuple(NodeAddress(n, azs[n], node.seen.address) for n, node in sorted(self.nodes.items()) if n in azs)

    def told_addresses(self) -> Addresses:
        """The same of all that run, as they are compared."""
        return tuple(sorted((node_id, node.seen.address) for node_id, node in self.nodes.items()))

    # ---- storage nodes

    async def add_node(self, node_id: str, process: NodeProcess, timeout_s: float = CHANGE_S) -> None:
        """A node that answers: what it has is asked, its end is watched."""
        info = process.info
        reply = await self.clients.state(node_id, info.address, timeout_s=timeout_s)
        held, refilling = segments_of(reply), lost_segments_of(reply)
        self._hold_node(node_id, process, NodeSeen(info.address, info.pid, info.host, (), held, refilling))

    async def _adopt_node(self, node_id: str, process: NodeProcess) -> None:
        """One that hangs, or is cut off, is there all the same; what it has is known when it answers again."""
        try:
            await self.add_node(node_id, process, ADOPT_TIMEOUT_S)
        except AuroraError:
            info = process.info
            self._hold_node(node_id, process, NodeSeen(info.address, info.pid, info.host, silent=True))

    def _hold_node(self, node_id: str, process: NodeProcess, seen: NodeSeen) -> None:
        node = Node(process, seen)
        self.nodes[node_id] = node
        self.nodes_seen.add(node_id)
        self.tasks.watch(lambda: self._watch_node(node_id, node), f"watch node {node_id}")

    async def look_at_node(self, node_id: str) -> None:
        """Looks at what a running node has; one that does not answer is noted as silent."""
        node = self.nodes.get(node_id)
        if node is None:
            return
        before = node.seen
        try:
            reply = await self.clients.state(node_id, before.address, timeout_s=STATUS_TIMEOUT_S)
        except AuroraError:
            changed = node.fell_silent()
        else:
            changed = node.answered(reply, before)
        if self.nodes.get(node_id) is node and changed:
            if node.seen.silent != before.silent:
                self._say(f"storage node {node_id} " + ("does not answer" if node.seen.silent else "answers again"))
            self._on_change()

    async def _watch_node(self, node_id: str, node: Node) -> None:
        why = await node.process.wait_gone()
        if self.nodes.get(node_id) is node:
            del self.nodes[node_id]
            await self.clients.forget(node_id)
            self._say(f"storage node {node_id} (process {node.seen.pid}) ended: {why}")
            self._on_change()

    # ---- instances

    def last_status(self, instance_id: str) -> InstanceStatus | None:
        """Of the latest incarnation that was available, whether it still is or not."""
        return self._last_statuses.get(instance_id)

    async def add_instance(self, instance_id: str, process: InstanceProcess) -> Instance:
        """An instance's process: idle if it is new, else whatever it is at; its end is watched."""
        instance = Instance(Reachable(process))
        self.instances[instance_id] = instance
        self.unsure.discard(instance_id)
        self.tasks.watch(lambda: self._watch_process(instance_id, instance), f"watch process {instance_id}")
        with contextlib.suppress(ProcessGoneError):
            status = await process.status()
            if status is not None and status.phase is IncarnationPhase.AVAILABLE:
                self.set_available(instance_id, instance, status, since_s=-math.inf)
            elif status is not None and status.phase is IncarnationPhase.ENDED:
                self._last_statuses[instance_id] = status  # its last word
            elif status is not None:
                instance.is_at(InstancePhase.OPENING, role=status.role)
                self._watch_open(instance_id, instance)
        return instance

    def set_available(
        self, instance_id: str, instance: Instance, status: InstanceStatus, *, since_s: float | None = None
    ) -> None:
        """Its engine accepts statements (since when: now by default); from now on its end is watched."""
        self.lost.discard(instance_id)
        self._last_statuses[instance_id] = status
        instance.became_available(status, self._clock() if since_s is None else since_s)
        self.tasks.watch(lambda: self._watch_incarnation(instance_id, instance), f"watch {instance_id}")

    async def promoted(self, instance_id: str, instance: Instance) -> None:
        """A reader goes on as the writer. Its end is watched already."""
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            status = await instance.process.status()
        if status is not None and _phase_of(status) is InstancePhase.AVAILABLE:
            self._last_statuses[instance_id] = status
            instance.became_available(status, self._clock())

    async def settle(self, instance_id: str, instance: Instance, why: str = "") -> InstancePhase:
        """Finds out what an opening led to (`why`: what it failed of, if it is known), and notes it.

        Nothing is concluded from silence: a process that does not say what it is at is asked until it does.
        """
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await instance.process.status()
        except ProcessGoneError:
            phase = InstancePhase.ENDED  # that is watched as well
        except Exception as error:
            self._say(f"{instance_id} does not say whether it is open: {error or type(error).__name__}")
            phase = InstancePhase.OPENING
        else:
            phase = _phase_of(status)
            if status is not None and phase is InstancePhase.AVAILABLE:
                self.set_available(instance_id, instance, status)
                return phase
            why = why or (status.reason if status is not None else "")
        instance.is_at(phase, why)
        if phase is InstancePhase.OPENING:
            self._watch_open(instance_id, instance)
        return phase

    async def _adopt_instance(self, instance_id: str, process: InstanceProcess) -> None:
        """One that does not say what it is at is taken for busy: either it says so later, or it is found to hang."""
        try:
            async with asyncio.timeout(ADOPT_TIMEOUT_S):
                await self.add_instance(instance_id, process)
        except TimeoutError:
            instance = self.instances.get(instance_id)
            if instance is not None:
                instance.is_at(InstancePhase.OPENING)
                self._watch_open(instance_id, instance)

    def _watch_open(self, instance_id: str, instance: Instance) -> None:
        self.tasks.watch(lambda: self._watch_opening(instance_id, instance), f"watch opening {instance_id}")

    async def refresh(self, instance_id: str) -> None:
        """Looks at an instance that is available or opens; its process's end is noticed by the watches, not here."""
        instance = self.instances.get(instance_id)
        if instance is None:
            return
        with contextlib.suppress(ProcessGoneError, TimeoutError):
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await instance.process.status()
            if status is None:
                return
            if instance.seen.phase is InstancePhase.OPENING:
                if instance.told_of_room(status):
                    self._on_change()
                return
            if instance.seen.phase is not InstancePhase.AVAILABLE:
                return
            known = instance.status
            if status.role is not instance.seen.role or (known is not None and status.epoch < known.epoch):
                return  # of the incarnation before
            if _phase_of(status) is InstancePhase.OPENING:
                return  # it has opened meanwhile
            self._last_statuses[instance_id] = status
            if instance.told(status):
                self._on_change()

    async def hear_last_word(self, instance_id: str) -> None:
        """Of an incarnation that has ended in order, in a process that stays: what it says of itself as a whole."""
        instance = self.instances.get(instance_id)
        with contextlib.suppress(ProcessGoneError, TimeoutError):
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await instance.process.status() if instance is not None else None
            if status is not None and status.phase is IncarnationPhase.ENDED:
                self._last_statuses[instance_id] = status

    async def _watch_process(self, instance_id: str, instance: Instance) -> None:
        why = await instance.process.wait_gone()
        if self.instances.get(instance_id) is instance:
            del self.instances[instance_id]
            if instance.end_is_seen():
                self._on_lost(instance_id, f"the process of {instance_id} ended: {why}", 0, time.time_ns())
            self._say(f"the process of {instance_id} ended: {why}")
            self._on_change()

    async def _watch_opening(self, instance_id: str, instance: Instance) -> None:
        """An opening whose answer nobody waits for (any more): available in the end, or ended. If it hangs, the
        heartbeats say so."""
        while self.instances.get(instance_id) is instance and instance.seen.phase is InstancePhase.OPENING:
            try:
                async with asyncio.timeout(STATUS_TIMEOUT_S):
                    status = await instance.process.status()
            except ProcessGoneError:
                return  # that is watched as well
            except Exception as error:  # whatever it is, it says nothing about the opening
                _log.info("%s does not say what it is at: %r", instance_id, error)
            else:
                if instance.seen.phase is not InstancePhase.OPENING:
                    return
                phase = _phase_of(status)
                if status is not None and phase is InstancePhase.AVAILABLE:
                    self.set_available(instance_id, instance, status)
                elif phase is InstancePhase.ENDED:
                    reason = status.reason if status is not None else ""
                    instance.is_at(phase, reason)
                if phase is not InstancePhase.OPENING:
                    self._on_change()
                    return
            await asyncio.sleep(OPENING_POLL_S)

    async def _watch_incarnation(self, instance_id: str, instance: Instance) -> None:
        try:
            outcome = await instance.process.wait_ended()
        except ProcessGoneError:
            return  # that is watched as well
        if self.instances.get(instance_id) is not instance or outcome.asked:
            return
        instance.ended(outcome.reason)
        self._on_lost(instance_id, outcome.reason, outcome.good_at_ns, outcome.noticed_ns)
        self._say(f"{instance_id} ended: {outcome.reason}")
        self._on_end(instance_id, outcome.reason, self._clock() - instance.available_since_s)
        self._on_change()


def is_cancelled() -> bool:
    """Whether the present task itself was asked to end, and not only something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _phase_of(status: InstanceStatus | None) -> InstancePhase:
    """What a process says it is at, after it was asked to open something: None if that never began."""
    if status is None or status.phase is IncarnationPhase.ENDED:
        return InstancePhase.ENDED
    return InstancePhase.AVAILABLE if status.phase is IncarnationPhase.AVAILABLE else InstancePhase.OPENING
