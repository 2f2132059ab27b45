"""What a region's declared state says of a global cluster: who else belongs to it, and what is intended.

Each region has the whole of this in its own control state and trusts nothing else after a restart. Regions have one
cluster of the same name each. What a copy holds, its succession, stands beside its volume in the cluster itself
(`DBCluster.succession`): it outlives the membership, since its epochs do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from aurora_ray.control.model.sealing import SECRET
from aurora_ray.errors import UsageError
from aurora_ray.replication.succession import SLOTS, Succession, slot_of
from aurora_ray.replication.turnover import Turnover, Way

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDARIES_MAX: Final = 10  # as Aurora has it
SEALED: Final = "guest"  # what secrets on their way to or from a new region are sealed as
TAILS_MAX: Final = 32  # that are listed; their volumes stay whether they are or not

Turns = tuple[tuple[int, int], ...]
"""A succession's (LSN, generation), as it is stored."""

NO_TURNS: Final[Turns] = ((0, 0),)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another region. `address`: of its control plane, as it said last; `data_dir`: where that lies, if on this
    machine, which is looked into first. `secret` proves our calls to it and to its storage nodes."""

    region: str
    slot: int
    fleet_id: str
    address: str
    data_dir: str
    secret: str = field(repr=False, metadata=SECRET)


@dataclass(frozen=True, slots=True)
class LostTail:
    """Redo in (`after_lsn`, `end_lsn`] that only this region has, since another one was promoted without it. The volume
    keeps it, under its own id, until a person has it dropped."""

    volume_id: UUID
    after_lsn: int
    end_lsn: int
    generation: int  # that this region went on in
    noted_at_s: float


@dataclass(frozen=True, slots=True)
class Membership:
    """That a cluster is part of a global one, and what this region knows of it.

    `primary`: the region that has the writer, as far as is known here. `first_lsn`: the copy was begun as of then, and
    its history below is none of the primary's. `turnover`: this region is to become the primary. `yielded_to`: the
    generation that another region takes, for which this one, the primary, has stopped its writer (0: none);
    `drained_lsn`: where it ended then. `promotion`: what the last promotion of this region came to (plain values).
    `lease_s`, `rpo_s` (seconds; 0: none): when the primary acknowledges commits, see replication/lease.py;
    `lease_later_s`: the lease that is in force again once all regions follow, see `alone`;
    `failover_after_s`: a secondary takes over by itself when the primary was not heard of for so long (0: none does);
    `asked_way`: the last generation for which this region asked a primary to make way (0: none);
    `refuses_below`: primaries of earlier generations get no lease from this region. `forwards`: sessions on readers may
    write, see engine/src/forward.c.
    """

    name: str
    slot: int
    primary: str
    peers: tuple[Peer, ...] = ()
    first_lsn: int = 0
    turnover: Turnover | None = None
    yielded_to: int = 0
    drained_lsn: int | None = None
    tails: tuple[LostTail, ...] = ()
    promotion: dict[str, Any] | None = field(default=None, hash=False)
    lease_s: float = 0.0
    lease_later_s: float = 0.0
    rpo_s: float = 0.0
    refuses_below: int = 0
    failover_after_s: float = 0.0
    forwards: bool = False
    asked_way: int = 0

    @property
    def holds_commits(self) -> bool:
        """Whether the primary may acknowledge commits only for as long as other regions let it."""
        return bool(self.peers) and (self.lease_s > 0 or self.rpo_s > 0)

    def peer(self, region: str) -> Peer:
        """The other region of that name. Raises UsageError."""
        for peer in self.peers:
            if peer.region == region:
                return peer
        known = ", ".join(peer.region for peer in self.peers) or "none"
        raise UsageError(f"no other region {region!r} belongs to {self.name} (there is: {known})")

    def turning(self, turnover: Turnover) -> Membership:
        """This region is to become the primary. Where there is a lease, a failover refuses it to earlier generations
        from now on, whatever becomes of it: other regions may rely on that."""
        asks = turnover.generation if turnover.way is Way.SWITCHOVER else 0
        refuses = turnover.generation if self.lease_s and not asks else 0
        return replace(
            self,
            turnover=turnover,
            refuses_below=max(self.refuses_below, refuses),
            asked_way=max(self.asked_way, asks),
        )

    def may_be_alone(self, generation: int) -> bool:
        """Whether this one of two regions, its copy of `generation`, has not asked the primary to make way. One that
        may have done so can take its place back, and would be fenced by nobody but itself."""
        return len(self.peers) == 1 and self.lease_s > 0 and self.asked_way <= generation

    def alone(self) -> Membership:
        """The other one of two regions is fenced, and this one took over. A lease of both would have it acknowledge
        nothing until that is back, so there is none until then. The other one gets none from here, and cannot take a
        generation before it has heard of this one's: it holds itself for the primary."""
        return replace(self, lease_s=0.0, lease_later_s=self.lease_s)

    def leased_again(self) -> Membership:
        """All regions follow."""
        return replace(self, lease_s=self.lease_later_s or self.lease_s, lease_later_s=0.0)

    def require_no_lease(self, verb: str) -> None:
        """Raises UsageError: regions that hold different ones for members would not agree on what a majority is."""
        if self.lease_s:
            raise UsageError(
                f"{self.name} has a lease, and no region can be {verb} meanwhile: "
                f"`aurora global limits {self.name} --no-lease` first"
            )

    def region_of(self, generation: int, here: str) -> str | None:
        """Whose a generation is, by its slot; None if that region is not known."""
        slots = {self.slot: here} | {peer.slot: peer.region for peer in self.peers}
        return slots.get(slot_of(generation))

    def free_slot(self) -> int:
        """For one more region: the lowest that nobody has. Raises UsageError if there are too many."""
        if len(self.peers) >= SECONDARIES_MAX:
            raise UsageError(f"{self.name} has {SECONDARIES_MAX} secondary regions, which is all that it can have")
        taken = {self.slot, *(peer.slot for peer in self.peers)}
        return next(slot for slot in range(SLOTS) if slot not in taken)

    def with_peer(self, peer: Peer) -> Membership:
        """Adds the region, or replaces what is known of it."""
        others = tuple(known for known in self.peers if known.region != peer.region)
        return replace(self, peers=tuple(sorted((*others, peer), key=lambda each: each.slot)))

    def without_peer(self, region: str) -> Membership:
        """Forgets the region; a change that involves it is void."""
        turnover = self.turnover
        void = turnover is not None and region in (turnover.old, turnover.new)
        peers = tuple(peer for peer in self.peers if peer.region != region)
        return replace(self, peers=peers, turnover=None if void else turnover)


def succession_of(turns: Turns) -> Succession:
    """As the rules take it."""
    return Succession.from_list(turns)


def turns_of(succession: Succession) -> Turns:
    """As it is stored."""
    return tuple((turn.lsn, turn.generation) for turn in succession.turns)


def turns_from_plain(plain: Iterable[Iterable[int]]) -> Turns:
    """Out of the serialised state. Raises UsageError for turns that do not ascend."""
    return turns_of(Succession.from_list(plain))


def newest(turns: Turns) -> int:
    """The generation that a volume with these turns is opened for."""
    return turns[-1][1]
