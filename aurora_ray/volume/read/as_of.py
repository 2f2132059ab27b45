"""A volume read as of one LSN by anybody, without an epoch and without disturbing its writer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import QuorumLostError
from aurora_ray.volume.node_client import NodeClient, close_all
from aurora_ray.volume.read.pages import READ_TIMEOUT_S, PageReader, PageRun, check_durable
from aurora_ray.volume.recovery import member_sets, membership_of, placement_of, told_members
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec, read_quorum
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.volume.recovery import SegmentState

POLL_S: Final = (0.02, 0.5)


class VolumeReader:
    """A volume read as of one LSN, without an epoch and without disturbing its writer."""

    @classmethod
    async def open(
        cls,
        spec: VolumeSpec,
        nodes: Sequence[NodeAddress],
        *,
        lsn: int | None = None,
        timeout_s: float,
        az: str | None = None,
    ) -> VolumeReader:
        """Opens at `lsn` (default: the highest that the nodes know to be durable). 3 of 6 copies suffice.

        Raises OutOfRangeError for an LSN that is not durable, QuorumLostError if too few copies answer.
        """
        clients = {node.node_id: NodeClient(node, spec.volume_id.bytes) for node in nodes}
        try:
            copies = await _ask_copies(spec, clients, timeout_s)
            point = copies.vdl if lsn is None else lsn
            check_durable(point, copies.vdl)
        except BaseException:
            await close_all(clients.values())
            raise
        return cls(spec, clients, point, copies, az)

    def __init__(
        self,
        spec: VolumeSpec,
        clients: dict[str, NodeClient],
        lsn: int,
        copies: Copies,
        az: str | None,
    ) -> None:
        """Not to be called: see `open`."""
        self.spec = spec
        self.lsn = lsn
        self._clients = clients
        self._required = copies.required(lsn)
        self._reader = PageReader(spec, copies.members, clients, copies.nodes.__contains__, az=az)

    async def read_pages(
        self, ranges: Sequence[tuple[int, int, int, int]], timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges (see PageRange) as of the reader's LSN, in the order asked."""
        return await self._reader.read_pages(ranges, self.lsn, self._required, timeout_s)

    async def read_file_table(self, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """The file table as of the reader's LSN."""
        return await self._reader.read_file_table(self.lsn, self._required[0], timeout_s)

    async def close(self) -> None:
        """Lets go of the nodes."""
        await close_all(self._clients.values())


async def _ask_copies(spec: VolumeSpec, clients: Mapping[str, NodeClient], timeout_s: float) -> Copies:
    """Asks the nodes until enough of them show the same history. Raises QuorumLostError."""
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_S[0]
    while True:
        left_s = max(0.05, deadline - time.monotonic())
        answers = await asyncio.gather(
            *(client.state(min(CALL_TIMEOUT_S, left_s)) for client in clients.values()), return_exceptions=True
        )
        states = {
            node: answer for node, answer in zip(clients, answers, strict=True) if not isinstance(answer, BaseException)
        }
        copies = current_copies(spec.placements, states)
        if copies is not None:
            return copies
        if time.monotonic() + pause_s >= deadline:
            raise QuorumLostError(
                f"volume {spec.volume_id}: of {sorted(states)}, which answer, too few carry the same history"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S[1])


@dataclass(frozen=True, slots=True)
class Copies:
    """Nodes that carry the current history, the VDL they know, and up to where each group's log is known to reach."""

    nodes: frozenset[str]
    vdl: int
    highest: Mapping[int, int]
    members: Mapping[int, tuple[str, ...]]  # everybody who holds a copy of a group

    def required(self, lsn: int) -> dict[int, int]:
        """How complete a copy of each group must be to be read as of `lsn`.

        Up to `lsn` where there is later log. Otherwise up to the group's last batch, and `highest` is that: any read
        quorum includes a copy that has the last durable batch, though not necessarily everything before it.
        """
        return {group: min(lsn, highest) for group, highest in self.highest.items()}


def current_copies(
    placements: Mapping[int, GroupPlacement], states: Mapping[str, Sequence[SegmentState]]
) -> Copies | None:
    """What may be read from, going by the nodes' states; None unless 3 of 6 of every group carry the newest history
    seen (of the old members and of the next ones, while they change).

    A node with an older history is left out: what it has may never have happened. Who the members are is for the nodes
    to say, too: `placements` may be out of date.
    """
    known = {group: membership_of(placement) for group, placement in placements.items()}
    members = told_members(known, (state for own in states.values() for state in own))
    newest = max((state.installed_epoch for own in states.values() for state in own), default=0)
    current = {
        node: {state.group: state for state in own}
        for node, own in states.items()
        if own and all(state.installed_epoch == newest for state in own)
    }
    highest: dict[int, int] = {}
    for group, held in members.items():
        for nodes in member_sets(held):
            copies = [current[node][group] for node in nodes if group in current.get(node, ())]
            if len(copies) < read_quorum(len(nodes)):
                return None
            highest[group] = max(highest.get(group, 0), *(state.highest_lsn for state in copies))
    vdl = max(state.vdl for own in states.values() for state in own)
    everybody = {group: placement_of(group, held).all_node_ids for group, held in members.items()}
    return Copies(frozenset(current), vdl, highest, everybody)
