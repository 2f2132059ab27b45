"""Followers in the simulator: what a reader does with the log, over crashes, takeovers, lost messages and retention.

Each asks one copy of each group after the other for log, by messages that are lost, late and doubled, and puts whole
flushes together (`FlushMerger`, the node's own `durable_log`). What it gives out must be what is durable, in order and
without a gap, whoever the writer is. It holds history by a lease that a write quorum grants; a node lets go of log
that no live lease holds (`live_read_points`). Now and then it stands still for longer than its lease. When its log is
gone it begins anew, at the VDL of then, as a reader re-mounts; that must not happen while its lease is good.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import OutOfRangeError
from aurora_ray.log.sizes import read_quorum, write_quorum
from aurora_ray.volume.follow.merge import FlushMerger
from aurora_ray.volume.read.copies import current_copies
from aurora_ray.volume.volume_node import decode_state
from tests.sim.node import LEASE_S
from tests.sim.oracle import InvariantError

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.simulation import Simulation

RENEW_S: Final = LEASE_S / 3
ASK_S: Final = 0.03


class Follower:
    """One reader; `lsn` is up to where it has given flushes out."""

    def __init__(self, simulation: Simulation, name: str, *, follows_s: float) -> None:
        """`follows_s`: how often it asks for log; one that is slow falls behind."""
        self.name = name
        self.mounts = self.given = self.fell_behind = 0
        self.good_until_s = 0.0
        self._simulation = simulation
        self._world = simulation.world
        self._follows_s = follows_s
        self._merger: FlushMerger | None = None
        self._base_lsn = 0
        self._asked: dict[int, int] = {}  # group -> number of the question whose answer is taken
        self._gone: dict[int, set[str]] = {}
        self._granted: set[str] = set()
        self._renewal = 0
        self._stuck_until_s = 0.0
        self._world.after(0.05, self._mount)
        self._world.after(self._world.rng.expovariate(1), self._stand_still)

    @property
    def lsn(self) -> int:
        """0 before it has begun."""
        return self._merger.lsn if self._merger is not None else 0

    def _stand_still(self) -> None:
        rng = self._world.rng
        self._stuck_until_s = self._world.now_s + rng.choice([0.5, 2.0]) * LEASE_S
        self._world.after(rng.expovariate(1), self._stand_still)

    # ---- beginning

    def _mount(self) -> None:
        """At the VDL that a read quorum tells; tried again until there is one and the lease stands."""
        world, nodes = self._world, self._simulation.nodes
        told = {
            node.name: [decode_state(state) for state in node.state()]
            for node in nodes.values()
            if node.alive and not self._cut(node) and not world.chance(world.weather.loss)
        }
        copies = current_copies(self._simulation.placements(), told)
        self._merger = None
        if copies is None or copies.vdl == 0:
            world.after(0.05, self._mount)
            return
        self.good_until_s = 0.0
        if copies.vdl != self._base_lsn:  # else that lease is being renewed
            self._base_lsn = copies.vdl
            self._renew(copies.vdl)
        world.after(0.1, self._begin)

    def _begin(self) -> None:
        if self.good_until_s <= self._world.now_s:
            self._mount()
            return
        self._merger = FlushMerger(self._base_lsn)
        self.mounts += 1
        self._asked, self._gone = {}, {}
        self._world.say(f"{self.name} follows from {self._base_lsn}")
        self._follow(self._merger)

    # ---- the lease

    def _renew(self, base_lsn: int) -> None:
        """At once and then again and again, for as long as it is of the same mount."""
        if base_lsn != self._base_lsn:
            return
        if self._world.now_s < self._stuck_until_s:
            self._world.after(RENEW_S, self._renew, base_lsn)
            return
        self._renewal += 1
        self._granted = set()
        for node in self._simulation.nodes.values():
            self._world.send(self.name, node.name, self._at_node, node, self._renewal, self._world.now_s)
        self._world.after(RENEW_S, self._renew, base_lsn)

    def _at_node(self, node: SimNode, renewal: int, asked_s: float) -> None:
        if not node.alive:
            return
        until_s = self._world.now_s + LEASE_S
        if node.hold(self.name, self._base_lsn, until_s):
            self._world.send(node.name, self.name, self._grant, node.name, renewal, asked_s)

    def _grant(self, node: str, renewal: int, asked_s: float) -> None:
        if renewal != self._renewal:
            return
        self._granted.add(node)
        for at in self._simulation.oracle.placements.values():
            if any(len(self._granted & set(members)) < write_quorum(len(members)) for members in at.sets):
                return
        self.good_until_s = max(self.good_until_s, asked_s + LEASE_S)

    # ---- following

    def _follow(self, merger: FlushMerger) -> None:
        world = self._world
        if merger is not self._merger:
            return
        world.after(self._follows_s, self._follow, merger)
        if world.now_s < self._stuck_until_s:
            return
        for group in self._simulation.oracle.placements:
            holders = [node for node in self._simulation.nodes.values() if group in node.by_group or not node.alive]
            node = world.rng.choice(holders)
            number = self._asked[group] = self._asked.get(group, 0) + 1
            ask = partial(self._ask, node, merger)
            world.send(self.name, node.name, ask, group, number, merger.after_lsn(group))

    def _ask(self, node: SimNode, merger: FlushMerger, group: int, number: int, after_lsn: int) -> None:
        if not node.alive or group not in node.by_group:
            return
        try:
            batches = node.durable_log(group, after_lsn)
        except OutOfRangeError:
            self._world.send(node.name, self.name, self._on_gone, merger, group, node.name)
            return
        told = partial(self._on_log, merger, number, node.name, node.by_group[group].vdl)
        self._world.send(node.name, self.name, told, group, batches)

    def _on_log(self, merger: FlushMerger, number: int, node: str, vdl: int, group: int, batches: list[bytes]) -> None:  # noqa: PLR0917
        if merger is not self._merger or self._asked.get(group) != number:
            return  # of a copy that was left
        self._gone.get(group, set()).discard(node)
        oracle = self._simulation.oracle
        if vdl > oracle.end_lsn:
            raise InvariantError(f"{self.name} is told by {node} that {vdl} is durable")
        for batch in batches:
            merger.add(group, batch)
        before = merger.lsn
        while (flush := merger.take()) is not None:
            if flush.start > before or flush.end <= before:
                raise InvariantError(f"{self.name} was at {before} and is given flush {flush.start} to {flush.end}")
            oracle.check_followed(flush.end, flush.batches, self.name)
            before, self.given = flush.end, self.given + 1

    def _on_gone(self, merger: FlushMerger, group: int, node: str) -> None:
        if merger is not self._merger:
            return
        gone = self._gone.setdefault(group, set())
        gone.add(node)
        at = self._simulation.oracle.placements[group]
        if len(gone & set(at.node_ids)) >= read_quorum(len(at.node_ids)):
            self._world.say(f"{self.name} has fallen behind what is kept")
            if self.good_until_s > self._world.now_s and not self._simulation.change_rate:
                raise InvariantError(f"log of group {group} that {self.name} holds from {self._base_lsn} on is gone")
            self.fell_behind += 1
            self._mount()

    def _cut(self, node: SimNode) -> bool:
        return bool({self.name, node.name} & self._world.cut_off)
