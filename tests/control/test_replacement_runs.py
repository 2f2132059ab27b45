"""The rules of replacement against an imagined fleet, through seeded runs of losses: nodes die, come back, lose their
data or stay away for good; writers and control planes come and go; orders are lost on the way."""

import random
from uuid import UUID

import pytest

from aurora_ray.control.decide import replacement
from aurora_ray.control.decide.ailing import AilingNodes
from aurora_ray.control.decide.reconcile import Action, StartNode, decide
from aurora_ray.control.decide.replacement import (
    CancelReplacement,
    ChangeMembers,
    NotePlacements,
    RemoveNode,
    ReplaceNode,
    ReplaceRules,
)
from aurora_ray.control.model.observed import InstancePhase, InstanceSeen, NodeSeen, Observed
from aurora_ray.control.model.state import CONTROL_VOLUME_ID, Fleet
from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import WRITE_QUORUM
from aurora_ray.volume.spec import ChangeStep, GroupPlacement
from tests.control.fleets import AZS, running_fleet, volume_id

RULES = ReplaceRules(unreachable_after_s=30, data_gone_after_s=10)
TICKS_OF_TROUBLE = 400
TICKS_OF_PEACE = 600
TICK_S = 1.0
SEEDS = 150

Copy = tuple[UUID, int]


class World:
    """What is true, apart from what is declared."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fleet: Fleet = running_fleet()
        self.bed = AilingNodes()
        self.now_s = 0.0
        self.troubled = True
        self.volumes = (CONTROL_VOLUME_ID, volume_id(self.fleet))
        self.truth = {volume.volume_id: volume.groups[0].placement for volume in self.fleet.volumes()}
        nodes = [node.node_id for node in self.fleet.nodes]
        self.running = set(nodes)
        self.lost_hosts: set[str] = set()  # nothing starts there any more
        self.copies: dict[str, dict[Copy, float]] = {n: {(v, 0): 0.0 for v in self.volumes} for n in nodes}  # full from
        self.writer_back_s = 0.0
        self.replaced = 0

    # ---- trouble

    def strike(self) -> None:
        """Something goes wrong, but never so much that data is lost for good."""
        node = self.random.choice([node.node_id for node in self.fleet.nodes])
        what = self.random.choice(("kill", "kill", "lose", "wipe", "return", "writer", "control"))
        if what == "kill":
            self.running.discard(node)
        elif what == "lose" and self._can_lose(node):
            self.running.discard(node)
            self.lost_hosts.add(node)
        elif what == "wipe" and self._can_lose(node):
            self.copies[node] = {}
        elif what == "return" and self.lost_hosts:
            self.lost_hosts.discard(self.random.choice(sorted(self.lost_hosts)))
        elif what == "writer":
            self.writer_back_s = self.now_s + self.random.uniform(0, 20)
        elif what == "control":
            self.bed = AilingNodes()

    def _can_lose(self, node: str) -> bool:
        """Whether a write quorum of each set still has all of its data, and each AZ a node, without this one."""
        whole = {
            n: all(self._is_full(n, (v, 0)) and n not in self.lost_hosts for v in self.volumes if self._holds(n, v))
            for n in self.copies
        }
        left = {n for n, sound in whole.items() if sound and n != node}
        sets = [nodes for placement in self.truth.values() for nodes in placement.sets]
        az = self.fleet.node(node).az
        others = [n.node_id for n in self.fleet.nodes if n.az == az and n.node_id not in {node, *self.lost_hosts}]
        return bool(others) and all(len(left.intersection(nodes)) >= WRITE_QUORUM for nodes in sets)

    def _holds(self, node: str, volume: UUID) -> bool:
        return node in self.truth[volume].all_node_ids

    def _is_full(self, node: str, copy: Copy) -> bool:
        return self.copies[node].get(copy, self.now_s + 1) <= self.now_s

    # ---- what is seen, and what is done about it

    def observe(self) -> Observed:
        told = tuple((node, f"{node}:1") for node in sorted(self.running))
        nodes = {
            node: NodeSeen(f"{node}:1", 1, "host", told, frozenset(self.copies[node])) for node in sorted(self.running)
        }
        phase = InstancePhase.AVAILABLE if self.now_s >= self.writer_back_s else InstancePhase.OPENING
        writer = InstanceSeen(phase, "", told, frozenset({0}), 1 << 30, (self.truth[self.volumes[1]],))
        return Observed(
            nodes=nodes,
            instances={"demo-1": writer},
            control_open=True,
            control_placements=(self.truth[CONTROL_VOLUME_ID],),
            ailing=self.bed.look(self.fleet, nodes, self.now_s),
        )

    def tick(self) -> int:
        """One cycle; how many actions it had."""
        self.now_s += TICK_S
        if self.troubled and self.random.random() < 0.1:
            self.strike()
        observed = self.observe()
        further = replacement.wanted(self.fleet, observed, self.now_s, RULES)
        actions = decide(self.fleet, observed, self.now_s, further=further).actions
        for action in actions:
            if not self.troubled or self.random.random() > 0.2:  # else it is lost on the way
                self.carry_out(action)
        self.check()
        return len(actions)

    def carry_out(self, action: Action) -> None:
        if isinstance(action, StartNode):
            self._start(action.node_id)
        elif isinstance(action, ReplaceNode):
            self.fleet = self.fleet.with_replacement(action.node_id)
            self.replaced += 1
        elif isinstance(action, CancelReplacement):
            self.fleet = self.fleet.without_replacement(action.node_id)
        elif isinstance(action, NotePlacements):
            assert action.placements == (self.truth[action.volume_id],)
            self.fleet = self.fleet.with_placements(action.volume_id, action.placements)
        elif isinstance(action, ChangeMembers):
            self._change(action)
        elif isinstance(action, RemoveNode):
            assert not any(self._holds(action.node_id, volume) for volume in self.volumes), action
            self.running.discard(action.node_id)
            self.copies.pop(action.node_id, None)
            self.lost_hosts.discard(action.node_id)
            self.fleet = self.fleet.without_node(action.node_id)
        else:
            assert type(action).__name__ in ("TellNodes", "TellInstance"), action

    def _start(self, node: str) -> None:
        if node not in self.lost_hosts:
            assert node not in self.running
            self.running.add(node)
            self.copies.setdefault(node, {})

    def _change(self, action: ChangeMembers) -> None:
        """As a volume's writer does."""
        before, copy = self.truth[action.volume_id], (action.volume_id, 0)
        step = before.step_to(action.placement)  # raises for what is no step
        up = {node for node in self.running if copy in self.copies[node]}
        if step is ChangeStep.BEGIN:
            (new,) = set(action.placement.all_node_ids) - set(before.all_node_ids)
            if new not in self.running:
                return
            assert copy not in self.copies[new]
            self.copies[new][copy] = self.now_s + self.random.uniform(1, 15)
            up.add(new)
        if step is ChangeStep.COMMIT and not (action.filled in up and self._is_full(action.filled, copy)):
            return
        if all(len(up.intersection(nodes)) >= WRITE_QUORUM for nodes in action.placement.sets):
            self.truth[action.volume_id] = action.placement

    # ---- what must hold

    def check(self) -> None:
        assert len(self.fleet.replacements()) <= 1
        azs = {node.node_id: node.az for node in self.fleet.nodes}
        for placement in self.truth.values():
            for nodes in placement.sets:
                assert sorted(azs[node] for node in nodes) == sorted([*AZS, *AZS]), "two copies in each AZ"

    def is_whole(self) -> bool:
        sound = all(
            placement.next_node_ids is None
            and all(node in self.running and self._is_full(node, (volume, 0)) for node in placement.node_ids)
            for volume, placement in self.truth.items()
        )
        declared = all(group.placement == self.truth[v.volume_id] for v in self.fleet.volumes() for group in v.groups)
        return sound and declared and not self.fleet.replacements() and not any(n.leaving for n in self.fleet.nodes)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_every_fleet_heals_and_is_never_made_worse(first: int) -> None:
    replaced = 0
    for seed in range(first, first + 50):
        world = World(seed)
        for _ in range(TICKS_OF_TROUBLE):
            world.tick()
        world.troubled = False
        world.writer_back_s = 0.0
        for _ in range(TICKS_OF_PEACE):
            if not world.tick() and world.is_whole():
                break
        assert world.is_whole(), f"seed {seed}: {world.fleet} {world.truth} {world.running} {world.lost_hosts}"
        assert all(world.fleet.holds(node.node_id) for node in world.fleet.nodes), f"seed {seed}: an idle node is left"
        replaced += world.replaced
    assert replaced > 50, "the runs are no test if nothing is replaced"


def test_a_run_would_notice_a_rule_that_forgets_what_it_holds() -> None:
    world = World(1)
    with pytest.raises(AssertionError):
        world.carry_out(RemoveNode("wrong", "b-1"))
    elsewhere = GroupPlacement(0, ("a-1", "a-2", "b-1", "b-2", "c-1", "c-3"))
    with pytest.raises(UsageError, match="in one step"):
        world.carry_out(ChangeMembers("wrong", CONTROL_VOLUME_ID, "", elsewhere))
