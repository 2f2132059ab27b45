"""Knows everything and complains: what must hold after every step, whatever the network and the power do.

The *truth* is the log as it must be for ever: it grows when a writer is told that a flush is durable, and when a
recovery has a quorum of copies complete up to its end. It never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora_ray.log.segment_rules import annulled
from aurora_ray.log.sizes import write_quorum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aurora_ray.log.segment_rules import Truncation
    from aurora_ray.volume.spec import GroupPlacement
    from tests.sim.node import SimNode
    from tests.sim.store import MemoryStore


class InvariantError(AssertionError):
    """The simulator complains."""


@dataclass(frozen=True)
class Flush:
    """A flush as its writer made it."""

    epoch: int
    start: int
    end: int
    batches: Mapping[int, bytes]


class Oracle:
    """See the module."""

    def __init__(self, placements: Mapping[int, GroupPlacement], nodes: Mapping[str, SimNode]) -> None:
        self.end_lsn = 0
        self.epochs: set[int] = set()  # that recoveries have opened
        self._checked: dict[tuple[str, int], tuple[int, ...]] = {}  # what of a copy was last looked at
        self._placements = dict(placements)  # gone by in the highest epoch that was opened
        self._nodes = nodes
        self._submitted: dict[int, list[Flush]] = {}  # flush start -> flushes
        self._truth: dict[int, dict[int, bytes]] = {group: {} for group in placements}  # group -> flush end -> batch
        self._truth_epochs: dict[int, int] = {}  # flush end -> epoch
        self._openings: list[tuple[int, int]] = []  # (epoch, end)

    @property
    def placements(self) -> Mapping[int, GroupPlacement]:
        """Gone by in the highest epoch that was opened."""
        return self._placements

    def check_followed(self, end: int, batches: Mapping[int, bytes], who: str) -> None:
        """Somebody who follows the log was given a flush."""
        if end > self.end_lsn:
            raise InvariantError(f"{who} is given flush {end}, but the log is durable up to {self.end_lsn} only")
        durable = {group: truth[end] for group, truth in self._truth.items() if end in truth}
        if batches != durable:
            raise InvariantError(f"{who} is given another flush {end} than the volume has")

    @property
    def flush_count(self) -> int:
        """How many flushes have become durable."""
        return len(self._truth_epochs)

    # ---- what writers are told

    def submitted(self, flush: Flush) -> None:
        self._submitted.setdefault(flush.start, []).append(flush)

    def placed(self, epoch: int, placement: GroupPlacement) -> None:
        """A writer goes by a placement from now on."""
        if epoch >= max(self.epochs, default=0):
            self._placements[placement.group] = placement
            self.check_durability()

    def acknowledged(
        self, epoch: int, flushes: Sequence[Flush], sets: Mapping[int, Sequence[tuple[Sequence[str], int]]]
    ) -> None:
        """A writer's VDL has passed these. `sets`: the members that it has to ask, and from which LSN on."""
        for flush in flushes:
            for group, batch in flush.batches.items():
                for nodes, since in sets[group]:
                    if flush.end > since:
                        self._check_quorum(flush.end, group, batch, nodes, "acknowledged")
            overruled = [(other, end) for other, end in self._openings if other > epoch and end < flush.end]
            if overruled:
                raise InvariantError(
                    f"epoch {epoch} was told that LSN {flush.end} is durable, but epoch {overruled[0][0]} has opened"
                    f" the volume at {overruled[0][1]}: two epochs reach a quorum"
                )
            self._make_true(flush, "acknowledged")

    def opened(
        self, epoch: int, end_lsn: int, history: Sequence[Truncation], placements: Iterable[GroupPlacement] = ()
    ) -> None:
        """A recovery has found a quorum of copies with its history and complete up to its end."""
        if epoch in self.epochs:
            raise InvariantError(f"epoch {epoch} was opened twice")
        if any(other > epoch and end < end_lsn for other, end in self._openings):
            raise InvariantError(f"epoch {epoch} opened at {end_lsn} after a higher epoch opened below")
        if end_lsn < self.end_lsn and epoch > max(self.epochs, default=0):
            raise InvariantError(
                f"epoch {epoch} opened at {end_lsn}, but everything up to {self.end_lsn} was durable:"
                " acknowledged redo is lost"
            )
        if epoch > max(self.epochs, default=0):
            self._placements.update({placement.group: placement for placement in placements})
        self.epochs.add(epoch)
        self._openings.append((epoch, end_lsn))
        while self.end_lsn < end_lsn:
            candidates = self._submitted.get(self.end_lsn, ())
            found = [flush for flush in candidates if not annulled(history, flush.epoch, flush.end)]
            if len(found) != 1:
                which = [flush.epoch for flush in found]
                raise InvariantError(
                    f"epoch {epoch} opened at {end_lsn}; past {self.end_lsn} go flushes of epochs {which}"
                )
            self._make_true(found[0], f"found by epoch {epoch}")
        self.check_durability()
        for node in self._nodes.values():
            self.check_node(node)

    def check_durability(self) -> None:
        """All that is durable is on a write quorum of disks, whatever has been truncated or crashed since."""
        for group, truth in self._truth.items():
            for end, batch in truth.items():
                self._check_quorum(end, group, batch, self._placements[group].node_ids, "durable")

    def _check_quorum(self, end: int, group: int, batch: bytes, nodes: Sequence[str], how: str) -> None:
        stores = [self._nodes[node].stores.get(group) for node in nodes]
        holders = [n for n, store in zip(nodes, stores, strict=True) if store and store.has_durable(end, batch)]
        if len(holders) < write_quorum(len(nodes)):
            raise InvariantError(f"LSN {end} of group {group}, {how}, is on {holders} only, of {list(nodes)}")

    def _make_true(self, flush: Flush, how: str) -> None:
        if flush.end <= self.end_lsn:
            if any(self._truth[group].get(flush.end) != batch for group, batch in flush.batches.items()):
                raise InvariantError(
                    f"flush {flush.end} of epoch {flush.epoch}, {how}, differs from what is durable there"
                )
            return
        if flush.start != self.end_lsn:
            raise InvariantError(
                f"flush {flush.end}, {how}, begins at {flush.start}, but the log ends at {self.end_lsn}"
            )
        for group, batch in flush.batches.items():
            self._check_quorum(flush.end, group, batch, self._placements[group].node_ids, how)
            self._truth[group][flush.end] = batch
        self._truth_epochs[flush.end] = flush.epoch
        self.end_lsn = flush.end

    # ---- what nodes have

    def check_node(self, node: SimNode) -> None:
        """Called after every step of a node."""
        newest = max(self.epochs, default=0)
        for (_, group), segment in node.segments.items():
            store, vdl, installed = node.stores[group], segment.vdl, segment.meta.epochs.installed_epoch
            seen = (store.version, segment.scl, vdl, installed, newest, self.end_lsn)
            if self._checked.get((node.name, group)) == seen:
                continue
            self._checked[node.name, group] = seen
            if vdl > self.end_lsn:
                raise InvariantError(f"{node.name} calls {vdl} durable, but the log is so up to {self.end_lsn} only")
            if installed >= newest:  # nothing but the truth, all of it
                self._check_content(node.name, store, group, self.end_lsn)
                self._check_prefix(node.name, store, group, min(segment.scl, self.end_lsn))
            else:  # what may be coalesced at least must be true for ever
                self._check_content(node.name, store, group, min(vdl, segment.scl))

    def check_read(self, node: SimNode, group: int, lsn: int, who: str) -> None:
        """Somebody reads a group from this node as of `lsn`."""
        self._check_prefix(f"{who} reads {node.name}, which", node.stores[group], group, lsn)
        self._check_content(f"{who} reads {node.name}, which", node.stores[group], group, lsn)

    def _check_content(self, who: str, store: MemoryStore, group: int, bound_lsn: int) -> None:
        truth = self._truth[group]
        for end, batch in store.by_lsn.items():
            if end <= bound_lsn and truth.get(end) != batch:
                raise InvariantError(f"{who} has other content at LSN {end} of group {group} than the volume")

    def _check_prefix(self, who: str, store: MemoryStore, group: int, lsn: int) -> None:
        missing = [end for end in self._truth[group].keys() - store.by_lsn.keys() if end <= lsn]
        if missing:
            raise InvariantError(f"{who} lacks LSN {min(missing)} of group {group}, below {lsn}")

    def check_all_equal(self) -> None:
        """At the end, with everybody up and in touch: every copy holds the truth, all of it, and nothing else."""
        for group, placement in self._placements.items():
            for name in placement.all_node_ids:
                store = self._nodes[name].stores[group]
                log = {end: batch for end, batch in store.by_lsn.items() if end <= self.end_lsn}
                if log != self._truth[group]:
                    raise InvariantError(f"{name} does not hold the durable log of group {group} at the end")
