"""A change of the primary region, step by step: what is intended and what is seen in, the next step out. Pure.

Whoever asks for a change notes a `Turnover` in the region that shall be the primary, before anything is done; a control
plane that finds one goes on with it from what it sees, however far its predecessor came. Every step may be done twice.

    switchover   stop the engine there, drain there, note the end, wait for the copy, note that it is complete, promote
                 it, open the writer here, have the old region follow
    failover     promote the copy, open the writer here; when the old region can be reached: stop its engine, have it
                 follow, its tail put aside

Before the promotion a switchover can be taken back; but the copy may be sealed for its generation already, so that the
old region goes on in a later one still (`taken_back`): a turn of its own, at its own end, and nothing is lost either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from aurora_ray.errors import UsageError
from aurora_ray.replication.succession import next_generation

if TYPE_CHECKING:
    from collections.abc import Mapping


class Way(Enum):
    """How the primary changes."""

    SWITCHOVER = "switchover"  # planned: nothing is lost, and it waits for whatever that takes
    FAILOVER = "failover"  # by a person's word, or a rule's: the old region is not asked


class Step(Enum):
    """What is to be done next, by and in which region."""

    STOP_OLD = "stop the engine of the old primary"
    DRAIN_OLD = "seal the old primary and note its end"
    WAIT_FOR_COPY = "wait until the copy has reached that end"
    NOTE_COPY = "note that the copy has reached that end"  # once it is sealed, no replicator is there to tell
    PROMOTE_NEW = "seal the copy for the new generation and note its turn"
    OPEN_NEW = "open the writer of the new primary"
    WAIT_FOR_OLD = "wait until the old region can be reached: clients are served meanwhile"
    FOLLOW_WITH_OLD = "put the old region's tail aside, if there is one, and have it follow"
    DONE = "nothing: the old region follows the new one"


@dataclass(frozen=True, slots=True)
class Turnover:
    """An intention. `old` and `new`: regions; `end_lsn`: of the old primary, once it was drained; `reached`: the copy
    has all of it; `sure`: a failover that begins only when the old primary is fenced, however long that takes."""

    way: Way
    old: str
    new: str
    generation: int  # that the new primary takes
    end_lsn: int | None = None
    reached: bool = False
    sure: bool = False

    def drained(self, end_lsn: int) -> Turnover:
        """The old primary was sealed at this end. Raises UsageError if it had another one before."""
        if self.end_lsn not in (None, end_lsn):
            raise UsageError(f"the old primary ended at LSN {self.end_lsn} and cannot end at {end_lsn} now")
        return replace(self, end_lsn=end_lsn)

    def complete(self) -> Turnover:
        """The copy has reached the end: it may be sealed."""
        return replace(self, reached=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for msgpack or JSON."""
        return {
            "way": self.way.value,
            "old": self.old,
            "new": self.new,
            "generation": self.generation,
            "end_lsn": self.end_lsn,
            "reached": self.reached,
            "sure": self.sure,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Turnover:
        """The inverse of `to_dict`."""
        return cls(
            Way(values["way"]),
            str(values["old"]),
            str(values["new"]),
            int(values["generation"]),
            values["end_lsn"],
            bool(values["reached"]),
            bool(values.get("sure", False)),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known, as of now. Generations are those that are noted; `old_runs`, `new_runs`: a writer is, or may be,
    open there. What cannot be asked is as it was seen last: `old_runs` is then true.
    """

    old_reachable: bool
    old_runs: bool
    old_follows: bool  # a replicator is at work there, for the new generation
    old_generation: int
    new_generation: int
    new_lsn: int  # up to where the copy is durable; 0 while nothing is open there that tells
    new_runs: bool


def next_step(turnover: Turnover, seen: Seen) -> Step:
    """What is to be done now. Raises UsageError if a later generation has overtaken the turnover: it is void then."""
    if max(seen.old_generation, seen.new_generation) > turnover.generation:
        raise UsageError(f"generation {turnover.generation} is over: the primary has changed once more meanwhile")
    if seen.new_generation < turnover.generation:
        if turnover.way is Way.SWITCHOVER:
            if turnover.end_lsn is None:
                return Step.STOP_OLD if seen.old_runs else Step.DRAIN_OLD
            if not turnover.reached:
                return Step.WAIT_FOR_COPY if seen.new_lsn < turnover.end_lsn else Step.NOTE_COPY
        return Step.PROMOTE_NEW
    return _after_promotion(turnover, seen) if seen.new_runs else Step.OPEN_NEW


def _after_promotion(turnover: Turnover, seen: Seen) -> Step:
    if seen.old_follows and seen.old_generation == turnover.generation:
        return Step.DONE
    if not seen.old_reachable:
        return Step.WAIT_FOR_OLD
    return Step.STOP_OLD if seen.old_runs else Step.FOLLOW_WITH_OLD


def taken_back(turnover: Turnover, seen: Seen, old_slot: int) -> Turnover:
    """The turnover that undoes one which has not come to the promotion: the old region takes a turn of its own.

    Raises UsageError once the copy is promoted: then a switchover leads back.
    """
    if seen.new_generation >= turnover.generation:
        raise UsageError(f"{turnover.new} is the primary already: switch over to {turnover.old} to go back")
    return Turnover(Way.FAILOVER, turnover.new, turnover.old, next_generation(turnover.generation, old_slot))
