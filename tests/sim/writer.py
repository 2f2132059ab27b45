"""A writer in the simulator: the real recovery core and quorum tracker, with simulated RPC and streams around them.

The stream follows the rules of `volume.write.streams`: in order, what is not acknowledged is sent again after a
reconnect, and only flushes that are durable already are ever skipped.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aurora_ray.errors import AuroraError, FencedError, StaleSegmentError
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.record import RecordBuilder, page_full
from aurora_ray.log.sizes import write_quorum
from aurora_ray.log.wire import join_append
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.recovery import (
    AskState,
    CatchUp,
    Overtaken,
    Phase,
    Recovered,
    Recovery,
    Seal,
    Truncate,
    placement_of,
)
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.volume_node import decode_state, encode_truncation
from aurora_ray.volume.write.change import Change, CreateCopy, GroupMembers, InstallMembers
from aurora_ray.volume.write.quorum import InFlight, QuorumTracker
from tests.sim.oracle import Flush

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.recovery import Request
    from aurora_ray.volume.write.change import Request as ChangeRequest
    from tests.sim.node import SimNode
    from tests.sim.simulation import Simulation

RETRY_S = 0.05
STALLED_S = 1.0
WINDOW = 3


class Writer:
    """Recovers, then writes until it is fenced or crashes."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim, self.world, self.name = sim, sim.world, name
        self.owner = name.encode().ljust(16, b"\0")
        self.alive = True
        self.epoch = 0
        self.outcome: Recovered | None = None
        self.core = Recovery({})
        self.quorum = QuorumTracker({}, 0, {})
        self.streams: dict[str, Stream] = {}
        self._attempt = 0
        self._flushes: deque[Flush] = deque()  # not durable yet
        self._tails: dict[int, int] = {}
        self._tail_lsn = 0
        self._fenced: set[str] = set()
        self.members = GroupMembers({}, 0, 0, {})
        self.placements: dict[int, GroupPlacement] = {}
        self._sets: dict[int, list[tuple[tuple[str, ...], int]]] = {}  # whom to ask, from which LSN on
        self._begin(1)

    def die(self, why: str) -> None:
        """A crash, or the news that somebody else has the volume."""
        if self.alive:
            self.world.say(f"{self.name} ends: {why}")
        self.alive = False

    # ---- recovery

    def _begin(self, min_epoch: int) -> None:
        if not self.alive:
            return
        self._attempt += 1
        self.core = self.sim.make_recovery(min_epoch)
        for node in self.sim.nodes.values():
            self._ask(node, self._attempt, self.core.phase, self.world.now_s)

    def _ask(self, node: SimNode, attempt: int, phase: Phase, since_s: float) -> None:
        """Sends what the core wants to know of a node; again after a while, for as long as this attempt lasts."""
        core = self.core
        if not self.alive or attempt != self._attempt or core.outcome is not None:
            return
        if core.phase is not phase:
            phase, since_s = core.phase, self.world.now_s
        elif phase >= Phase.INSTALL and self.world.now_s > since_s + STALLED_S:
            self.world.say(f"{self.name} stalls in {phase.name}")
            self._begin(core.epoch + 1)
            return
        request = core.request(node.name)
        if request is not None:
            self.world.send(self.name, node.name, self._arrive, node, attempt, request)
        self.world.after(RETRY_S * self.world.rng.uniform(0.5, 2), self._ask, node, attempt, phase, since_s)

    def _arrive(self, node: SimNode, attempt: int, request: Request) -> None:
        """At the node."""
        if isinstance(request, CatchUp):
            self.sim.gossip_with_all(node)
        answer = self.sim.at_node(node, lambda: self._handle(node, request))
        if answer is not None:
            self.world.send(node.name, self.name, self._answered, node.name, attempt, request, answer)

    def _handle(self, node: SimNode, request: Request) -> Any:
        if isinstance(request, AskState):
            return [decode_state(state) for state in node.state()]
        if isinstance(request, Seal):
            reply = node.seal(request.epoch, self.owner)
            return reply.promised, reply.promised_epoch, [decode_state(state) for state in reply.segments]
        if isinstance(request, Truncate):
            try:
                return [decode_state(state) for state in node.truncate(self._truncate_message(request)).segments]
            except FencedError:
                return max(state.promised_epoch for state in node.state())
        return {group: segment.scl for group, segment in node.by_group.items() if group in request.tails}

    def _truncate_message(self, order: Truncate) -> pb.TruncateRequest:
        return pb.TruncateRequest(
            volume=self.sim.volume,
            epoch=order.epoch,
            owner=self.owner,
            truncations=[encode_truncation(cut) for cut in order.truncations],
            vdl=order.vdl,
            members=[
                pb.GroupMembers(group=group, number=held.number, members=held.members, next_members=held.next_members)
                for group, held in order.members.items()
            ],
        )

    def _answered(self, node: str, attempt: int, request: Request, answer: Any) -> None:
        core = self.core
        if not self.alive or attempt != self._attempt or core.outcome is not None:
            return
        phase = core.phase
        _tell(core, node, request, answer)
        if core.phase >= Phase.INSTALL and self.world.chance(self.world.weather.dies_recovering):
            self.die("crash in recovery")
        if core.phase >= Phase.PUBLISH > phase:
            self.sim.oracle.opened(core.epoch, core.end_lsn, core.history, core.placements())
        if isinstance(core.outcome, Recovered):
            self._open(core.outcome)
        elif isinstance(core.outcome, Overtaken):
            self.world.say(f"{self.name} is overtaken by {core.outcome.epoch}")
            self.world.after(self.world.rng.uniform(0, 0.2), self._begin, core.outcome.epoch + 1)
        elif core.phase is not phase:
            for each in self.sim.nodes.values():
                following = core.request(each.name)
                if following is not None:
                    self.world.send(self.name, each.name, self._arrive, each, attempt, following)

    # ---- writing

    def _open(self, outcome: Recovered) -> None:
        if not self.alive:
            return
        self.world.say(f"{self.name} opens epoch {outcome.epoch} at {outcome.end_lsn} {dict(outcome.tails)}")
        self.outcome, self.epoch = outcome, outcome.epoch
        self.placements = {group: placement_of(group, held) for group, held in outcome.members.items()}
        self.members = GroupMembers(outcome.members, outcome.epoch, outcome.end_lsn, outcome.tails)
        self.quorum = QuorumTracker(self.placements, outcome.end_lsn, outcome.tails)
        self._tail_lsn, self._tails = outcome.end_lsn, dict(outcome.tails)
        self._sets = {
            group: [(nodes, outcome.end_lsn) for nodes in placement.sets]
            for group, placement in self.placements.items()
        }
        self._learn_placement(outcome.installed)
        self._write()
        if self.sim.change_rate:
            self.world.after(self.world.rng.expovariate(self.sim.change_rate), self._change)

    def groups_of(self, node: str) -> set[int]:
        """What a node holds, as far as this writer goes."""
        return {group for group, placement in self.placements.items() if node in placement.all_node_ids}

    def _learn_placement(self, installed: Collection[str] = ()) -> None:
        """A stream to everybody who holds anything."""
        holders = {node for placement in self.placements.values() for node in placement.all_node_ids}
        for name in sorted(holders - self.streams.keys()):
            self.streams[name] = Stream(self, self.sim.nodes[name], installed=name in installed)
        for name in sorted(self.streams.keys() - holders):
            self.streams.pop(name).ended = True

    # ---- changing members

    def _change(self) -> None:
        """One step of a change, begun and perhaps given up."""
        rng = self.world.rng
        if not self.alive or self.sim.calm:
            return
        current = rng.choice(list(self.placements.values()))
        if current.next_node_ids is None:
            wanted = GroupPlacement(current.group, current.node_ids, self.sim.next_members(current))
        else:
            wanted = GroupPlacement(current.group, rng.choice([current.next_node_ids] * 3 + [current.node_ids]))
        change = self.members.start(wanted)
        assert change is not None
        self.world.say(f"{self.name} begins {change.step} to {wanted.sets}")
        deadline_s = self.world.now_s + rng.choice([0.05, 0.3, 2.0])
        for node in change.nodes:
            self._ask_change(change, node, deadline_s)
        self.world.after(deadline_s - self.world.now_s, self._give_up, change)

    def _give_up(self, change: Change) -> None:
        if self.alive and not change.done:
            self.world.say(f"{self.name} gives up: {change.describe()}")
            self.world.after(self.world.rng.expovariate(10), self._change)

    def _ask_change(self, change: Change, node: str, deadline_s: float) -> None:
        """Sends what the change wants to know of a node; again after a while."""
        if not self.alive or change.done or self.world.now_s > deadline_s:
            return
        request = change.request(node)
        if request is not None:
            at = (self.sim.nodes[node], change, request, deadline_s)
            self.world.send(self.name, node, self._arrive_change, *at)
        pause_s = RETRY_S * self.world.rng.uniform(0.1, 2)
        self.world.after(pause_s, self._ask_change, change, node, deadline_s)

    def _arrive_change(self, node: SimNode, change: Change, request: ChangeRequest, deadline_s: float) -> None:
        """At the node."""

        def handle() -> Any:
            if isinstance(request, CreateCopy):
                node.create_copy(request.group, request.members)
                return True
            if isinstance(request, InstallMembers):
                members = {**self.members.held, request.group: request.membership}
                try:
                    return [decode_state(state) for state in node.truncate(self.truncation(members)).segments]
                except FencedError:
                    return None
            return [decode_state(state) for state in node.state()]

        answer = self.sim.at_node(node, handle)
        if answer is not None:
            at = (node.name, change, request, answer, deadline_s)
            self.world.send(node.name, self.name, self._answered_change, *at)

    def _answered_change(
        self, node: str, change: Change, request: ChangeRequest, answer: Any, deadline_s: float
    ) -> None:
        if not self.alive or change.done or self.world.now_s > deadline_s:
            return
        if isinstance(request, CreateCopy):
            change.on_created(node)
        elif isinstance(request, InstallMembers):
            change.on_installed(node, answer)
        else:
            change.on_state(node, answer, self.quorum.vdl)
        if change.done:
            self._go_by(change)

    def _go_by(self, change: Change) -> None:
        group, wanted = change.group, change.wanted
        self.world.say(f"{self.name} goes by {wanted.sets}")
        self.members.finish(change, self._tail_lsn, self._tails[group])
        known = dict(self._sets[group])
        self._sets[group] = [(nodes, known.get(nodes, self._tail_lsn)) for nodes in wanted.sets]
        self.placements[group] = wanted
        moved = self.quorum.place(wanted)
        self._learn_placement()
        self.sim.oracle.placed(self.epoch, wanted)
        if moved:
            self._vdl_moved()
        self.sim.written[group].append(wanted)
        self.world.after(self.world.rng.expovariate(self.sim.change_rate), self._change)

    # ---- writing, flush by flush

    def _write(self) -> None:
        """One flush, and another one some time later."""
        if not self.alive:
            return
        rng = self.world.rng
        if len(self._flushes) < 12 and self._tail_lsn < self.sim.log_bytes_max:
            groups = rng.choice(self.sim.group_choices)
            builder = RecordBuilder(self._tail_lsn)
            for group in groups:
                builder.add(page_full(1, rng.randrange(100), b"%x" % rng.getrandbits(64), group=group))
            start, end = builder.start_lsn, builder.end_lsn
            batches = {
                part.group: encode_batch(
                    group=part.group,
                    volume=self.sim.volume,
                    epoch=self.epoch,
                    prev_lsn=self._tails[part.group],
                    flush_start=start,
                    flush_end=end,
                    time_us=0,
                    vdl=self.quorum.vdl,
                    record_count=part.record_count,
                    groups=groups,
                    records=part.payload,
                )
                for part in builder.take()
            }
            flush = Flush(self.epoch, start, end, batches)
            self.sim.oracle.submitted(flush)
            self._flushes.append(flush)
            self._tail_lsn = end
            self._tails.update(dict.fromkeys(groups, end))
            self.quorum.submit(InFlight(end, groups))
            for stream in self.streams.values():
                stream.push(flush)
        self.world.after(rng.expovariate(1 / self.sim.write_interval_s), self._write)

    def on_ack(self, node: str, lsn: int) -> None:
        """A node has all it was sent up to `lsn`."""
        if self.alive and self.quorum.ack(node, lsn):
            self._vdl_moved()

    def _vdl_moved(self) -> None:
        durable = []
        while self._flushes and self._flushes[0].end <= self.quorum.vdl:
            durable.append(self._flushes.popleft())
        self.sim.oracle.acknowledged(self.epoch, durable, self._sets)

    def on_fenced(self, node: str) -> None:
        """A node follows a higher epoch."""
        self._fenced.add(node)
        for placement in self.placements.values():
            for nodes in placement.sets:
                if len(nodes) - len(self._fenced.intersection(nodes)) < write_quorum(len(nodes)):
                    self.die("fenced")

    def truncation(self, members: Mapping[int, Membership] | None = None) -> pb.TruncateRequest:
        """Our history, for a node that lacks it."""
        outcome = self.outcome
        assert outcome is not None
        members = self.members.held if members is None else members
        return self._truncate_message(
            Truncate(self.epoch, outcome.truncations, outcome.end_lsn, outcome.tails, members)
        )


def _tell(core: Recovery, node: str, request: Request, answer: Any) -> None:
    """Hands a node's answer to the core."""
    if isinstance(request, AskState):
        core.on_state(node, answer)
    elif isinstance(request, Seal):
        promised, epoch, states = answer
        if promised:
            core.on_promised(node, request.epoch, states)
        else:
            core.on_refused(node, epoch)
    elif isinstance(request, CatchUp):
        core.on_caught_up(node, answer)
    elif isinstance(answer, int):
        core.on_refused(node, answer)
    else:
        core.on_truncated(node, request.vdl, answer)


class Stream:
    """A writer's Append stream to one node."""

    def __init__(self, writer: Writer, node: SimNode, *, installed: bool) -> None:
        self.writer, self.node, self.world = writer, node, writer.world
        self.installed = installed
        self.ended = False  # the node holds nothing any more
        self._connection = 0
        self._connected = installed
        self._waiting: deque[tuple[int, list[bytes]]] = deque()  # flush end, the batches for this node
        self._sent: deque[tuple[int, list[bytes]]] = deque()
        self._ends: deque[int] = deque()  # unacknowledged messages
        self._last_arrival_s = 0.0
        self._last_ack_s = 0.0
        if not installed:
            self.world.after(0.001, self._connect)

    def push(self, flush: Flush) -> None:
        held = self.writer.groups_of(self.node.name)
        batches = [batch for group, batch in flush.batches.items() if group in held]
        if batches:
            self._waiting.append((flush.end, batches))
            self._pump()

    def _pump(self) -> None:
        if not self._connected or not self._waiting or len(self._ends) >= WINDOW:
            return
        flushes = list(self._waiting)
        self._sent.extend(flushes)
        self._waiting.clear()
        self._ends.append(flushes[-1][0])
        message = join_append([batch for _, batches in flushes for batch in batches])
        # In order within a connection, and reliable until it breaks.
        self._last_arrival_s = max(self._last_arrival_s, self.world.now_s + self.world.delay_s())
        self.world.after(self._last_arrival_s - self.world.now_s, self._arrive, self._connection, message)

    def _arrive(self, connection: int, message: bytes) -> None:
        """At the node. What a broken connection still carried may arrive all the same."""
        if connection != self._connection and not self.world.chance(self.world.weather.partial_append):
            return
        if {self.node.name, self.writer.name} & self.world.cut_off or self.world.chance(self.world.weather.loss / 10):
            self._break(connection)
            return
        reply = self.writer.sim.at_node(self.node, lambda: self._store(message))
        if reply is None:
            self._break(connection)
            return
        self._last_ack_s = max(self._last_ack_s, self.world.now_s + self.world.delay_s())
        self.world.after(self._last_ack_s - self.world.now_s, self._replied, connection, reply)

    def _store(self, message: bytes) -> int | AuroraError:
        try:
            return self.node.append(message)
        except AuroraError as error:
            return error

    def _replied(self, connection: int, reply: int | AuroraError) -> None:
        """Back at the writer."""
        if connection != self._connection or not self.writer.alive or self.ended:
            return
        if isinstance(reply, int):
            while self._sent and self._sent[0][0] <= reply:
                self._sent.popleft()
            while self._ends and self._ends[0] <= reply:
                self._ends.popleft()
            self.writer.on_ack(self.node.name, reply)
            self._pump()
            return
        if isinstance(reply, FencedError):
            self.writer.on_fenced(self.node.name)
        elif isinstance(reply, StaleSegmentError):
            self.installed = False
        else:
            raise reply
        self._break(connection)

    def _break(self, connection: int) -> None:
        if connection == self._connection:
            self._connection += 1
            self._connected = False
            self.world.after(0.005 + self.world.rng.expovariate(50), self._connect)

    def _connect(self) -> None:
        if not self.writer.alive or self.ended:
            return
        if not self.installed:
            self.world.send(self.writer.name, self.node.name, self._truncate)
            self.world.after(RETRY_S * self.world.rng.uniform(0.5, 2), self._reconnect_unless_installed)
            return
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._ends.clear()
        if self.world.chance(0.2):  # as if the backlog had grown too long
            while self._waiting and self._waiting[0][0] <= self.writer.quorum.vdl:
                self._waiting.popleft()
        self._last_arrival_s = self._last_ack_s = 0.0
        self._connected = True
        self._pump()

    def _reconnect_unless_installed(self) -> None:
        if not self.installed:
            self._connect()

    def _truncate(self) -> None:
        """At the node."""

        def handle() -> Callable[[], None]:
            try:
                self.node.truncate(self.writer.truncation())
            except FencedError:
                return self._on_fenced
            return self._on_installed

        answer = self.writer.sim.at_node(self.node, handle)
        if answer is not None:
            self.world.send(self.node.name, self.writer.name, answer)

    def _on_fenced(self) -> None:
        self.writer.on_fenced(self.node.name)

    def _on_installed(self) -> None:
        if not self.installed and self.writer.alive:
            self.installed = True
            self._connect()
