"""One seed: six or seven nodes, writers that come, go and compete, gossip, readers, crashes, partitions; then peace.

In the storm everything may happen. Then all nodes are up, the network is perfect, and one last writer must be able to
open, write and see every copy agree: what the storm left behind must not have wedged anything.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aurora_ray.log.segment_rules import HISTORY_MAX
from aurora_ray.volume.read.copies import current_copies
from aurora_ray.volume.recovery import Recovery
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.volume_node import decode_state
from tests.sim.follower import LEASE_S, Follower
from tests.sim.node import SimNode
from tests.sim.oracle import InvariantError, Oracle
from tests.sim.world import CALM, World
from tests.sim.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.storage.v1 import storage_pb2 as pb
    from aurora_ray.volume.read.copies import Copies

NODES = tuple("abcdef")
SPARES = tuple("stuvwxyz")
STORM_S = 3.0
PEACE_S = 20.0

_T = TypeVar("_T")


class Simulation:
    """See the module. `run` raises InvariantError (an AssertionError) when something that must hold does not."""

    def __init__(self, seed: int, make_recovery: Callable[[Recovery], Recovery] | None = None) -> None:
        self.seed = seed
        self.world = World(seed)
        rng = self.world.rng
        self.volume = rng.getrandbits(128).to_bytes(16, "little")
        members = rng.choice(
            [
                {0: NODES},
                {0: NODES, 1: NODES},
                {0: NODES, 1: ("a", "b", "c", "g", "h", "i")},
                {0: NODES, 1: NODES, 2: NODES},
            ]
        )
        self.change_rate = rng.choice([0.0, 3.0, 20.0])  # of members, a second and writer
        names = {node for nodes in members.values() for node in nodes}
        names.update(SPARES if self.change_rate else ())
        self.nodes = {name: SimNode(name, self.volume, members, rng) for name in sorted(names)}
        placements = {group: GroupPlacement(group, nodes) for group, nodes in members.items()}
        self.written = {group: [placement] for group, placement in placements.items()}  # what anybody may go from
        self.oracle = Oracle(placements, self.nodes)
        groups = tuple(members)
        self.group_choices = [(group,) for group in groups] + [groups[:2]] * (len(groups) > 1) + [groups]
        self.write_interval_s = rng.choice([0.005, 0.02, 0.1])
        self.log_bytes_max = 60 * 48
        self.writers: list[Writer] = []
        self.followers: list[Follower] = []
        self._last_words: list[str] = []
        self.calm = False
        self.history_max = (1, 2, HISTORY_MAX)[seed % 3]  # truncations
        self._crash_rate = rng.choice([0.0, 1.0, 4.0])  # a second
        self._takeover_s = rng.choice([0.3, 0.8, 2.0])
        self._gossip_rate = rng.choice([0.05, 1.0, 5.0, 20.0])  # a node and second

    def make_recovery(self, min_epoch: int) -> Recovery:
        return Recovery(self.placements(), min_epoch, self.history_max)

    def placements(self) -> dict[int, GroupPlacement]:
        """What somebody knows who has not asked: seldom the newest."""
        rng = self.world.rng
        return {
            group: written[-1] if rng.random() < 0.4 else rng.choice(written) for group, written in self.written.items()
        }

    def next_members(self, current: GroupPlacement) -> tuple[str, ...]:
        """A set to change to: mostly one other node, sometimes all others."""
        rng = self.world.rng
        others = [name for name in self.nodes if name not in current.node_ids]
        leaving = rng.sample(current.node_ids, rng.choice([1, 1, 1, 3, 6, 6]))
        staying = [name for name in current.node_ids if name not in leaving]
        return (*staying, *rng.sample(others, len(leaving)))

    # ---- the run

    def run(self) -> None:
        """The storm, then peace."""
        world = self.world
        for node in self.nodes.values():
            world.after(world.rng.expovariate(self._gossip_rate), self._gossip, node)
            if self._crash_rate:
                world.after(world.rng.expovariate(self._crash_rate / len(self.nodes)), self._crash, node)
        self._new_writer()
        if self.seed % 2:  # others have more time for the rest
            self._add_followers()
        world.after(world.rng.expovariate(2), self._partition)
        world.after(world.rng.expovariate(5), self._read)
        world.run(STORM_S)
        self._make_peace()
        acked_before = self.oracle.end_lsn
        last = self._add_writer("last")
        deadline_s = world.now_s + PEACE_S
        while world.now_s < deadline_s and not self._settled(last, acked_before):
            world.run(world.now_s + 0.25)
        if not self._settled(last, acked_before):
            raise InvariantError(f"peace, but no progress: {last.core.describe()}, durable up to {self.oracle.end_lsn}")
        self.oracle.check_durability()
        self.oracle.check_all_equal()

    def _settled(self, last: Writer, before: int) -> bool:
        """The last writer has written something durable, stopped, and all copies are complete."""
        if last.outcome is None or self.oracle.end_lsn < before + 48 * 3:
            return False
        if last.alive:
            self.log_bytes_max = 0
            if last.quorum.inflight_count:
                return False
        return all(
            self.nodes[name].by_group[group].scl >= last.quorum.group_tails[group]
            for group, placement in last.placements.items()
            for name in placement.all_node_ids
        )

    def _make_peace(self) -> None:
        world = self.world
        world.say("peace")
        self.calm = True
        world.weather = CALM
        world.cut_off.clear()
        for writer in self.writers:
            writer.die("peace")
        for node in self.nodes.values():
            if not node.alive:
                node.boot()
            self._gossip(node)  # the next round may be a long time off
        self.log_bytes_max = self.oracle.end_lsn + 48 * 20

    # ---- what happens

    def at_node(self, node: SimNode, handler: Callable[[], _T]) -> _T | None:
        """Runs a handler at a node that may be dead or die of it; then looks whether all still holds."""
        if not node.alive:
            return None
        answer: _T | None = node.guarded(handler, crash=self.world.chance(self.world.weather.crash_in_handler))
        if node.alive:
            self.oracle.check_node(node)
        else:
            self.world.say(f"{node.name} loses power in the middle of a write")
            self.world.after(self.world.rng.expovariate(2), self._boot, node)
        return answer

    def _new_writer(self) -> None:
        if self.calm:
            return
        rng = self.world.rng
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            self._add_writer(f"writer{len(self.writers)}")
        for writer in self.writers[:-1]:
            if rng.random() < 0.3:
                self.world.after(rng.uniform(0, 0.3), writer.die, "crash")
        self.world.after(rng.expovariate(1 / self._takeover_s), self._new_writer)

    def _add_followers(self) -> None:
        rng = self.world.rng
        for number in range(rng.choice([1, 2])):
            self.followers.append(Follower(self, f"reader{number}", follows_s=rng.choice([0.01, 0.05, 0.15])))
        for node in self.nodes.values():
            self.world.after(LEASE_S, self._collect, node, LEASE_S)

    def _collect(self, node: SimNode, up_for_s: float) -> None:
        """A node that has just come back knows of no lease and waits for as long as one lasts."""
        pause_s = self.world.rng.expovariate(4)
        if node.alive and up_for_s >= LEASE_S:
            node.collect(self.world.now_s)
        self.world.after(pause_s, self._collect, node, up_for_s + pause_s if node.alive else 0.0)

    def _add_writer(self, name: str) -> Writer:
        self.world.say(f"{name} begins")
        writer = Writer(self, name)
        self.writers.append(writer)
        return writer

    def _crash(self, node: SimNode) -> None:
        if self.calm:
            return
        if node.alive:
            self.world.say(f"{node.name} crashes")
            node.crash()
            self.world.after(self.world.rng.expovariate(3), self._boot, node)
        self.world.after(self.world.rng.expovariate(self._crash_rate / len(self.nodes)), self._crash, node)

    def _boot(self, node: SimNode) -> None:
        if not node.alive:
            self.world.say(f"{node.name} is back")
            node.boot()
            self.oracle.check_node(node)

    def _partition(self) -> None:
        rng = self.world.rng
        if self.calm:
            return
        everybody = [*self.nodes, *(writer.name for writer in self.writers)]
        victims = rng.sample(everybody, rng.randint(1, 3))
        self.world.say(f"cut off: {victims}")
        self.world.cut_off.update(victims)
        self.world.after(rng.expovariate(rng.choice([1, 5])), self.world.cut_off.difference_update, victims)
        self.world.after(rng.expovariate(1.5), self._partition)

    # ---- gossip

    def _gossip(self, node: SimNode) -> None:
        peers = [name for name in self.nodes if name != node.name]
        self._exchange(node, self.nodes[self.world.rng.choice(peers)])
        self.world.after(self.world.rng.expovariate(20.0 if self.calm else self._gossip_rate), self._gossip, node)

    def gossip_with_all(self, node: SimNode) -> None:
        """What CatchUp does."""
        for name, peer in self.nodes.items():
            if name != node.name:
                self._exchange(node, peer)

    def _exchange(self, node: SimNode, peer: SimNode) -> None:
        send = self.world.send

        def at_peer() -> None:
            states = self.at_node(peer, peer.state)
            if states is not None:
                send(peer.name, node.name, back, states)

        epochs: dict[int, int] = {}  # of the peer, when it said what it has

        def back(states: list[pb.SegmentState]) -> None:
            for state in states:
                epochs.setdefault(state.group, state.installed_epoch)
                if state.group not in node.stores:
                    continue
                wanted = self.at_node(node, partial(node.adopt, state))
                if wanted is not None:
                    send(node.name, peer.name, fetch, state.group, *wanted)

        def fetch(group: int, after_lsn: int, up_to_lsn: int) -> None:
            batches = self.at_node(peer, lambda: peer.log_after(group, after_lsn, up_to_lsn))
            if batches:
                send(peer.name, node.name, store, group, batches, epochs[group])

        def store(group: int, batches: list[bytes], peer_epoch: int) -> None:
            self.at_node(node, lambda: node.store_fetched(group, batches, peer_epoch))

        send(node.name, peer.name, at_peer)

    # ---- reading

    def _read(self) -> None:
        """A reader without an epoch learns what may be read, and reads now and later, from any complete copy."""
        rng = self.world.rng
        states = {
            node.name: [decode_state(state) for state in node.state()]
            for node in self.nodes.values()
            if node.alive and node.name not in self.world.cut_off and rng.random() < 0.8
        }
        copies = current_copies(self.placements(), states)
        if copies is not None:
            if copies.vdl > self.oracle.end_lsn:
                raise InvariantError(f"a reader is told that {copies.vdl} is durable")
            lsn = rng.randint(0, copies.vdl) if rng.random() < 0.5 else copies.vdl
            self._read_at(copies, lsn)
            self.world.after(rng.expovariate(2), self._read_at, copies, lsn)
        for writer in self.writers:
            if writer.alive and writer.outcome is not None:
                tails = writer.quorum.group_tails
                for name, stream in writer.streams.items():
                    held = {group: tails[group] for group in writer.groups_of(name)}
                    self._read_from(name, held, writer.quorum.vdl, writer.name, allowed=stream.installed)
        self.world.after(rng.expovariate(5), self._read)

    def _read_at(self, copies: Copies, lsn: int) -> None:
        for name in sorted(copies.nodes):
            required = copies.required(lsn)
            held = {group: required[group] for group, at in copies.placements.items() if name in at.all_node_ids}
            self._read_from(name, held, lsn, "a reader", allowed=True)

    def _read_from(self, name: str, required: Any, lsn: int, who: str, *, allowed: bool) -> None:
        node = self.nodes[name]
        if allowed and node.alive:
            for group, segment in node.by_group.items():
                if group in required and segment.scl >= min(lsn, required[group]):
                    self.oracle.check_read(node, group, lsn, who)


def run_seed(seed: int) -> Simulation:
    """Runs one seed; a failure names it and tells what happened last."""
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Exception as error:
        story = "\n".join(simulation.world.trace)
        raise InvariantError(f"seed {seed} at {simulation.world.now_s:.3f} s: {error}\n{story}") from error
    return simulation
