"""Which region may write, and which redo it shares with another: generations, and what follows from them. Pure.

A *generation* is the time of one primary region. It is a term and the slot of the region, so that two regions which are
promoted at once, each without knowing of the other, never have the same, and of any two one is higher.

Epochs carry the generation: an epoch is a generation and 32 bits that a region counts by itself. So a volume's promises
are enough to keep out whoever belongs to an earlier time: a writer of the old primary, a replicator that still copies
it. Whoever opens a volume says of which generation it is and is refused where a later one has been (`epochs_of`). A
cluster that never had a second region is of generation 0, and its epochs count from 1 as ever.

A *succession* says from which LSN on the redo of a copy is of which generation. Two copies hold the same up to the
first LSN at which their successions differ (as leader epochs decide it in Kafka, KIP-101): not up to the lower end, as
what an old primary wrote on after the copy that was promoted had ended is nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOTS: Final = 16  # regions of a global cluster, those that left it not long ago among them
_EPOCH_BITS: Final = 32
_TERM_MAX: Final = (1 << 31) // SLOTS - 1
TURNS_MAX: Final = 256  # of a succession; older ones are held to be the same everywhere


def generation(term: int, slot: int) -> int:
    """The generation of a region's term. Raises UsageError for one out of range."""
    if not 0 <= slot < SLOTS or not 0 <= term <= _TERM_MAX:
        raise UsageError(f"term {term} of slot {slot} is none: there are {SLOTS} slots and {_TERM_MAX} terms")
    return term * SLOTS + slot


def term_of(of_generation: int) -> int:
    """The inverse of `generation`, its first part."""
    return of_generation // SLOTS


def slot_of(of_generation: int) -> int:
    """The inverse of `generation`, its second part."""
    return of_generation % SLOTS


def next_generation(highest: int, slot: int) -> int:
    """What a region takes that is to be the primary, when `highest` is the highest generation that it knows of."""
    return generation(term_of(highest) + 1, slot)


def epochs_of(of_generation: int) -> range:
    """The epochs that whoever acts for a generation may take, be it the primary's writer or a replicator."""
    return range(max(1, of_generation << _EPOCH_BITS), (of_generation + 1) << _EPOCH_BITS)


def generation_of(epoch: int) -> int:
    """The generation that an epoch belongs to."""
    return epoch >> _EPOCH_BITS


class Turn(NamedTuple):
    """From `lsn` on, redo is of this generation, until the next turn."""

    lsn: int
    generation: int


class Succession:
    """The turns of one copy, by LSN and by generation; the first may have been at any time."""

    def __init__(self, turns: Iterable[Turn] = (Turn(0, 0),)) -> None:
        """Raises UsageError for turns that do not ascend."""
        self.turns = tuple(turns)
        lsns, generations = [turn.lsn for turn in self.turns], [turn.generation for turn in self.turns]
        if not self.turns or lsns != sorted(lsns) or generations != sorted(set(generations)):
            raise UsageError(f"the turns of a succession ascend by LSN and by generation; these do not: {self.turns}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Succession) and self.turns == other.turns

    def __hash__(self) -> int:
        return hash(self.turns)

    def __repr__(self) -> str:
        return f"Succession({list(map(tuple, self.turns))})"

    @property
    def generation(self) -> int:
        """The newest."""
        return self.turns[-1].generation

    def at(self, lsn: int) -> int:
        """Of which generation the redo right above `lsn` is."""
        return next((turn.generation for turn in reversed(self.turns) if turn.lsn <= lsn), self.turns[0].generation)

    def promoted(self, at_lsn: int, to_generation: int) -> Succession:
        """After a copy that ends at `at_lsn` became the primary.

        Raises UsageError if the generation is no later one.
        """
        kept = [turn for turn in self.turns if turn.lsn < at_lsn or turn == self.turns[0]]
        return Succession([*kept, Turn(at_lsn, to_generation)][-TURNS_MAX:])

    def to_list(self) -> list[list[int]]:
        """Plain values, for msgpack or JSON."""
        return [list(turn) for turn in self.turns]

    @classmethod
    def from_list(cls, turns: Iterable[Iterable[int]]) -> Succession:
        """The inverse of `to_list`. Raises UsageError."""
        return cls(Turn(*map(int, turn)) for turn in turns)


def common_lsn(ours: Succession, our_end: int, theirs: Succession) -> int:
    """Up to where our copy, which ends at `our_end`, holds what theirs holds; at most `our_end`.

    What lies above is a tail that only we have: it is to be put aside before we follow them.
    """
    known_from = max(ours.turns[0].lsn, theirs.turns[0].lsn)  # what was dropped below is held to be the same
    points = {known_from, *(turn.lsn for turn in (*ours.turns, *theirs.turns) if turn.lsn > known_from)}
    for lsn in sorted(points):
        if lsn >= our_end:
            break
        if ours.at(lsn) != theirs.at(lsn):
            return lsn
    return our_end
