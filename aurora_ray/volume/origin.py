"""Where a volume can be forked: a wish (an LSN, a time, the present) in, a flush's end out. Pure.

A fork ends at the end of a flush: flushes are what becomes durable together. That end F must be durable under the
history of an epoch E, and is then part of the volume for good: whoever recovers later begins above. So F is at most a
VDL that a copy with the newest history has told, or one that the volume's writer, of epoch E, says itself.

Of each group the *tail* at F is wanted, the end of its last batch at or below F: by it a copy knows whether it is
complete. A batch at or below F is durable, so it is on four of six, and of any three copies that carry E's history or a
later one at least one has it; what they have at or below F beside it happened, too, or a recovery would have had it
deleted. So the tail is the highest that three of six have.

A time is looked up in each group's log in the same way: F is the end of the last flush that was written by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import OutOfRangeError, QuorumLostError
from aurora_ray.log.sizes import read_quorum, write_quorum

if TYPE_CHECKING:
    from aurora_ray.volume.spec import GroupPlacement

LSN_MAX: Final = (1 << 64) - 1


class Target(NamedTuple):
    """A wish: the last flush that ends at or below `lsn`, or, if it is given, that was written by `time_us` (1970)."""

    lsn: int = LSN_MAX
    time_us: int = 0


class GroupPlace(NamedTuple):
    """What a copy says of its group's log at a target; as LogPlace in the proto file."""

    group: int
    lsn: int
    time_us: int
    epoch: int
    vdl: int
    floor_lsn: int
    floor_time_us: int


class ForkPoint(NamedTuple):
    """The end of a flush, durable under the history of `epoch`; each group's tail there (group, LSN); when it was
    written (microseconds since 1970; 0: that is not known any more). The fork's own epochs begin with `first_epoch`,
    or, where that is 0, with the one after `epoch`."""

    lsn: int
    epoch: int
    tails: tuple[tuple[int, int], ...]
    time_us: int = 0
    first_epoch: int = 0


class Range(NamedTuple):
    """What can be forked: from `earliest_lsn` on, which four of six copies of each group look back to, to
    `latest_lsn`; the times of both (0: not known)."""

    earliest_lsn: int
    earliest_time_us: int
    latest_lsn: int
    latest_time_us: int


Answers = dict[str, Sequence[GroupPlace]]  # by node id


def current(placements: Iterable[GroupPlacement], answers: Answers) -> list[list[GroupPlace]]:
    """The answers of each group's copies that carry the newest history. Raises QuorumLostError for fewer than three of
    six: what a fork must have could be on the others."""
    epoch = max((place.epoch for places in answers.values() for place in places), default=0)
    groups = []
    for placement in placements:
        found = [
            place
            for node in placement.node_ids
            for place in answers.get(node, ())
            if place.group == placement.group and place.epoch == epoch
        ]
        copies = len(placement.node_ids)
        if len(found) < read_quorum(copies):
            raise QuorumLostError(
                f"only {len(found)} of the {copies} copies of group {placement.group} say how far their log reaches:"
                " try again when more storage nodes run"
            )
        groups.append(found)
    return groups


def whole_range(
    placements: Sequence[GroupPlacement], groups: Sequence[Sequence[GroupPlace]], written_lsn: int = 0
) -> Range:
    """What can be forked, by what the copies of each group say of the present (`Target()`)."""
    floors = []
    for placement, places in zip(placements, groups, strict=True):
        enough = min(write_quorum(len(placement.node_ids)), len(places))
        floors.append(sorted((place.floor_lsn, place.floor_time_us) for place in places)[enough - 1])
    everywhere = [place for places in groups for place in places]
    return Range(
        max(lsn for lsn, _ in floors),
        max(time_us for _, time_us in floors),
        max(written_lsn, *(place.vdl for place in everywhere)),
        max(place.time_us for place in everywhere),
    )


def within(whole: Range, target: Target) -> Target:
    """The target, as far as what is durable goes. Raises OutOfRangeError for one that lies outside of what is kept."""
    if target.time_us:
        if not whole.earliest_time_us or target.time_us < whole.earliest_time_us:
            raise OutOfRangeError(f"nothing is kept from before {describe_time(target.time_us)}: {describe(whole)}")
        return Target(whole.latest_lsn, target.time_us)
    if target.lsn != LSN_MAX and not whole.earliest_lsn <= target.lsn <= whole.latest_lsn:
        raise OutOfRangeError(f"LSN {target.lsn} is not kept or not there yet: {describe(whole)}")
    return Target(min(target.lsn, whole.latest_lsn))


def flush_end(groups: Iterable[Iterable[GroupPlace]], target: Target) -> int:
    """The end of the last durable flush at the target that the answers are for. A copy that looks back less far than
    that tells its floor instead, which counts for nothing."""
    places = (place for group in groups for place in group if place.lsn <= target.lsn)
    if target.time_us:
        places = (place for place in places if 0 < place.time_us <= target.time_us)
    return max((place.lsn for place in places), default=0)


def point_at(groups: Sequence[Sequence[GroupPlace]], lsn: int, epoch: int, whole: Range) -> ForkPoint:
    """The fork at `lsn`, a flush's end that is durable under the history of `epoch`, by answers for `Target(lsn)`.

    Raises OutOfRangeError if nothing was there yet, or is no longer.
    """
    if not lsn or lsn < whole.earliest_lsn:
        raise OutOfRangeError(f"nothing is kept of that moment: {describe(whole)}")
    looking_back = [[place for place in places if place.lsn <= lsn] for places in groups]
    tails = tuple((places[0].group, max(place.lsn for place in places)) for places in looking_back)
    time_us = max(place.time_us for places in looking_back for place in places if place.lsn == lsn)
    return ForkPoint(lsn, epoch, tails, time_us)


def describe(whole: Range) -> str:
    """The range, for people."""
    return (
        f"what can be had goes from {describe_time(whole.earliest_time_us)} (lsn:{whole.earliest_lsn})"
        f" to {describe_time(whole.latest_time_us)} (lsn:{whole.latest_lsn})"
    )


def describe_time(time_us: int) -> str:
    """A time as RFC 3339, in UTC."""
    if not time_us:
        return "an unknown time"
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
