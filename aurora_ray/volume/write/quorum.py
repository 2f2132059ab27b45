"""Which flushes are durable: the quorum tracker, pure and on the hot path.

A flush is durable when at least 4 of the 6 members of *every* protection group that it touches have it on disk, and the
volume durable LSN (VDL) is the end of the last flush up to which all flushes are durable. While the members of a group
change, that means 4 of the 6 old ones and 4 of the 6 next ones.

A node's acknowledgement is one number per node: "all that this stream has carried up to this LSN is on my disk". The
tracker may take it as a prefix because of a rule that the streams keep: a stream never skips a flush that is not
durable yet, and after a reconnect it starts again with the first one that this node has not acknowledged. So for
every flush above the VDL, `acked >= flush_end` means that the node has it. (A node may lack flushes *below* the VDL;
gossip fills those.)

A set of members that comes in later has seen nothing of the flushes that were in flight then, and never will through
its streams: the set counts for later flushes only (its `since`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import write_quorum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.volume.spec import GroupPlacement

    MemberSet = tuple[tuple[str, ...], int]  # nodes, and the LSN from which on they count


class InFlight(NamedTuple):
    """A flush that is on its way: its end, the groups that it touches, its bytes, and when it was submitted.

    `submitted_s` is on the monotonic clock.
    """

    end: int
    groups: tuple[int, ...]
    nbytes: int = 0
    submitted_s: float = 0.0


class QuorumTracker:
    """Flushes in flight, acknowledgements by node, and the VDL that follows; a few comparisons each."""

    __slots__ = ("_acked", "_inflight", "_sets", "group_tails", "vdl")

    def __init__(self, placements: Mapping[int, GroupPlacement], vdl: int, group_tails: Mapping[int, int]) -> None:
        """Starts with all up to `vdl` durable; `group_tails`: the last flush end of each group up to there."""
        self.vdl = vdl
        self.group_tails: dict[int, int] = dict(group_tails)
        self._sets: dict[int, tuple[MemberSet, ...]] = {}
        self._acked: dict[str, int] = {}
        self._inflight: deque[InFlight] = deque()
        for placement in placements.values():
            self.place(placement)

    @property
    def inflight_count(self) -> int:
        """How many flushes are not durable yet."""
        return len(self._inflight)

    def place(self, placement: GroupPlacement) -> bool:
        """From now on a group, be it new or known, has these members. True if that moved the VDL.

        Before a set is left alone, the caller sees to it that a quorum of it has all up to its `since`. Raises
        UsageError if that is not even durable yet.
        """
        known = dict(self._sets.get(placement.group, ()))
        since = self._inflight[-1].end if self._inflight else self.vdl
        sets = tuple((nodes, known.get(nodes, since)) for nodes in placement.sets)
        if known and len(sets) == 1 and sets[0][1] > self.vdl:
            raise UsageError(f"{placement.node_ids} cannot take over group {placement.group} yet: VDL {self.vdl}")
        self._sets[placement.group] = sets
        self.group_tails.setdefault(placement.group, 0)
        for node in placement.all_node_ids:
            self._acked.setdefault(node, 0)
        return self._advance()

    def submit(self, flush: InFlight) -> None:
        """A flush goes to the streams. Raises UsageError unless it comes in LSN order and touches known groups."""
        last = self._inflight[-1].end if self._inflight else self.vdl
        if flush.end <= last:
            raise UsageError(f"flush {flush.end} comes after {last}: flushes go in LSN order")
        for group in flush.groups:
            if group not in self._sets:
                raise UsageError(f"flush {flush.end} touches group {group}, which the volume does not have")
        self._inflight.append(flush)

    def acked(self, node: str) -> int:
        """Up to where a node has acknowledged, in this epoch."""
        return self._acked.get(node, 0)

    def ack(self, node: str, lsn: int) -> bool:
        """A node has all that its stream carried up to `lsn`. True if the VDL moved."""
        if lsn <= self._acked[node]:
            return False
        self._acked[node] = lsn
        inflight = self._inflight
        # The other half of this pair is `Redo`'s, of the VDL. A node may have it from its peers, never from nobody.
        assert lsn <= (inflight[-1].end if inflight else self.vdl), "only what was submitted is acknowledged"  # noqa: S101
        if not inflight or lsn < inflight[0].end:
            return False
        return self._advance()

    def _advance(self) -> bool:
        inflight, before = self._inflight, self.vdl
        reach: dict[tuple[int, ...], int] = {}
        while inflight:
            flush_end, groups, _, _ = inflight[0]
            if (end := reach.get(groups)) is None:
                end = reach[groups] = min(self._reach(group) for group in groups)
            if flush_end > end:
                break
            inflight.popleft()
            self.vdl = flush_end
            for group in groups:
                self.group_tails[group] = flush_end
        assert self.vdl >= before, "what is durable stays durable"  # noqa: S101
        return self.vdl != before

    def _reach(self, group: int) -> int:
        """Up to where a write quorum of each set of a group's members has acknowledged."""
        acked = self._acked
        reach = -1
        for nodes, since in self._sets[group]:
            own = sorted([acked[node] for node in nodes], reverse=True)[write_quorum(len(nodes)) - 1]
            own = max(own, since)
            reach = own if reach < 0 else min(reach, own)
        return reach
