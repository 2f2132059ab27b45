"""Changing who holds a group, while its writer has it open: the decisions. Pure: answers in, requests out.

A step (see spec.py) goes through two phases:

    PREPARE   begin: every new member has made its empty copy (nobody makes a missing one later, see `create_segments`)
              commit: a write quorum of the next members carries the writer's history and has all log from before
              `begin`; what came after it is on a quorum of them by the rule of writing
    INSTALL   a write quorum of each set of the new placement has learnt it, as part of what the epoch installs

Only then does the writer go by it. If the writer dies in between, whoever opens the volume next finds either placement
in the copies, and either is right: whatever is written by the one meets a quorum of the other.

A step that failed may have left its placement on some copies. The next step then also needs a quorum of each set of the
placement that is in force, so that nobody who finds only the failed one can go by it unawares. And of all placements
that copies may have at one time, any two have a set in common: two writers that open the volume, each by the one that
it finds, would else meet nowhere. `commit` and `abort` have none; between them the placement in force is installed
anew, and whoever finds what failed then finds that beside it.

Drive it like a recovery: ask `request(node)` what that node should be asked now (None: nothing), send it, hand the
answer to `on_…`, until `done`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import write_quorum
from aurora_ray.volume.recovery import AskState, membership_of, placement_of
from aurora_ray.volume.spec import ChangeStep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.recovery import SegmentState
    from aurora_ray.volume.spec import GroupPlacement


@dataclass(frozen=True, slots=True)
class CreateCopy:
    """Make an empty copy of the group, which these nodes hold as yet."""

    group: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstallMembers:
    """Carry my history with these members of the group (and the others as you know them from me)."""

    group: int
    membership: Membership


Request = CreateCopy | AskState | InstallMembers


class Change:
    """One step for one group. Made by `GroupMembers.start`."""

    def __init__(
        self,
        current: GroupPlacement,
        membership: Membership,
        *,
        epoch: int,
        begun: tuple[int, int],
        after_failure: bool,
    ) -> None:
        """`begun`: the ends of the log and of the group's log when the step before was `begin`."""
        self.group = current.group
        self.membership = membership
        self.wanted = placement_of(current.group, membership)
        self.step = current.step_to(self.wanted)
        self.done = False
        self._current, self._epoch = current, epoch
        self._since_lsn, self._tail_lsn = begun
        self._sets = (*self.wanted.sets, *current.sets) if after_failure else self.wanted.sets
        self._fresh = {node for node in self.wanted.all_node_ids if node not in current.all_node_ids}
        self._created: set[str] = set()
        self._complete: set[str] = set()
        self._installed: set[str] = set()
        self._installing = self.step is not ChangeStep.COMMIT and not self._fresh

    @property
    def nodes(self) -> tuple[str, ...]:
        """Everybody who takes part; those who leave are told as well."""
        return tuple(dict.fromkeys((*self.wanted.all_node_ids, *self._current.all_node_ids)))

    def request(self, node: str) -> Request | None:
        """What `node` should be asked now."""
        if self.done or node in self._installed:
            return None
        if self._installing:
            return InstallMembers(self.group, self.membership)
        if self.step is ChangeStep.BEGIN and node in self._fresh - self._created:
            return CreateCopy(self.group, self._current.node_ids)
        if self.step is ChangeStep.COMMIT and node in self.wanted.node_ids and node not in self._complete:
            return AskState()
        return None

    def on_created(self, node: str) -> None:
        """A node has made its copy."""
        self._created.add(node)
        if self._created >= self._fresh:
            self._installing = True

    def on_state(self, node: str, states: Iterable[SegmentState], vdl: int) -> None:
        """What a node has, and the writer's VDL."""
        for state in states:
            if (state.group, state.installed_epoch) == (self.group, self._epoch) and state.scl >= self._tail_lsn:
                self._complete.add(node)
        if vdl >= self._since_lsn and _is_quorum(self._complete, self.wanted.node_ids):
            self._installing = True

    def on_installed(self, node: str, states: Iterable[SegmentState]) -> None:
        """What a node has after it was told. One that has no copy of the group has learnt nothing."""
        said = (self.group, self._epoch, self.membership)
        if any((state.group, state.installed_epoch, state.membership) == said for state in states):
            self._installed.add(node)
        self.done = all(_is_quorum(self._installed, nodes) for nodes in self._sets)

    def describe(self) -> str:
        """One sentence on what it waits for."""
        name = f"the step of group {self.group} to {self.wanted.sets}"
        if self._installing:
            return f"{name} has been learnt by {sorted(self._installed)} only"
        if self.step is ChangeStep.BEGIN:
            return f"{name} lacks the copies of {sorted(self._fresh - self._created)}"
        return f"{name} waits for log from before it began, which only {sorted(self._complete)} have as yet"


class GroupMembers:
    """Who holds the groups, as the writer of one epoch knows and changes it."""

    def __init__(self, held: Mapping[int, Membership], epoch: int, end_lsn: int, tails: Mapping[int, int]) -> None:
        """As a recovery found them: complete up to `end_lsn`."""
        self.held: dict[int, Membership] = dict(held)  # in force
        self._epoch = epoch
        self._numbers = {group: membership.number for group, membership in held.items()}
        self._tried: dict[int, list[GroupPlacement]] = {}  # what its copies may have since its last complete step
        self._begun = {group: (end_lsn, tails.get(group, 0)) for group in held}

    def add(self, placement: GroupPlacement) -> None:
        """A group that is new."""
        self.held[placement.group] = membership_of(placement)
        self._numbers[placement.group] = 0

    def start(self, wanted: GroupPlacement) -> Change | None:
        """The step that leads there, or the one back to what is in force that must come before (see `Change.wanted`);
        None if there is nothing to do. Raises UsageError if no single step leads there."""
        group = wanted.group
        if group not in self.held:
            raise UsageError(f"the volume has no group {group}: add_group makes new ones")
        current = placement_of(group, self.held[group])
        tried = self._tried.setdefault(group, [])
        if current.step_to(wanted) is None and not tried:
            return None
        if any(_exclusive(wanted, other) for other in tried):
            wanted = current
        failed = bool(tried)
        tried.append(wanted)
        self._numbers[group] += 1
        return Change(
            current,
            membership_of(wanted, self._numbers[group]),
            epoch=self._epoch,
            begun=self._begun.get(group, (0, 0)),
            after_failure=failed,
        )

    def finish(self, change: Change, tail_lsn: int, group_tail_lsn: int) -> None:
        """The writer goes by a step that is done; the ends of the log and of the group's log are these now."""
        self.held[change.group] = change.membership
        self._tried.pop(change.group, None)
        if change.step is ChangeStep.BEGIN:
            self._begun[change.group] = (tail_lsn, group_tail_lsn)


def _exclusive(one: GroupPlacement, other: GroupPlacement) -> bool:
    """Whether nobody who goes by the one must meet who goes by the other."""
    return not {frozenset(nodes) for nodes in one.sets} & {frozenset(nodes) for nodes in other.sets}


def _is_quorum(nodes: set[str], members: tuple[str, ...]) -> bool:
    return len(nodes.intersection(members)) >= write_quorum(len(members))
