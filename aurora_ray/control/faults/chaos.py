"""Faults on purpose: kill, pause and resume what the fleet consists of.

    writer         the writer's process with its engine, of one cluster
    node:ID        a storage node
    az:NAME        all storage nodes of an AZ, and the writer if it is there
    control        the control plane itself; Ray starts the next one

A partition is made in the storage nodes, which then do not hear some of those who call (see rpc.partition): a node that
is cut off hears nobody and is heard by no other node; a writer that is cut off is heard by no node; a control plane
that is cut off reaches no instance either (see reach.py). It lasts until it is healed or its time is over, whoever is
started again meanwhile: what is in force is kept in a file (see record.py).

What is killed comes back by the ordinary loop, as after any other end; a storage node that shall stay away for a while
is not started before its time is over, and one that is killed for good loses its directory as well and is replaced by
another. In a small fleet the storage nodes of an AZ are one process, so what strikes one strikes the others with it;
for good goes the data of the one that was named alone. What is paused goes on by itself after its time, even if the
control plane does not live to see it; it is kept in the file only to be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.compute import signals
from aurora_ray.compute.leftovers import start_ticks
from aurora_ray.control.decide.readers import reader_of
from aurora_ray.control.faults.record import Faults, Island, Pause
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.runtime import ProcessGoneError
from aurora_ray.errors import QuorumLostError, UsageError
from aurora_ray.rpc.partition import CONTROL_PARTY, Cut, instance_party, storage_party

if TYPE_CHECKING:
    from aurora_ray.control.model.changes import Changes
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.model.runtime import ControlConfig, NodeProcess
    from aurora_ray.control.observe.processes import Processes

PAUSE_S: Final = 10.0
WIPE_S: Final = 30.0
GONE_TIMEOUT_S: Final = 1.0
SIGNALS: Final = {"kill": signals.KILL, "pause": signals.STOP, "resume": signals.CONTINUE}
TARGETS: Final = "writer, reader:ID, node:ID, az:NAME, control"


@dataclass(frozen=True, slots=True)
class Victims:
    """What a target stands for at this moment."""

    node_ids: tuple[str, ...] = ()
    instance_ids: tuple[str, ...] = ()
    control: bool = False


class Chaos:
    """Belongs to the control plane's event loop. `clock` gives Unix time in seconds."""

    def __init__(
        self,
        config: ControlConfig,
        declared: Declared,
        processes: Processes,
        changes: Changes,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._declared = declared
        self._processes = processes
        self._changes = changes
        self._say = say
        self._clock = clock
        self._faults = Faults.load(config.data_dir)

    async def adopt(self) -> None:
        """Goes on with the faults of an earlier control plane."""
        for target, island in list(self._faults.islands.items()):
            self._say(f"chaos: {target} is still cut off")
            self._heal_in_time(target, island)
        if self._faults.islands:
            await self._apply_cuts()

    async def cut_off(self, node_id: str, process: NodeProcess) -> None:
        """A storage node was started, or found: the partitions that are in force hold for it too, and no others."""
        await process.cut(self._cut_for(node_id))

    def end(self) -> None:
        """The fleet stops, and with it all that was cut off or kept away."""
        self._faults.clear()

    def held(self) -> frozenset[Key]:
        """Keys of actions that must not be taken now: nodes that stay away."""
        now_s = self._clock()
        return frozenset(key(Kind.NODE, node) for node, until_s in self._faults.away_until_s.items() if until_s > now_s)

    def in_force(self) -> list[dict[str, Any]]:
        """See the function."""
        nodes, instances = self._processes.nodes, self._processes.instances
        pids = {f"node:{node_id}": node.seen.pid for node_id, node in nodes.items()}
        pids |= {instance_id: instance.process.pid for instance_id, instance in instances.items()}
        return in_force(self._faults, self._clock(), pids)

    def _keep_away(self, node_id: str, seconds: float) -> bool:
        """Notes a node that stays away, with 0 s one that no longer does; whether it did before."""
        now_s = self._clock()
        away = {node: until_s for node, until_s in self._faults.away_until_s.items() if until_s > now_s}
        was_away = away.pop(node_id, None) is not None
        if seconds > 0:
            away[node_id] = now_s + seconds
        self._faults.away_until_s = away
        self._faults.save()
        return was_away

    def _note_pause(self, what: str, pid: int, seconds: float) -> None:
        """Notes a process that stands still, with 0 s one that goes on."""
        now_s = self._clock()
        paused = {each: pause for each, pause in self._faults.paused.items() if pause.until_s > now_s}
        paused.pop(what, None)
        if seconds > 0:
            paused[what] = Pause(pid, now_s + seconds)
        self._faults.paused = paused
        self._faults.save()

    def victims(self, target: str, cluster: str) -> Victims:
        """Raises UsageError for what there is not."""
        kind, _, name = target.partition(":")
        fleet = self._declared.fleet
        if kind == "reader" and name:
            return Victims(instance_ids=(reader_of(fleet, name)[1].instance_id,))
        if target == "writer":
            return Victims(instance_ids=(fleet.cluster(cluster).writer().instance_id,))
        if target == "control":
            return Victims(control=True)
        if kind == "node" and name:
            node = fleet.node(name)
            together = [n.node_id for n in fleet.nodes if n.az == node.az] if self._config.small else [node.node_id]
            return Victims(node_ids=tuple(together))
        if kind == "az" and name:
            if name not in fleet.azs:
                raise UsageError(f"there is no AZ {name!r}; the AZs are {', '.join(fleet.azs)}")
            instances = tuple(i.instance_id for c in fleet.clusters for i in c.instances if i.az == name)
            return Victims(tuple(n.node_id for n in fleet.nodes if n.az == name), instances)
        raise UsageError(f"{target!r} is no target: the targets are {TARGETS}")

    async def strike(
        self, verb: str, target: str, cluster: str, for_s: float | None, *, for_good: bool = False
    ) -> list[dict[str, Any]]:
        """Does it; what was struck, with process ids. Raises UsageError if nothing of the target runs."""
        if verb == "kill" and for_s is not None and target.partition(":")[0] in ("writer", "reader", "control"):
            raise UsageError(
                f"a killed {target} is started again at once, so --for means nothing: leave it out, "
                f"or use `aurora chaos pause {target} --for {for_s:g}`"
            )
        how = " for good" if for_good else f" for {for_s:g} s" if for_s is not None else ""
        self._say(f"chaos: {verb} {target}{how}")
        if verb == "heal" and target in self._faults.islands:  # whatever it stands for by now
            return await self._heal(target)
        victims = self.victims(target, cluster)
        if for_good:
            return await self._kill_for_good(verb, target, victims)
        if verb == "heal":
            return []  # its time was over already
        if verb == "partition":
            return await self._partition(target, victims, for_s)
        if victims.control:
            return self._strike_control(verb, for_s)
        struck = await self._signal(verb, victims, for_s)
        if not struck and verb != "resume":
            raise UsageError(f"nothing of {target} runs at the moment")
        self._changes.notify()
        return struck

    async def _signal(self, verb: str, victims: Victims, for_s: float | None) -> list[dict[str, Any]]:
        struck: list[dict[str, Any]] = []
        if verb == "resume":
            back = [node_id for node_id in victims.node_ids if self._keep_away(node_id, 0)]
            struck += [{"target": f"node:{node_id}", "pid": None, "processes": 1} for node_id in back]
        # Nodes before the writer: who looks after the lost writer shall see that its AZ is gone.
        if verb == "kill" and for_s is not None:
            for node_id in victims.node_ids:
                self._keep_away(node_id, for_s)
        struck += await self._signal_nodes(verb, victims.node_ids, for_s)
        if verb == "kill" and struck and victims.instance_ids:
            await self._until_seen_gone(victims.node_ids)
        for instance_id in victims.instance_ids:
            instance = self._processes.instances.get(instance_id)
            if instance is not None:
                struck += await self._send(instance_id, instance.process.signal, verb, for_s)
        return struck

    async def _signal_nodes(self, verb: str, node_ids: Sequence[str], for_s: float | None) -> list[dict[str, Any]]:
        """Each process once, whichever of its nodes it is named by; told of all of them."""
        struck: dict[tuple[str, int], list[dict[str, Any]]] = {}
        told: list[dict[str, Any]] = []
        for node_id in node_ids:
            node = self._processes.nodes.get(node_id)
            if node is None:
                continue
            process, what = (node.seen.host, node.seen.pid), f"node:{node_id}"
            if not self._config.small or process not in struck:
                struck[process] = await self._send(what, node.process.signal, verb, for_s)
            elif verb in ("pause", "resume"):
                self._note_pause(what, node.seen.pid, self._pause_s(verb, for_s) or 0)
            told += [{**one, "target": what} for one in struck[process]]
        return told

    async def _until_seen_gone(self, node_ids: Sequence[str]) -> None:
        def gone() -> bool:
            return not any(node_id in self._processes.nodes for node_id in node_ids)

        with contextlib.suppress(QuorumLostError):
            await self._changes.wait_until(gone, GONE_TIMEOUT_S, "seeing them gone")

    async def _kill_for_good(self, verb: str, target: str, victims: Victims) -> list[dict[str, Any]]:
        """Ends a storage node's process and removes its directory, before it can be started again."""
        if verb != "kill" or not target.startswith("node:"):
            raise UsageError("for good is for one storage node: kill node:ID --for-good")
        node_id, processes = target.partition(":")[2], self._processes
        self._keep_away(node_id, WIPE_S)
        try:
            there = [each for each in victims.node_ids if each in processes.nodes]
            struck = await self._signal_nodes(verb, there, None) if node_id in there else []
            await self._until_seen_gone([node_id])
            await processes.runtime.wipe_node(self._declared.fleet.node(node_id), self._config)
        finally:
            self._keep_away(node_id, 0)
            self._changes.notify()
        return struck or [{"target": target, "pid": None, "processes": 0}]

    # ---- partitions

    async def _partition(self, target: str, victims: Victims, for_s: float | None) -> list[dict[str, Any]]:
        inside = {self._party_of(node_id) for node_id in victims.node_ids}
        instances = self._processes.instances
        for instance_id in victims.instance_ids:
            if instance_id in instances:
                inside.add(instance_party(instance_id, instances[instance_id].process.pid))
        if victims.control:
            inside.add(CONTROL_PARTY)
        if not inside:
            raise UsageError(f"nothing of {target} runs at the moment")
        island = Island(frozenset(inside), None if for_s is None else self._clock() + for_s)
        self._faults.islands[target] = island
        self._faults.save()
        self._heal_in_time(target, island)
        await self._apply_cuts()
        return _told(island)

    async def _heal(self, target: str) -> list[dict[str, Any]]:
        island = self._faults.islands.pop(target)
        self._faults.save()
        await self._apply_cuts()
        return _told(island)

    def _heal_in_time(self, target: str, island: Island) -> None:
        async def heal_later(seconds: float) -> None:
            await asyncio.sleep(seconds)
            if self._faults.islands.get(target) is island:
                self._say(f"chaos: the partition of {target} is over")
                await self._heal(target)

        if island.until_s is not None:
            left_s = max(0.0, island.until_s - self._clock())
            self._processes.tasks.start(heal_later(left_s), f"heal {target}")

    async def _apply_cuts(self) -> None:
        """Every running node is told; one that cannot be is on its way out."""
        cut_off = any(CONTROL_PARTY in island.parties for island in self._faults.islands.values())
        for instance in self._processes.instances.values():
            instance.process.cut(off=cut_off)
        nodes = dict(self._processes.nodes)
        orders = (node.process.cut(self._cut_for(node_id)) for node_id, node in nodes.items())
        await asyncio.gather(*orders, return_exceptions=True)

    def _cut_for(self, node_id: str) -> Cut:
        return cut_for(self._party_of(node_id), [island.parties for island in self._faults.islands.values()])

    def _party_of(self, node_id: str) -> str:
        """What the process of a storage node calls itself."""
        azs = {node.node_id: node.az for node in self._declared.fleet.nodes} if self._config.small else {}
        return storage_party(azs.get(node_id, node_id))

    async def _send(self, what: str, send: Any, verb: str, for_s: float | None) -> list[dict[str, Any]]:
        pause_s = self._pause_s(verb, for_s)
        try:
            pids: list[int] = await send(SIGNALS[verb], pause_s)
        except (ProcessGoneError, UsageError):
            return []  # it ended just now
        if verb in ("pause", "resume"):
            self._note_pause(what, pids[0], pause_s or 0)
        return [{"target": what, "pid": pids[0], "processes": len(pids)}]

    def _pause_s(self, verb: str, for_s: float | None) -> float | None:
        return (for_s if for_s is not None else PAUSE_S) if verb == "pause" else None

    def _strike_control(self, verb: str, for_s: float | None) -> list[dict[str, Any]]:
        pid = os.getpid()
        ticks = start_ticks(pid) or 0
        if verb == "kill":
            # A moment later, so that whoever asked gets an answer.
            self._processes.tasks.start(_soon(lambda: signals.send(pid, ticks, signals.KILL)), "chaos")
        elif verb == "pause":
            pause_s = for_s if for_s is not None else PAUSE_S
            work = _soon(lambda: signals.send(pid, ticks, signals.STOP, resume_after_s=pause_s + 0.2))
            self._processes.tasks.start(work, "chaos")
        return [{"target": "control", "pid": pid, "processes": 1}]


def _told(island: Island) -> list[dict[str, Any]]:
    return [{"target": party, "pid": None, "processes": 1} for party in sorted(island.parties)]


def in_force(faults: Faults, now_s: float, pids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The faults that are not over, for people; `for_s` is null for those that last until they are healed.

    `pids` of what runs, by node:ID and instance: a process that was paused, and has ended since, stands still no more.
    """
    times: list[tuple[str, str, float | None]] = [
        *(("partition", target, island.until_s) for target, island in faults.islands.items()),
        *(("absence", f"node:{node_id}", until_s) for node_id, until_s in faults.away_until_s.items()),
        *(("pause", what, pause.until_s) for what, pause in faults.paused.items() if pids.get(what) == pause.pid),
    ]
    return [
        {"fault": fault, "target": target, "for_s": None if until_s is None else round(until_s - now_s, 1)}
        for fault, target, until_s in sorted(times, key=lambda each: each[:2])
        if until_s is None or until_s > now_s
    ]


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
