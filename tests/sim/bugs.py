"""Bugs to plant: each breaks one rule of the protocol, and the simulator must complain before long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.log.flush import Flush
from aurora_ray.log.segment_rules import AppendVerdict, SegmentEpochs, Truncation, extend_history, judge_append
from aurora_ray.storage.heal import gossip
from aurora_ray.storage.node import epochs
from aurora_ray.storage.segment import segment as segments
from aurora_ray.storage.server import subscribe
from aurora_ray.volume import recovery
from aurora_ray.volume.follow import merge
from aurora_ray.volume.recovery import Phase, Recovery, find_end
from aurora_ray.volume.write import change, quorum
from tests.sim import node as sim_node
from tests.sim.store import MemoryStore
from tests.sim.writer import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from aurora_ray.log.batch import BatchHeader
    from aurora_ray.volume.spec import GroupPlacement

    Plant = Callable[[pytest.MonkeyPatch], None]


def acknowledge_at_three(patch: pytest.MonkeyPatch) -> None:
    """A flush counts as durable on 3 of 6."""
    patch.setattr(quorum, "write_quorum", lambda copies: copies // 2)


def skip_the_seal(patch: pytest.MonkeyPatch) -> None:
    """Nodes answer a seal, but promise nothing."""
    patch.setattr(epochs, "promise", lambda held, _epoch, _owner: held)


def keep_what_lies_above_the_end(patch: pytest.MonkeyPatch) -> None:
    """Nodes install a history without deleting what it annuls."""
    patch.setattr(segments, "annulled", lambda *_: False)


def fetch_what_is_annulled(patch: pytest.MonkeyPatch) -> None:
    """Gossip takes batches that the history here has annulled."""
    patch.setattr(gossip, "annulled", lambda *_: False)


def unite_all_histories(patch: pytest.MonkeyPatch) -> None:
    """A recovery annuls by every truncation that it sees, also by those that a later epoch has overruled."""

    def decide(self: Recovery) -> None:
        states = [state for copies in self._sealed.values() for state in copies.values()]
        every = sorted({cut for state in states for cut in state.truncations})
        self._floor_lsn = max(state.vdl for state in states)
        self.end_lsn, self._tails = find_end(self._members, every, self._floor_lsn, states)
        self.history = extend_history(every, Truncation(self.epoch, self.end_lsn), self._floor_lsn)

    patch.setattr(Recovery, "_decide", decide)


def forget_the_history(patch: pytest.MonkeyPatch) -> None:
    """A recovery hands on its own truncation only."""
    patch.setattr(recovery, "extend_history", lambda _history, cut, *_: (cut,))


def keep_what_is_doubtful(patch: pytest.MonkeyPatch) -> None:
    """A copy that was away adopts a history whose older truncations were dropped, and keeps all that it has."""
    patch.setattr(segments, "doubtful", lambda *_: False)


def fetch_what_is_doubtful(patch: pytest.MonkeyPatch) -> None:
    """Gossip takes log from copies that cannot tell what of it happened."""
    patch.setattr(gossip, "knows", lambda *_: True)


def drop_truncations_too_early(patch: pytest.MonkeyPatch) -> None:
    """Old truncations are dropped although the newest history may have reached a few copies only."""
    patch.setattr(
        recovery, "extend_history", lambda old, cut, _durable_lsn, most: extend_history(old, cut, 1 << 62, most)
    )


def find_the_end_on_two(patch: pytest.MonkeyPatch) -> None:
    """A recovery is content with the answers of 2 of 6."""
    patch.setattr(recovery, "write_quorum", lambda copies: copies // 3)


def call_it_durable_too_early(patch: pytest.MonkeyPatch) -> None:
    """The new end is told as durable before a quorum has it."""
    real = Recovery._truncate

    def truncate(self: Recovery) -> recovery.Truncate:
        order = real(self)
        return recovery.Truncate(order.epoch, order.truncations, self.end_lsn, order.tails)

    patch.setattr(Recovery, "_truncate", truncate)


def open_without_catching_up(patch: pytest.MonkeyPatch) -> None:
    """The volume opens although the end that was found is on fewer than 4 copies."""
    real = Recovery.on_truncated

    def on_truncated(self: Recovery, node: str, vdl: int, states: Any) -> None:
        real(self, node, vdl, states)
        if self.phase is Phase.CATCH_UP:
            self.phase = Phase.PUBLISH

    patch.setattr(Recovery, "on_truncated", on_truncated)


def count_copies_that_promised_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """A copy that says it has caught up counts at once, whatever it has promised meanwhile."""

    def on_caught_up(self: Recovery, node: str, scls: Any) -> None:
        if self.phase is Phase.CATCH_UP and node in self._installed:
            for group, scl in scls.items():
                self._installed[node][group] = replace(self._installed[node][group], scl=scl)
            self._count_complete()

    patch.setattr(Recovery, "on_caught_up", on_caught_up)


def acknowledge_unsynced(patch: pytest.MonkeyPatch) -> None:
    """Nodes acknowledge before the disk has it."""
    patch.setattr(MemoryStore, "sync", lambda *_: None)


def acknowledge_duplicates_of_the_fenced(patch: pytest.MonkeyPatch) -> None:
    """A batch that is here already is acknowledged without looking at the epoch."""
    real = segments.Segment.check

    def check(self: segments.Segment, header: BatchHeader, at_lsn: int) -> bool:
        return False if header.record_count and header.flush_end <= at_lsn else real(self, header, at_lsn)

    patch.setattr(segments.Segment, "check", check)


def append_to_a_stale_segment(patch: pytest.MonkeyPatch) -> None:
    """A node takes a newer epoch's batches before it has that epoch's history."""
    real = judge_append

    def judge(held: SegmentEpochs, epoch: int) -> AppendVerdict:
        return AppendVerdict.ACCEPT if epoch >= held.promised_epoch else real(held, epoch)

    patch.setattr(segments, "judge_append", judge)
    start = Stream.__init__

    def eager(self: Stream, writer: Any, node: Any, **_: bool) -> None:
        start(self, writer, node, installed=True)

    patch.setattr(Stream, "__init__", eager)


def skip_what_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """After a reconnect a stream goes on with new flushes instead of those that were not acknowledged."""
    real = Stream._connect

    def connect(self: Stream) -> None:
        self._sent.clear()
        real(self)

    patch.setattr(Stream, "_connect", connect)


# ---- membership


def ask_the_next_members_only(patch: pytest.MonkeyPatch) -> None:
    """While members change, only the new set must acknowledge."""
    real = quorum.QuorumTracker.place

    def place(self: quorum.QuorumTracker, placement: GroupPlacement) -> bool:
        moved = real(self, placement)
        self._sets[placement.group] = self._sets[placement.group][-1:]
        return moved

    patch.setattr(quorum.QuorumTracker, "place", place)


def ask_the_old_members_only(patch: pytest.MonkeyPatch) -> None:
    """While members change, the new set is not asked yet."""
    real = quorum.QuorumTracker.place

    def place(self: quorum.QuorumTracker, placement: GroupPlacement) -> bool:
        moved = real(self, placement)
        self._sets[placement.group] = self._sets[placement.group][:1]
        return moved

    patch.setattr(quorum.QuorumTracker, "place", place)


def commit_without_looking(patch: pytest.MonkeyPatch) -> None:
    """A commit does not look whether the new set has what was there before it came."""

    def on_state(self: change.Change, node: str, _states: object, _vdl: int) -> None:
        self._installing = True

    patch.setattr(change.Change, "on_state", on_state)


def go_by_a_step_at_once(patch: pytest.MonkeyPatch) -> None:
    """One copy that has learnt a step is enough."""

    def on_installed(self: change.Change, node: str, _states: object) -> None:
        self.done = True

    patch.setattr(change.Change, "on_installed", on_installed)


def recover_by_what_was_written_down(patch: pytest.MonkeyPatch) -> None:
    """A recovery does not care what the copies say about who the members are."""
    patch.setattr(recovery, "told_members", lambda known, _states: dict(known))


def recover_on_the_next_members_only(patch: pytest.MonkeyPatch) -> None:
    """While members change, a recovery is content with a quorum of the new set."""
    patch.setattr(recovery, "member_sets", lambda held: (held.next_members or held.members,))


def recover_on_the_old_members_only(patch: pytest.MonkeyPatch) -> None:
    """While members change, a recovery is content with a quorum of the old set."""
    patch.setattr(recovery, "member_sets", lambda held: (held.members,))


def keep_the_members_of_the_past(patch: pytest.MonkeyPatch) -> None:
    """An epoch that is installed leaves a copy's membership as it was, if that has the higher number."""
    real = epochs.install

    def install(held: SegmentEpochs, *args: Any) -> SegmentEpochs | None:
        new = real(held, *args)
        older = new is not None and new.membership.number < held.membership.number
        return replace(new, membership=held.membership) if older else new

    patch.setattr(epochs, "install", install)


def forget_that_a_step_failed(patch: pytest.MonkeyPatch) -> None:
    """After a step that some copies have learnt in vain, the next one goes its usual way."""
    real = change.Change.__init__

    def start(self: change.Change, *args: Any, **options: Any) -> None:
        real(self, *args, **{**options, "after_failure": False})

    patch.setattr(change.Change, "__init__", start)


def commit_and_then_abort(patch: pytest.MonkeyPatch) -> None:
    """A change whose commit failed is taken back, while some copy has the commit."""
    patch.setattr(change, "_exclusive", lambda *_: False)


# ---- following


def give_followers_what_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """A subscriber gets all that a copy has."""
    patch.setattr(
        subscribe, "durable_log", lambda segment, after_lsn: subscribe._chain(segment, after_lsn, segment.scl)
    )


def give_followers_parts_of_a_flush(patch: pytest.MonkeyPatch) -> None:
    """A flush is given out when some group of it is there."""

    def take(self: merge.FlushMerger) -> Flush | None:
        start = self._next()
        if start is None:
            return None
        header, found = self._headers.pop(start), self._found.pop(start)
        self._begun, self.lsn = True, header.flush_end
        return Flush(header.flush_start, header.flush_end, found)

    patch.setattr(merge.FlushMerger, "take", take)


def collect_what_is_leased(patch: pytest.MonkeyPatch) -> None:
    """Nodes forget who holds history."""
    patch.setattr(sim_node, "live_read_points", lambda *_: ())


# Those that chance finds quickly. The others need a script: see test_script.py.
PLANTS: tuple[Plant, ...] = (
    acknowledge_at_three,
    skip_the_seal,
    keep_what_lies_above_the_end,
    fetch_what_is_annulled,
    forget_the_history,
    find_the_end_on_two,
    call_it_durable_too_early,
    open_without_catching_up,
    acknowledge_unsynced,
    acknowledge_duplicates_of_the_fenced,
    append_to_a_stale_segment,
    skip_what_is_not_durable,
    ask_the_next_members_only,
    ask_the_old_members_only,
    commit_without_looking,
    recover_by_what_was_written_down,
    give_followers_what_is_not_durable,
    give_followers_parts_of_a_flush,
    collect_what_is_leased,
    recover_on_the_next_members_only,
)
