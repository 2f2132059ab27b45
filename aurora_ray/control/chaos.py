"""Faults on purpose: kill, pause and resume what the fleet consists of.

    writer         the writer's process with its engine, of one cluster
    node:ID        a storage node
    az:NAME        all storage nodes of an AZ, and the writer if it is there
    control        the control plane itself; Ray starts the next one

A partition is made in the storage nodes, which then do not hear some of those who call (see rpc.partition): a node that
is cut off hears nobody and is heard by no other node; a writer that is cut off is heard by no node. A node that starts
again in the meantime hears everyone.

What is killed comes back by the ordinary loop, as after any other end; a storage node that shall stay away for a while
is not started before its time is over. What is paused goes on by itself after its time, even if the control plane does
not live to see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.compute import signals
from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.control.runtime import ProcessGoneError
from aurora_ray.errors import QuorumLostError, UsageError
from aurora_ray.rpc.partition import CONTROL_PARTY, Cut, instance_party, storage_party

if TYPE_CHECKING:
    from aurora_ray.control.plane import ControlPlane

PAUSE_S: Final = 10.0
GONE_TIMEOUT_S: Final = 1.0
SIGNALS: Final = {"kill": signals.KILL, "pause": signals.STOP, "resume": signals.CONTINUE}
TARGETS: Final = "writer, node:ID, az:NAME, control"


@dataclass(frozen=True, slots=True)
class Victims:
    """What a target stands for at this moment."""

    node_ids: tuple[str, ...] = ()
    instance_ids: tuple[str, ...] = ()
    control: bool = False


class Chaos:
    """Belongs to the control plane's event loop."""

    def __init__(self, plane: ControlPlane, clock: Callable[[], float]) -> None:
        self._plane = plane
        self._clock = clock
        self._away_until_s: dict[str, float] = {}
        self._cuts: dict[str, frozenset[str]] = {}  # by target: the parties on its side of the partition

    def held(self) -> frozenset[str]:
        """Keys of actions that must not be taken now: nodes that stay away."""
        now_s = self._clock()
        self._away_until_s = {node: until for node, until in self._away_until_s.items() if until > now_s}
        return frozenset(f"node:{node}" for node in self._away_until_s)

    def victims(self, target: str, cluster: str) -> Victims:
        """Raises UsageError for what there is not."""
        kind, _, name = target.partition(":")
        fleet = self._plane.fleet
        if kind == "reader":
            raise UsageError("there are no readers yet: the targets are " + TARGETS)
        if target == "writer":
            return Victims(instance_ids=(fleet.cluster(cluster).writer().instance_id,))
        if target == "control":
            return Victims(control=True)
        if kind == "node" and name:
            return Victims(node_ids=(fleet.node(name).node_id,))
        if kind == "az" and name:
            if name not in fleet.azs:
                raise UsageError(f"there is no AZ {name!r}; the AZs are {', '.join(fleet.azs)}")
            instances = tuple(i.instance_id for c in fleet.clusters for i in c.instances if i.az == name)
            return Victims(tuple(n.node_id for n in fleet.nodes if n.az == name), instances)
        raise UsageError(f"{target!r} is no target: the targets are {TARGETS}")

    async def strike(self, verb: str, target: str, cluster: str, for_s: float | None) -> list[dict[str, Any]]:
        """Does it; what was struck, with process ids. Raises UsageError if nothing of the target runs."""
        victims = self.victims(target, cluster)
        self._plane.say(f"chaos: {verb} {target}" + (f" for {for_s:g} s" if for_s is not None else ""))
        if verb in ("partition", "heal"):
            return await self._partition(verb, target, victims, for_s)
        if victims.control:
            return self._strike_control(verb, for_s)
        struck: list[dict[str, Any]] = []
        if verb == "resume":
            for node_id in victims.node_ids:
                self._away_until_s.pop(node_id, None)
        # Nodes before the writer: who looks after the lost writer shall see that its AZ is gone.
        for node_id in victims.node_ids:
            if verb == "kill" and for_s is not None:
                self._away_until_s[node_id] = self._clock() + for_s
            node = self._plane.processes.nodes.get(node_id)
            if node is not None:
                struck += await self._send(f"node:{node_id}", node.process.signal, verb, for_s)
        if verb == "kill" and struck and victims.instance_ids:
            await self._until_seen_gone(victims.node_ids)
        for instance_id in victims.instance_ids:
            instance = self._plane.processes.instances.get(instance_id)
            if instance is not None:
                struck += await self._send(instance_id, instance.process.signal, verb, for_s)
        if not struck and verb != "resume":
            raise UsageError(f"nothing of {target} runs at the moment")
        self._plane.notify()
        return struck

    async def _until_seen_gone(self, node_ids: Sequence[str]) -> None:
        def gone() -> bool:
            return not any(node_id in self._plane.processes.nodes for node_id in node_ids)

        with contextlib.suppress(QuorumLostError):
            await self._plane.wait_until(gone, GONE_TIMEOUT_S, "seeing them gone")

    async def _partition(self, verb: str, target: str, victims: Victims, for_s: float | None) -> list[dict[str, Any]]:
        inside: set[str] = set()
        if verb == "heal":
            inside |= self._cuts.pop(target, frozenset())
        else:
            inside |= {storage_party(node_id) for node_id in victims.node_ids}
            instances = self._plane.processes.instances
            for instance_id in victims.instance_ids:
                if instance_id in instances:
                    inside.add(instance_party(instance_id, instances[instance_id].process.pid))
            if victims.control:
                inside.add(CONTROL_PARTY)
            if not inside:
                raise UsageError(f"nothing of {target} runs at the moment")
            self._cuts[target] = frozenset(inside)
            if for_s is not None:
                self._plane.processes.tasks.start(self._heal_later(target, self._cuts[target], for_s), f"heal {target}")
        await self._apply_cuts()
        return [{"target": party, "pid": None, "processes": 1} for party in sorted(inside)]

    async def _heal_later(self, target: str, inside: frozenset[str], seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._cuts.get(target) is inside:
            del self._cuts[target]
            self._plane.say(f"chaos: the partition of {target} is over")
            await self._apply_cuts()

    async def _apply_cuts(self) -> None:
        """Every running node is told; one that cannot be is on its way out."""
        nodes = dict(self._plane.processes.nodes)
        islands = list(self._cuts.values())
        orders = (node.process.cut(cut_for(storage_party(node_id), islands)) for node_id, node in nodes.items())
        await asyncio.gather(*orders, return_exceptions=True)

    async def _send(self, what: str, send: Any, verb: str, for_s: float | None) -> list[dict[str, Any]]:
        pause_s = (for_s if for_s is not None else PAUSE_S) if verb == "pause" else None
        try:
            pids: list[int] = await send(SIGNALS[verb], pause_s)
        except (ProcessGoneError, UsageError):
            return []  # it ended just now
        return [{"target": what, "pid": pids[0], "processes": len(pids)}]

    def _strike_control(self, verb: str, for_s: float | None) -> list[dict[str, Any]]:
        pid = os.getpid()
        ticks = start_ticks(pid) or 0
        if verb == "kill":
            # A moment later, so that whoever asked gets an answer.
            self._plane.processes.tasks.start(_soon(lambda: signals.send(pid, ticks, signals.KILL)), "chaos")
        elif verb == "pause":
            pause_s = for_s if for_s is not None else PAUSE_S
            work = _soon(lambda: signals.send(pid, ticks, signals.STOP, resume_after_s=pause_s + 0.2))
            self._plane.processes.tasks.start(work, "chaos")
        return [{"target": "control", "pid": pid, "processes": 1}]


def cut_for(party: str, islands: Iterable[frozenset[str]]) -> Cut:
    """Whom a storage node does not hear, when each of these sets of parties is an island of its own."""
    denied: set[str] = set()
    allowed: frozenset[str] | None = None
    for island in islands:
        if party in island:
            allowed = island if allowed is None else allowed & island
        else:
            denied |= island
    return Cut(frozenset(denied), allowed)


async def _soon(strike: Callable[[], object]) -> None:
    await asyncio.sleep(0.2)
    strike()
