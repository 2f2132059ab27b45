"""Which copies of a volume may be read from, going by what the nodes say of themselves: for whoever has no epoch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import QuorumLostError
from aurora_ray.log.sizes import read_quorum
from aurora_ray.volume.recovery import member_sets, membership_of, placement_of, told_members
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.recovery import SegmentState
    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode

POLL_S: Final = (0.02, 0.5)


async def ask_copies(spec: VolumeSpec, clients: Mapping[str, VolumeNode], timeout_s: float) -> Copies:
    """Asks the nodes until enough of them show the same history. Raises QuorumLostError."""
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_S[0]
    while True:
        left_s = max(0.05, deadline - time.monotonic())
        states = await ask_states(clients, min(CALL_TIMEOUT_S, left_s))
        copies = current_copies(spec.placements, states)
        if copies is not None:
            return copies
        if time.monotonic() + pause_s >= deadline:
            raise QuorumLostError(
                f"volume {spec.volume_id}: of {sorted(states)}, which answer, too few carry the same history"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S[1])


async def ask_states(clients: Mapping[str, VolumeNode], timeout_s: float) -> dict[str, list[SegmentState]]:
    """What those nodes have that answer in time."""
    asked = dict(clients)
    answers = await asyncio.gather(*(client.state(timeout_s) for client in asked.values()), return_exceptions=True)
    return {node: answer for node, answer in zip(asked, answers, strict=True) if not isinstance(answer, BaseException)}


@dataclass(frozen=True, slots=True)
class Copies:
    """Nodes that carry the current history, the VDL they know, and up to where each group's log is known to reach."""

    nodes: frozenset[str]
    vdl: int
    highest: Mapping[int, int]
    placements: Mapping[int, GroupPlacement]  # who holds the copies, as these say themselves

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
    to say, too: `placements` may be out of date, and lack groups that the volume was given since. Of one that is only
    being made nothing is known yet.
    """
    told = [state for own in states.values() for state in own]
    newest = max((state.installed_epoch for state in told), default=0)
    known = {group: membership_of(placement) for group, placement in placements.items()}
    members = told_members({**_made_since(known, told, newest), **known}, told)
    current = {
        node: {state.group: state for state in own if state.group in members}
        for node, own in states.items()
        if own and all(state.installed_epoch == newest for state in own if state.group in members)
    }
    highest: dict[int, int] = {}
    for group, held in members.items():
        for nodes in member_sets(held):
            copies = [current[node][group] for node in nodes if group in current.get(node, ())]
            if len(copies) < read_quorum(len(nodes)):
                return None
            highest[group] = max(highest.get(group, 0), *(state.highest_lsn for state in copies))
    vdl = max(state.vdl for own in states.values() for state in own)
    placed = {group: placement_of(group, held) for group, held in members.items()}
    return Copies(frozenset(current), vdl, highest, placed)


def _made_since(known: Collection[int], told: Iterable[SegmentState], newest: int) -> dict[int, Membership]:
    """The groups that `known` lacks and that enough copies have, all of them in the newest history."""
    copies: dict[int, list[Membership]] = {}
    for state in told:
        if state.group not in known and state.membership.members and state.installed_epoch == newest:
            copies.setdefault(state.group, []).append(state.membership)
    found = {group: max(held, key=lambda one: one.number) for group, held in copies.items()}
    return {
        group: held
        for group, held in found.items()
        if all(len(copies[group]) >= read_quorum(len(nodes)) for nodes in member_sets(held))
    }


def told_placements(
    placements: Mapping[int, GroupPlacement], states: Iterable[SegmentState]
) -> dict[int, GroupPlacement]:
    """Who holds the groups by what the copies say; also of groups that are new, which `placements` lacks."""
    known = {group: membership_of(placement) for group, placement in placements.items()}
    told = list(states)
    for state in told:
        if state.membership.members:
            known.setdefault(state.group, state.membership)
    return {group: placement_of(group, held) for group, held in told_members(known, told).items()}
