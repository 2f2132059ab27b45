"""Opening a volume for writing: who comes last wins, and finds the durable end. Pure: answers in, requests out.

A recovery runs in five phases. Each needs the same answer from a write quorum (4 of 6) of every protection group:

    ASK       what have you promised?          -> an epoch above all of it
    SEAL      promise this epoch to me         -> no lower epoch can reach a quorum; the answers show what is there
    INSTALL   carry this history from now on   -> what lies above the end that was found never happened
    CATCH_UP  fetch from your peers up to the end (then INSTALL again, to be sure of the promise)
    PUBLISH   everything up to the end is durable

Reading alone would be content with 3 of 6, which always meet the 4 that hold an acknowledged flush. The seal waits
for 4 all the same: a recovery that found no more could not install its result anywhere near a quorum, and with 4
promises an epoch has one owner at most, so no two histories of one epoch can ever exist.

**The end.** The highest VDL that any answer shows is durable for certain. Above it, a flush counts if every group
that it touches has its batch on some answering copy, and nothing before it is missing: such a flush may have been
acknowledged. Flushes that count although they were not acknowledged are completed (CATCH_UP copies them to a quorum)
before anybody sees them. The VDL that INSTALL spreads is still the old one: only when a quorum of copies is complete
up to the new end does PUBLISH call it durable. Otherwise a recovery that dies half-way would leave a floor that a
later one might not find the data for.

**The history.** It is the one with the highest installed epoch among the answers, plus one more truncation: (epoch,
end). Not the union of all histories: see aurora_ray/log/segment_rules.py, also for how old truncations are dropped.

**Membership.** Where the members of a group are being changed, each phase needs its quorum in the old set and in the
next one. Who the members are is for the copies to say: the caller's placement may be out of date, and is where the
asking starts. Reading alone would be content with 3 of 6 of either set while every writer needs both; but a writer that
has begun, committed or aborted a change may still, or already, need only one of them, and 4 of 6 of both meets it
whichever it is.

Drive it like this: ask `request(node)` what that node should be asked now (None: nothing), send it, hand the answer
to `on_…`, until `outcome` is set. Losing, repeating and reordering answers is harmless. There is no clock and no
randomness in here; time-outs and back-off are the shell's (takeover.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from aurora_ray.errors import UsageError
from aurora_ray.log.segment_rules import (
    HISTORY_MAX,
    NO_MEMBERS,
    Membership,
    Truncation,
    annulled,
    extend_history,
)
from aurora_ray.log.sizes import write_quorum
from aurora_ray.volume.spec import GroupPlacement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet


# ---- what nodes tell


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A stored batch, without its records."""

    epoch: int
    flush_start: int
    flush_end: int
    flush_groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What one copy of a group has. `tail`: its batches that end above `vdl`; `last_time_us`: when its last one was
    written (both in answers to Seal only)."""

    group: int
    promised_epoch: int
    installed_epoch: int
    truncations: tuple[Truncation, ...]
    scl: int
    vdl: int
    highest_lsn: int
    tail: tuple[BatchInfo, ...] = ()
    membership: Membership = NO_MEMBERS
    last_time_us: int = 0


# ---- what to ask a node for


@dataclass(frozen=True, slots=True)
class AskState:
    """Tell me what you have promised."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Promise `epoch` to me."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Carry this history and these members; all up to `vdl` is durable; `tails`: last flush end of groups, if known."""

    epoch: int
    truncations: tuple[Truncation, ...]
    vdl: int
    tails: Mapping[int, int]
    members: Mapping[int, Membership] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Fetch from your peers until you are complete up to these LSNs (group -> LSN)."""

    tails: Mapping[int, int]


Request = AskState | Seal | Truncate | CatchUp


# ---- how it ends


@dataclass(frozen=True, slots=True)
class Recovered:
    """The volume is open for `epoch` at `end_lsn`. `installed`: the nodes that carry the history already.

    `members`: who holds the groups in truth. `last_time_us`: no batch below the end was written later, by its writer's
    clock; who writes now says later times, whatever its own clock says.
    """

    epoch: int
    truncations: tuple[Truncation, ...]
    end_lsn: int
    tails: Mapping[int, int]
    installed: frozenset[str]
    members: Mapping[int, Membership] = field(default_factory=dict)
    last_time_us: int = 0


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Somebody holds this higher epoch. Start again above it, after a random wait, or leave it to them."""

    epoch: int


class Phase(IntEnum):
    """Where a recovery stands."""

    ASK = 0
    SEAL = 1
    INSTALL = 2
    CATCH_UP = 3
    PUBLISH = 4
    DONE = 5


class Recovery:
    """One attempt, with one epoch."""

    def __init__(
        self,
        placements: Mapping[int, GroupPlacement],
        min_epoch: int = 1,
        history_max: int = HISTORY_MAX,
        epoch_limit: int = 1 << 63,
    ) -> None:
        """Its epoch will be at least `min_epoch` and below `epoch_limit`, or it is overtaken before it seals."""
        self.phase = Phase.ASK
        self.epoch = 0
        self.outcome: Recovered | Overtaken | None = None
        self._members = {group: membership_of(placement) for group, placement in placements.items()}
        self._min_epoch, self._epoch_limit, self._history_max = min_epoch, epoch_limit, history_max
        self._asked: dict[str, dict[int, SegmentState]] = {}
        self._sealed: dict[str, dict[int, SegmentState]] = {}
        self._installed: dict[
            str, dict[int, SegmentState]
        ] = {}  # node -> group -> as it was once it carried our history
        self._complete: dict[int, set[str]] = {group: set() for group in placements}
        self._caught_up: set[str] = set()  # say that they are complete; not confirmed
        self._published: dict[str, dict[int, SegmentState]] = {}
        self._overtaken: dict[str, int] = {}  # node -> the higher epoch that it has promised
        self.history: tuple[Truncation, ...] = ()  # once decided
        self._floor_lsn = self._last_time_us = 0
        self.end_lsn = 0  # once decided; durable from PUBLISH on
        self._tails: dict[int, int] = {}

    # ---- decisions out

    def request(self, node: str) -> Request | None:
        """What `node` should be asked now."""
        if self.outcome is not None or node in self._overtaken or not self._groups_of(node):
            return None
        if self.phase is Phase.ASK:
            return None if node in self._asked else AskState()
        if self.phase is Phase.SEAL:
            return None if node in self._sealed else Seal(self.epoch)
        if node not in self._installed:  # whether it promised or not: the epoch is ours by the promises of a quorum
            return self._truncate()
        return self._finishing_request(node)

    def _finishing_request(self, node: str) -> Request | None:
        if self.phase is Phase.CATCH_UP:
            incomplete = [group for group in self._groups_of(node) if node not in self._complete[group]]
            if incomplete and node in self._caught_up:
                return self._truncate()
            return CatchUp({group: self._tails[group] for group in incomplete}) if incomplete else None
        if self.phase is Phase.PUBLISH and node not in self._published:
            return self._truncate()
        return None

    def describe(self) -> str:
        """One sentence on what it waits for, for errors and logs."""
        have: Mapping[Phase, AbstractSet[str]] = {
            Phase.ASK: self._asked.keys(),
            Phase.SEAL: self._sealed.keys(),
            Phase.INSTALL: self._installed.keys(),
            Phase.CATCH_UP: set.intersection(*self._complete.values()) if self._complete else set(),
            Phase.PUBLISH: self._published.keys(),
            Phase.DONE: self._published.keys(),
        }
        return (
            f"recovery at epoch {self.epoch} is in phase {self.phase.name} with answers from {sorted(have[self.phase])}"
        )

    # ---- events in

    def on_state(self, node: str, states: Sequence[SegmentState]) -> None:
        """A node's answer to AskState."""
        if self.phase is not Phase.ASK:
            return
        self._asked[node] = {state.group: state for state in states}
        self._learn_members(self._asked)
        if self._quorum(self._holders(self._asked)):
            promised = max(state.promised_epoch for copies in self._asked.values() for state in copies.values())
            self.epoch = max(self._min_epoch, promised + 1)
            if self.epoch >= self._epoch_limit:
                self.outcome = Overtaken(promised)
                return
            self.phase = Phase.SEAL

    def on_promised(self, node: str, epoch: int, states: Sequence[SegmentState]) -> None:
        """A node has promised us `epoch`, and shows what it has."""
        if self.phase < Phase.SEAL or epoch != self.epoch or node in self._sealed:
            return
        self._sealed[node] = {state.group: state for state in states}
        if self.phase is Phase.SEAL:
            self._learn_members(self._sealed)
            if self._quorum(self._holders(self._sealed)):
                self._decide()
                self.phase = Phase.INSTALL

    def on_refused(self, node: str, promised_epoch: int) -> None:
        """A node will not follow us: it has promised an epoch that is not ours."""
        if self.outcome is not None or self.phase is Phase.ASK or promised_epoch < self.epoch:
            return
        self._overtaken[node] = promised_epoch
        # Before the decision nothing is lost by starting again; after it we go on as long as a quorum can follow.
        left = {group: set(_all_nodes(held)) - self._overtaken.keys() for group, held in self._members.items()}
        if self.phase is Phase.SEAL or not self._quorum(left):
            self.outcome = Overtaken(max(self._overtaken.values()))

    def on_truncated(self, node: str, vdl: int, states: Sequence[SegmentState]) -> None:
        """A node carries our history, sent with `vdl`, and has promised no other epoch."""
        if self.outcome is not None or self.phase < Phase.INSTALL:
            return
        if any((state.installed_epoch, state.promised_epoch) != (self.epoch, self.epoch) for state in states):
            return
        if any(state.truncations != self.history for state in states):
            return  # not what we have told: an epoch has one history, so this copy counts for nothing
        self._installed[node] = {state.group: state for state in states}
        self._caught_up.discard(node)
        if self.phase is Phase.INSTALL and self._quorum(self._holders(self._installed)):
            self._fix_tails()
            self.phase = Phase.CATCH_UP
        if self.phase is Phase.CATCH_UP:
            self._count_complete()
        if self.phase is Phase.PUBLISH and vdl == self.end_lsn:
            self._published[node] = self._installed[node]
            self._finish_if(self._published)

    def on_caught_up(self, node: str, scls: Mapping[int, int]) -> None:
        """A node says that it is complete up to these LSNs (group -> SCL).

        That does not count yet. It may have promised a higher epoch meanwhile, whose recovery did not see what the node
        has fetched since and may be about to annul it. So the node is asked to install our history once more, which it
        refuses in that case; what it has by then, every higher epoch's recovery will see.
        """
        if self.phase is Phase.CATCH_UP and all(scl >= self._tails.get(group, 0) for group, scl in scls.items()):
            self._caught_up.add(node)

    def _count_complete(self) -> None:
        for node, copies in self._installed.items():
            for group, state in copies.items():
                if group in self._tails and state.scl >= self._tails[group]:
                    self._complete[group].add(node)
        if self._quorum(self._complete):
            self.phase = Phase.PUBLISH
            if self._floor_lsn == self.end_lsn:  # nothing to publish: INSTALL has told the end as durable already
                self._finish_if(self._installed)

    def _learn_members(self, answers: Mapping[str, Mapping[int, SegmentState]]) -> None:
        """Goes by what the copies say of themselves."""
        self._members = told_members(self._members, (state for copies in answers.values() for state in copies.values()))

    # ---- decisions

    def _decide(self) -> None:
        """Finds the history to go on from and the end of the log."""
        states = [state for copies in self._sealed.values() for state in copies.values()]
        newest = max(states, key=lambda state: state.installed_epoch)
        self._floor_lsn = max(state.vdl for state in states)
        self._last_time_us = max(state.last_time_us for state in states)
        self.end_lsn, self._tails = find_end(self._members, newest.truncations, self._floor_lsn, states)
        cut = Truncation(self.epoch, self.end_lsn)
        self.history = extend_history(newest.truncations, cut, self._floor_lsn, self._history_max)
        # The other half of each pair is `Segment.install`'s.
        assert self.end_lsn >= self._floor_lsn, "what is durable is never annulled"  # noqa: S101
        assert newest.installed_epoch < self.epoch, "a history is installed once it is promised"  # noqa: S101
        assert self.history[-1] == (last := max(self.history)) and last.epoch == self.epoch  # noqa: S101, PT018

    def _fix_tails(self) -> None:
        """Completes the tails: where nothing of a group lies above the floor, the installed copies show its last batch.

        What is above the end is annulled there by now, and any write quorum of copies includes one with that batch.
        """
        for group in self._members:
            if group not in self._tails:
                copies = [states[group] for states in self._installed.values() if group in states]
                self._tails[group] = max(state.highest_lsn for state in copies)

    def _truncate(self) -> Truncate:
        vdl = self.end_lsn if self.phase is Phase.PUBLISH else self._floor_lsn
        return Truncate(self.epoch, self.history, vdl, dict(self._tails), dict(self._members))

    def _finish_if(self, answers: Mapping[str, Mapping[int, SegmentState]]) -> None:
        if self._quorum(self._holders(answers)):
            assert all(self._tails[group] <= self.end_lsn for group in self._members)  # noqa: S101 - no log above the end
            done = frozenset(answers)
            self.phase = Phase.DONE
            members, tails = dict(self._members), dict(self._tails)
            self.outcome = Recovered(self.epoch, self.history, self.end_lsn, tails, done, members, self._last_time_us)

    # ---- members

    def placements(self) -> list[GroupPlacement]:
        """Who holds the groups, as far as is known."""
        return [placement_of(group, held) for group, held in self._members.items()]

    def _groups_of(self, node: str) -> list[int]:
        return [group for group, held in self._members.items() if node in held.members or node in held.next_members]

    def _holders(self, answers: Mapping[str, Mapping[int, SegmentState]]) -> dict[int, set[str]]:
        return {
            group: {node for node in _all_nodes(held) if group in answers.get(node, ())}
            for group, held in self._members.items()
        }

    def _quorum(self, holders: Mapping[int, AbstractSet[str]]) -> bool:
        """Whether every group has a write quorum of each set of its members among its `holders`."""
        return all(
            len(holders[group] & set(nodes)) >= write_quorum(len(nodes))
            for group, held in self._members.items()
            for nodes in member_sets(held)
        )


# ---- members


def membership_of(placement: GroupPlacement, number: int = 0) -> Membership:
    """A placement as the copies keep it."""
    return Membership(number, placement.node_ids, placement.next_node_ids or ())


def placement_of(group: int, held: Membership) -> GroupPlacement:
    """The inverse of `membership_of`."""
    return GroupPlacement(group, held.members, held.next_members or None)


def member_sets(held: Membership) -> tuple[tuple[str, ...], ...]:
    """The sets in each of which a quorum is needed."""
    return (held.members, held.next_members) if held.next_members else (held.members,)


def _all_nodes(held: Membership) -> tuple[str, ...]:
    return (*held.members, *held.next_members)


def told_members(known: Mapping[int, Membership], states: Iterable[SegmentState]) -> dict[int, Membership]:
    """`known`, where no copy says otherwise; else the membership of the highest installed epoch and, in it, number."""
    newest: dict[int, tuple[int, Membership]] = {}
    for state in states:
        if state.membership.members and state.group in known:
            said = (state.installed_epoch, state.membership)
            newest[state.group] = max(said, newest.get(state.group, said))
    return {**known, **{group: held for group, (_, held) in newest.items()}}


def find_end(
    members: Collection[int],
    history: Sequence[Truncation],
    floor_lsn: int,
    states: Iterable[SegmentState],
) -> tuple[int, dict[int, int]]:
    """Walks upward from `floor_lsn` over the flushes that are whole on the answering copies.

    Gives the end and, for each group touched on the way, its last flush end. Raises UsageError if a flush touches a
    group that `members` lacks: the caller's idea of the volume is too old, and ending the log there would lose data.
    """
    found: dict[int, dict[BatchInfo, set[int]]] = {}  # flush start -> flush -> groups whose batch is there
    for state in states:
        for batch in state.tail:
            if not annulled(history, batch.epoch, batch.flush_end):
                found.setdefault(batch.flush_start, {}).setdefault(batch, set()).add(state.group)
    end, tails = floor_lsn, {}
    while end in found:
        whole = [batch for batch, groups in found[end].items() if groups.issuperset(batch.flush_groups)]
        unknown = {group for batch in found[end] for group in batch.flush_groups}.difference(members)
        if unknown:
            raise UsageError(f"the volume has groups {sorted(unknown)} that the specification given lacks")
        if not whole:
            break
        flush = max(whole, key=lambda batch: batch.epoch)
        end = flush.flush_end
        tails.update(dict.fromkeys(flush.flush_groups, end))
    return end, tails
