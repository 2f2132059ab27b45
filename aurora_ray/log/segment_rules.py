"""What a segment may promise, take in and forget: the storage half of the recovery protocol, as pure decisions.

A segment carries two numbers. `promised_epoch` is the highest epoch it has promised to somebody: nothing below it is
taken in any more. `installed_epoch` is the epoch whose *history* it carries, the list of truncations which says what
of the log never happened. A writer may append only where its own epoch is both. So the life of an epoch on a segment is

    promise (seal) -> install (truncate) -> appends of exactly this epoch

which is one ballot of single-decree Paxos: the promise is phase one, the installed history the accepted value. A
recovery therefore takes over the history with the *highest* installed epoch that its quorum shows, and never the union
of all histories it sees: a history that reached only a minority may have been overruled since, and annulling by it
would undo what a later epoch has made durable.

**Old truncations.** A history would grow by one with each recovery. When it has HISTORY_MAX, a recovery drops all that
are older than the one of the newest installed epoch E, which it marks as the *first*, if a VDL beyond E's end is known.
Only a writer of E can have made that, so E's recovery had ended: a write quorum of every group carried E's history and
was complete up to E's end. From this follows

* that whoever installs a later epoch has seen E's history: each copy that carries an epoch from E on carries all that
  was dropped, and stores nothing that it annuls;
* that a copy which carries an older epoch cannot tell any more which of its batches above its own VDL happened, and
  need not: those that did are on a write quorum without it. So these batches are worthless (`doubtful`): it deletes
  them when it adopts the history, and nobody fetches them. A recovery counts none of them in any case: it looks at
  what lies above the highest VDL, thus above E's end, where E's truncation annuls all that is older.

**Membership.** Who holds a protection group is part of what an epoch installs, next to the history, and travels with
it. Within an epoch its writer may change it: the change with the highest number is in force. Between epochs, the one
of the highest epoch, for the same reason as with histories. See aurora_ray/volume/spec.py for what the sets mean.

The storage node and the simulator in tests/sim both ask these functions; neither decides by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True, order=True)
class Truncation:
    """Batches of an epoch below `epoch` whose flush ends above `lsn` never happened.

    `first`: older ones were dropped.
    """

    epoch: int
    lsn: int
    first: bool = False


class Membership(NamedTuple):
    """Node ids of a group's copies; `next_members` while they change. `number` grows with every change."""

    number: int = 0
    members: tuple[str, ...] = ()
    next_members: tuple[str, ...] = ()


NO_MEMBERS: Final = Membership()
HISTORY_MAX: Final = 32  # truncations: a few hundred bytes, which every change of a segment's metadata writes


class AppendVerdict(Enum):
    """What to do with a batch, as far as epochs are concerned."""

    ACCEPT = "accept"
    FENCED = "fenced"  # somebody holds a higher epoch: the sender must stop
    STALE = "stale"  # this segment lacks the sender's history: the sender seals and truncates it, then sends again


@dataclass(frozen=True, slots=True)
class SegmentEpochs:
    """The epochs of one segment. Immutable: each change is a new value, persisted with a sync before it is acted on."""

    promised_epoch: int = 0
    owner: bytes = b""  # who holds the promise; empty: not known (adopted from a peer, see `adopt`)
    installed_epoch: int = 0
    truncations: tuple[Truncation, ...] = ()
    membership: Membership = NO_MEMBERS


def promise(held: SegmentEpochs, epoch: int, owner: bytes) -> SegmentEpochs | None:
    """The epochs after promising `epoch` to `owner`; None if that must be refused.

    The same epoch goes to one owner only. A promise without an owner was adopted with a history that its owner decided
    on a quorum of promises, so nobody else can ever gather a quorum for that epoch and naming the owner late is safe.
    """
    if epoch > held.promised_epoch:
        return replace(held, promised_epoch=epoch, owner=owner)
    if epoch == held.promised_epoch and held.owner in (owner, b""):
        return replace(held, owner=owner)
    return None


def install(
    held: SegmentEpochs,
    epoch: int,
    owner: bytes,
    truncations: Iterable[Truncation],
    membership: Membership | None = None,
) -> SegmentEpochs | None:
    """The epochs after an epoch's owner has installed its history; None if a promise to somebody else forbids it.

    `membership` goes with it; without one, or with one that was overtaken within the epoch, the one held stays.

    A segment that was away during the seal may install without having promised: the owner had its quorum of promises.
    """
    if epoch < held.promised_epoch or (epoch == held.promised_epoch and held.owner not in (owner, b"")):
        return None
    if membership is None or (epoch == held.installed_epoch and membership.number < held.membership.number):
        membership = held.membership
    return SegmentEpochs(epoch, owner, epoch, tuple(truncations), membership)


def adopt(
    held: SegmentEpochs, epoch: int, truncations: Iterable[Truncation], membership: Membership | None = None
) -> SegmentEpochs | None:
    """The epochs after taking over a peer's installed history and membership by gossip; None if there is nothing to
    take, or this segment must not.

    A history below an outstanding promise is refused: whoever holds the promise has been told what this segment has,
    and adopting an older decision now could delete just that.
    """
    if epoch < held.installed_epoch or epoch < held.promised_epoch:
        return None
    if epoch == held.installed_epoch:
        if membership is None or membership.number <= held.membership.number:
            return None
        return replace(held, membership=membership)
    owner = held.owner if epoch == held.promised_epoch else b""
    return SegmentEpochs(epoch, owner, epoch, tuple(truncations), membership or held.membership)


def judge_append(held: SegmentEpochs, batch_epoch: int) -> AppendVerdict:
    """Whether a writer's batch may be taken in (or, if it is here already, acknowledged again)."""
    if batch_epoch < held.promised_epoch:
        return AppendVerdict.FENCED
    if batch_epoch > held.installed_epoch or held.installed_epoch != held.promised_epoch:
        return AppendVerdict.STALE
    return AppendVerdict.ACCEPT


def annulled(truncations: Iterable[Truncation], batch_epoch: int, flush_end: int) -> bool:
    """Whether a batch never happened, according to a history."""
    return any(batch_epoch < cut.epoch and flush_end > cut.lsn for cut in truncations)


def knows(truncations: Sequence[Truncation], installed_epoch: int) -> bool:
    """Whether a copy that carries `installed_epoch` carries all that was dropped from this history, too."""
    return not (truncations and truncations[0].first and installed_epoch < truncations[0].epoch)


def doubtful(truncations: Sequence[Truncation], installed_epoch: int, vdl: int, flush_end: int) -> bool:
    """Whether nobody can tell any more if a batch happened that lies on a copy which carries `installed_epoch` and
    knows `vdl` to be durable.
    """
    return flush_end > vdl and not knows(truncations, installed_epoch)


def extend_history(
    truncations: Sequence[Truncation], cut: Truncation, durable_lsn: int, most: int = HISTORY_MAX
) -> tuple[Truncation, ...]:
    """The newest installed history with one more truncation, without the older ones that annul no more than it does.

    Of a history of `most`, only the last stays if its epoch's writer has made something durable: `durable_lsn` is the
    highest VDL that anyone knows.
    """
    if len(truncations) >= most and durable_lsn > truncations[-1].lsn:
        truncations = (replace(truncations[-1], first=True),)
    history = (*sorted(old for old in truncations if old.lsn < cut.lsn and old.epoch < cut.epoch), cut)
    assert history[0].first or not any(old.first for old in truncations)  # noqa: S101 - dropped once is dropped for good
    return history
