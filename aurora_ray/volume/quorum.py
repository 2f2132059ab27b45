"""Which flushes are durable: the quorum tracker, pure and on the hot path.

A flush is durable when at least 4 of the 6 members of *every* protection group that it touches have it on disk, and the
volume durable LSN (VDL) is the end of the last flush up to which all flushes are durable.

A node's acknowledgement is one number per node: "all that this stream has carried up to this LSN is on my disk". The
tracker may take it as a prefix because of a rule that the streams keep: a stream never skips a flush that is not
durable yet, and after a reconnect it starts again with the first one that this node has not acknowledged. So for
every flush above the VDL, `acked >= flush_end` means that the node has it. (A node may lack flushes *below* the VDL;
gossip fills those.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from aurora_ray.errors import UsageError
from aurora_ray.volume.spec import write_quorum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class QuorumTracker:
    """Flushes in flight, acknowledgements by node, and the VDL that follows; a few comparisons each."""

    __slots__ = ("_acked", "_inflight", "_members", "group_tails", "vdl")

    def __init__(self, members: Mapping[int, Sequence[str]], vdl: int, group_tails: Mapping[int, int]) -> None:
        """Starts with all up to `vdl` durable; `group_tails`: the last flush end of each group up to there."""
        self.vdl = vdl
        self.group_tails: dict[int, int] = dict(group_tails)
        self._members: dict[int, tuple[str, ...]] = {group: tuple(nodes) for group, nodes in members.items()}
        self._acked: dict[str, int] = {node: 0 for nodes in members.values() for node in nodes}
        self._inflight: deque[tuple[int, tuple[int, ...]]] = deque()

    @property
    def inflight_count(self) -> int:
        """How many flushes are not durable yet."""
        return len(self._inflight)

    def add_group(self, group: int, nodes: Sequence[str]) -> None:
        """Lets later flushes touch one more protection group."""
        self._members[group] = tuple(nodes)
        self.group_tails.setdefault(group, 0)
        for node in nodes:
            self._acked.setdefault(node, 0)

    def submit(self, flush_end: int, groups: tuple[int, ...]) -> None:
        """A flush has been handed to the streams. Flushes come in LSN order and touch known groups."""
        last = self._inflight[-1][0] if self._inflight else self.vdl
        if flush_end <= last:
            raise UsageError(f"flush {flush_end} comes after {last}: flushes go in LSN order")
        for group in groups:
            if group not in self._members:
                raise UsageError(f"flush {flush_end} touches group {group}, which the volume does not have")
        self._inflight.append((flush_end, groups))

    def ack(self, node: str, lsn: int) -> bool:
        """A node has all that its stream carried up to `lsn`. True if the VDL moved."""
        if lsn <= self._acked[node]:
            return False
        self._acked[node] = lsn
        inflight = self._inflight
        if not inflight or lsn < inflight[0][0]:
            return False
        return self._advance()

    def _advance(self) -> bool:
        inflight, before = self._inflight, self.vdl
        reach: dict[tuple[int, ...], int] = {}
        while inflight:
            flush_end, groups = inflight[0]
            if (end := reach.get(groups)) is None:
                end = reach[groups] = min(self._reach(group) for group in groups)
            if flush_end > end:
                break
            inflight.popleft()
            self.vdl = flush_end
            for group in groups:
                self.group_tails[group] = flush_end
        return self.vdl != before

    def _reach(self, group: int) -> int:
        """Up to where a write quorum of a group's members has acknowledged."""
        nodes = self._members[group]
        acked = self._acked
        return sorted([acked[node] for node in nodes], reverse=True)[write_quorum(len(nodes)) - 1]
