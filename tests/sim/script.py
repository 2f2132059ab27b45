"""Recoveries and writes told step by step, without a network: for interleavings that chance seldom finds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from aurora_ray.errors import FencedError
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.record import RecordBuilder, page_full
from aurora_ray.log.segment_rules import HISTORY_MAX
from aurora_ray.log.wire import join_append
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.volume.recovery import (
    AskState,
    CatchUp,
    Phase,
    Recovered,
    Recovery,
    Request,
    Seal,
    SegmentState,
    Truncate,
)
from aurora_ray.volume.spec import GroupPlacement
from aurora_ray.volume.volume_node import decode_state, encode_truncation
from aurora_ray.volume.write.change import Change, CreateCopy, GroupMembers, InstallMembers
from tests.sim.node import SimNode
from tests.sim.oracle import Flush, Oracle

if TYPE_CHECKING:
    from collections.abc import Iterable

NODES = tuple("abcdef")
OTHERS = tuple("uvwxyz")
VOLUME = b"v" * 16


class Script:
    """One group on six nodes, and six others. Nodes are named by letters: "abcd"."""

    def __init__(self, history_max: int = HISTORY_MAX) -> None:
        self.history_max = history_max
        self.placements = {0: GroupPlacement(0, NODES)}
        self.nodes = {name: SimNode(name, VOLUME, {0: NODES}, random.Random(0)) for name in NODES + OTHERS}
        self.oracle = Oracle(self.placements, self.nodes)

    def recovery(self, min_epoch: int, who: str, *, start: GroupPlacement | None = None) -> Recovery:
        """A recovery that has got as far as its decision, with the promises of `who`; it knows of `start` only."""
        core = Recovery({0: start} if start else self.placements, min_epoch, self.history_max)
        for _ in range(2):
            for name in who:
                self.step(core, name)
        return core

    def step(self, core: Recovery, name: str) -> None:
        """Asks one node what the recovery wants to know of it now."""
        request = core.request(name)
        if request is not None:
            before = core.phase
            self._ask(core, name, request)
            if core.phase >= Phase.PUBLISH > before:
                self.oracle.opened(core.epoch, core.end_lsn, core.history, core.placements())
            self.oracle.check_node(self.nodes[name])

    def open(self, min_epoch: int, who: str, *, start: GroupPlacement | None = None) -> Recovery:
        """A recovery that opens, in touch with `who` only; who also gossip with each other."""
        core = self.recovery(min_epoch, who, start=start)
        for _ in range(8):
            for name in who:
                if isinstance(core.request(name), CatchUp):
                    self.gossip(name, who)
                self.step(core, name)
        assert isinstance(core.outcome, Recovered), core.describe()
        for name in set(who) - core.outcome.installed:
            self.tell(core, name)
        return core

    def tell(self, core: Recovery, name: str) -> None:
        """What the writer's stream to a node does first."""
        assert isinstance(core.outcome, Recovered)
        order = Truncate(core.epoch, core.history, core.end_lsn, core.outcome.tails, core.outcome.members)
        if self.nodes[name].stores:
            self._ask(core, name, order)

    def members(self, core: Recovery) -> GroupMembers:
        """Of the writer that a recovery has opened for."""
        assert isinstance(core.outcome, Recovered)
        return GroupMembers(core.outcome.members, core.epoch, core.end_lsn, core.outcome.tails)

    def change(
        self, core: Recovery, members: GroupMembers, wanted: GroupPlacement, who: str, *, tail: int, done: bool = True
    ) -> None:
        """A step of a change, with what must come before it, in touch with `who` only; whether it is done must be as
        said."""
        current = None
        while current != wanted:
            change = members.start(wanted)
            assert change is not None
            for _ in range(2):
                for name in who:
                    self._ask_change(core, members, change, name, tail)
            assert change.done == done, change.describe()
            if not done:
                return
            current = change.wanted
            members.finish(change, tail, tail)
            self.oracle.placed(core.epoch, current)

    def _ask_change(self, core: Recovery, members: GroupMembers, change: Change, name: str, vdl: int) -> None:
        request, node = change.request(name), self.nodes[name]
        if isinstance(request, CreateCopy):
            node.create_copy(0, request.members)
            change.on_created(name)
        elif isinstance(request, InstallMembers):
            assert isinstance(core.outcome, Recovered)
            held = {**members.held, 0: request.membership}
            message = self._truncation(Truncate(core.epoch, core.history, core.end_lsn, core.outcome.tails, held))
            change.on_installed(name, [decode_state(state) for state in node.truncate(message).segments])
        elif request is not None:
            change.on_state(name, self.states(name)[name], vdl)

    def write(self, epoch: int, start: int, prev: int, who: str, *, vdl: int, durable: bool) -> int:
        """Brings one flush to `who`; its end. With `durable`, the writer is told so."""
        builder = RecordBuilder(start)
        builder.add(page_full(1, 1, b"epoch %d" % epoch))
        end = builder.end_lsn
        (part,) = builder.take()
        batch = encode_batch(
            group=0,
            volume=VOLUME,
            epoch=epoch,
            prev_lsn=prev,
            flush_start=start,
            flush_end=end,
            time_us=0,
            vdl=vdl,
            record_count=1,
            groups=(0,),
            records=part.payload,
        )
        flush = Flush(epoch, start, end, {0: batch})
        self.oracle.submitted(flush)
        for name in who:
            self.nodes[name].append(join_append([batch]))
        if durable:
            self.oracle.acknowledged(epoch, [flush], {0: []})  # the placement in force is looked at anyway
        for name in who:
            self.oracle.check_node(self.nodes[name])
        return end

    def gossip(self, name: str, peers: Iterable[str]) -> None:
        """A node repairs itself from these peers."""
        node = self.nodes[name]
        for peer in peers:
            for state in self.nodes[peer].state():
                wanted = node.adopt(state)
                if wanted is not None:
                    node.store_fetched(0, self.nodes[peer].log_after(0, *wanted), state.installed_epoch)

    def states(self, who: str) -> dict[str, list[SegmentState]]:
        """What nodes answer to State."""
        return {name: [decode_state(state) for state in self.nodes[name].state()] for name in who}

    def _ask(self, core: Recovery, name: str, request: Request) -> None:
        node, owner = self.nodes[name], b"%016d" % core.epoch
        if isinstance(request, AskState):
            core.on_state(name, self.states(name)[name])
        elif isinstance(request, Seal):
            reply = node.seal(request.epoch, owner)
            if reply.promised:
                core.on_promised(name, request.epoch, [decode_state(state) for state in reply.segments])
            else:
                core.on_refused(name, reply.promised_epoch)
        elif isinstance(request, CatchUp):
            core.on_caught_up(name, {group: segment.scl for group, segment in node.by_group.items()})
        else:
            message = self._truncation(request)
            try:
                states = node.truncate(message).segments
            except FencedError:
                core.on_refused(name, max(state.promised_epoch for state in node.state()))
            else:
                core.on_truncated(name, request.vdl, [decode_state(state) for state in states])

    def _truncation(self, order: Truncate) -> pb.TruncateRequest:
        return pb.TruncateRequest(
            volume=VOLUME,
            epoch=order.epoch,
            owner=b"%016d" % order.epoch,
            truncations=[encode_truncation(cut) for cut in order.truncations],
            vdl=order.vdl,
            members=[
                pb.GroupMembers(group=group, number=held.number, members=held.members, next_members=held.next_members)
                for group, held in order.members.items()
            ],
        )
