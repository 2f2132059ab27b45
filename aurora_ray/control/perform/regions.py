"""How the actions of `decide/regional.py` are carried out; like all, they can be cut short at any point.

What is sealed for a generation and not noted yet is sealed for it once more by whoever comes after: to seal is to ask
for promises, and the same generation may ask again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.commands import UpdateSource
from aurora_ray.compute.role import Role
from aurora_ray.control.model.origins import Origin
from aurora_ray.control.model.regional import TAILS_MAX, LostTail, succession_of, turns_of
from aurora_ray.control.model.state import DBCluster, Fleet, Group, PastVolume
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.model.views import with_limits, with_members
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import UsageError
from aurora_ray.replication import promotion, rejoin
from aurora_ray.replication.sides import RegionalVolume
from aurora_ray.replication.turnover import Turnover, Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.control.decide import regional
    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.views import View
    from aurora_ray.control.perform.means import Means
    from aurora_ray.replication.rejoin import Tail
    from aurora_ray.replication.succession import Succession
    from aurora_ray.volume.origin import ForkPoint
    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec

SEAL_TIMEOUT_S: Final = 30.0


async def step_down(means: Means, action: regional.StepDown) -> None:
    """The loop ends the writer next."""
    later = action.later

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        # At once: a primary that is alone has no lease, and who relies on one might hold it for fenced.
        limits = with_limits(known, later) if later.is_primary else known
        return made_way(cluster, limits, later.generation)

    await _change(means, action.cluster, change)
    told = f"{action.cluster} takes no writes here any more: {action.why}"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)


async def follow(means: Means, action: regional.Follow) -> None:
    """Seals the volume for the later generation and finds what only it has."""
    cluster, known = _member(means, action.cluster)
    view = action.primary
    succession = succession_of(view.turns)
    ledger = _Ledger(means, action.cluster, view)
    side = _side(means, cluster, known)
    _, tail = await means.regions.volumes.put_tail_aside(side, succession_of(cluster.succession), succession, ledger)
    if tail is None:
        await _change(means, action.cluster, lambda c, m: followed(c, m, view))
    kept = "" if tail is None else f"; {tail.nbytes} bytes of redo that only this region has are kept aside"
    told = f"{action.cluster} follows region {view.region} from generation {view.generation} on{kept}"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)
    means.say(told)


async def drain_primary(means: Means, action: regional.Drain) -> None:
    """No writer is left: what it ended with is all there ever was."""
    cluster, known = _member(means, action.cluster)
    end_lsn = await means.regions.volumes.drain(_side(means, cluster, known), action.generation)

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        if known.yielded_to != action.generation:
            return cluster
        return replace(cluster, membership=replace(known, drained_lsn=end_lsn))

    await _change(means, action.cluster, change)


async def ask_to_make_way(means: Means, action: regional.AskToMakeWay) -> None:
    """It is asked again until it says that it has."""
    cluster, known = _member(means, action.cluster)
    await means.regions.ask_to_make_way(cluster, known.peer(action.region), action.generation)


async def note_end(means: Means, action: regional.NoteEnd) -> None:
    """The copy is waited for next."""

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        turnover = known.turnover.drained(action.end_lsn) if known.turnover is not None else None
        return replace(cluster, membership=replace(known, turnover=turnover))

    await _change(means, action.cluster, change)


async def note_reached(means: Means, action: regional.NoteReached) -> None:
    """The copy is sealed next."""

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        turnover = known.turnover
        if turnover is None or turnover.generation != action.generation:
            return cluster
        return replace(cluster, membership=replace(known, turnover=turnover.complete()))

    await _change(means, action.cluster, change)


async def promote_copy(means: Means, action: regional.Promote) -> None:
    """The loop opens the writer next."""
    cluster, known = _member(means, action.cluster)
    turnover = action.turnover
    drained = turnover.way is Way.SWITCHOVER
    began_s = time.time()

    def change(cluster: DBCluster, known: Membership, succession: Succession) -> DBCluster:
        if known.turnover is None or known.turnover.generation != turnover.generation:
            return cluster
        began = succession.turns[-1].lsn
        report = {
            "way": turnover.way.value,
            "from": turnover.old,
            "generation": turnover.generation,
            "at_s": began_s,
            "lost_after_lsn": began,
            "lost_known_lsn": max(began, action.known_lsn),
            "fenced": action.fenced,  # whether the old primary acknowledges nothing any more; None: without leases
            "rpo_bytes": max(0, action.known_lsn - began),
            "rpo_ms": 0.0 if drained else None,  # not known before the copy's last flush was looked at
        }
        known = replace(known.alone() if action.alone else known, promotion=report)
        return promoted(cluster, known, succession, means.declared.fleet.region)

    done = await means.regions.volumes.promote(
        _side(means, cluster, known),
        succession_of(cluster.succession),
        turnover.generation,
        _Turn(means, action.cluster, change),
        known_lsn=action.known_lsn,
        drained=drained,
    )
    loss = done.loss
    if not drained:
        told_ms = round(loss.rpo_ms, 1) if loss.written_s else None
        await _change(means, action.cluster, lambda c, m: _with_rpo(c, m, turnover.generation, told_ms))
    lost = "nothing is lost"
    if not drained:
        lost = (
            f"of the redo of {turnover.old} that is known, {loss.rpo_bytes} bytes above LSN {loss.after_lsn} are not "
            f"here, and the last that is was written {loss.rpo_ms / 1e3:.1f} s before; {turnover.old} keeps the rest"
        )
    told = f"{action.cluster} is the primary from LSN {done.lsn} on, in generation {done.generation}: {lost}"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)
    means.say(told)


def _with_rpo(cluster: DBCluster, known: Membership, generation: int, rpo_ms: float | None) -> DBCluster:
    if known.promotion is None or known.promotion["generation"] != generation:
        return cluster
    return replace(cluster, membership=replace(known, promotion={**known.promotion, "rpo_ms": rpo_ms}))


async def take_over(means: Means, action: regional.TakeOver) -> None:
    """As a person's word would begin it."""
    here = means.declared.fleet.region

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        if known.turnover is not None or cluster.generation >= action.generation:
            return cluster
        turnover = Turnover(Way.FAILOVER, action.old, here, action.generation, sure=True)
        return replace(cluster, membership=known.turning(turnover))

    await _change(means, action.cluster, change)
    told = f"{action.cluster} fails over to {here} by its rule: {action.why}"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)
    means.say(told)


async def note_refusal(means: Means, action: regional.NoteRefusal) -> None:
    """Once what was granted is over, the other region hears of it."""

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        return replace(cluster, membership=replace(known, refuses_below=max(known.refuses_below, action.generation)))

    await _change(means, action.cluster, change)


async def lease_again(means: Means, action: regional.LeaseAgain) -> None:
    """The writer is bound before any other region may rely on that."""
    cluster, known = _member(means, action.cluster)
    writer = means.processes.instances.get(cluster.writer().instance_id)
    if writer is not None and writer.seen.serves(Role.WRITER):
        await means.regions.leases.begin(cluster, writer, known.lease_later_s)
    await _change(means, action.cluster, lambda c, m: replace(c, membership=m.leased_again()))
    told = f"{action.cluster}: {action.why}: its writer needs a lease of {known.lease_later_s:g} s again"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)
    means.say(told)


async def give_up_turn(means: Means, action: regional.GiveUpTurn) -> None:
    """A later generation decides."""

    def change(cluster: DBCluster, known: Membership) -> DBCluster:
        if known.turnover is None or known.turnover.generation != action.generation:
            return cluster
        return replace(cluster, membership=replace(known, turnover=None))

    await _change(means, action.cluster, change)
    means.events.note(EventKind.REGION, action.cluster, f"a change was given up: {action.why}", action.cluster)


async def note_regions(means: Means, action: regional.NoteRegions) -> None:
    """See with_members."""
    here = means.declared.fleet.region
    await _change(means, action.cluster, lambda cluster, _: with_members(cluster, action.primary, here))


async def note_copied(means: Means, action: regional.NoteCopied) -> None:
    """Readers open next."""
    volume_id = _member(means, action.cluster)[0].volume.volume_id

    def change(fleet: Fleet) -> Fleet:
        known = any(volume.volume_id == volume_id for volume in fleet.volumes())
        return fleet.with_initialised(volume_id) if known else fleet

    await means.declared.commit(change)
    told = f"all pages of {action.cluster} are here: it can be read, and be promoted"
    means.events.note(EventKind.REGION, action.cluster, told, action.cluster)


async def tell_source(means: Means, action: regional.TellSource) -> None:
    """As `TellInstance` does it of our own nodes."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None:
        await instance.process.do(UpdateSource(action.primary.addresses()))
        instance.heard_source(tuple(sorted((node_id, address) for node_id, _, address in action.primary.nodes)))


# ---- changes of the declared state; pure


def with_owner(cluster: DBCluster, role: Role) -> DBCluster:
    """The instance that has the volume is of that kind."""
    instances = tuple(replace(i, role=role) if i.role.traits.owns else i for i in cluster.instances)
    return replace(cluster, instances=instances)


def made_way(cluster: DBCluster, known: Membership, generation: int) -> DBCluster:
    """Nobody writes to the volume until a region is promoted for that generation or a later one; if this one was to be
    promoted for an earlier one, it is not any more."""
    if known.yielded_to >= generation:
        return cluster
    known = replace(known, yielded_to=generation, drained_lsn=None, turnover=None)
    return with_owner(replace(cluster, membership=known), Role.REPLICATOR)


def followed(cluster: DBCluster, known: Membership, view: View) -> DBCluster:
    """The copy is a prefix of that primary's."""
    known = replace(with_limits(known, view), primary=view.region, yielded_to=0, drained_lsn=None, turnover=None)
    return with_owner(replace(cluster, membership=known, succession=view.turns), Role.REPLICATOR)


def promoted(cluster: DBCluster, known: Membership, succession: Succession, here: str) -> DBCluster:
    """The copy is complete, sealed, and the primary."""
    known = replace(known, primary=here, yielded_to=0, drained_lsn=None, turnover=None)
    volume = replace(cluster.volume, initialised=True)
    return with_owner(replace(cluster, membership=known, succession=turns_of(succession), volume=volume), Role.WRITER)


# ---- inside


@dataclass(frozen=True, slots=True)
class _Turn:
    """See replication.sides.Notes, of which a promotion needs one."""

    means: Means
    cluster: str
    change: Callable[[DBCluster, Membership, Succession], DBCluster]

    async def place(self, group: int) -> GroupPlacement:
        raise UsageError(f"a promotion adds no group {group}")

    async def note_spec(self, spec: VolumeSpec) -> None:
        """A promotion changes none."""

    async def note_succession(self, succession: Succession) -> None:
        fleet = await _change(self.means, self.cluster, lambda c, m: self.change(c, m, succession))
        if fleet.cluster(self.cluster).succession != turns_of(succession):
            raise UsageError(f"the change of {self.cluster} was given up meanwhile")


@dataclass(frozen=True, slots=True)
class _Ledger:
    """See replication.rejoin.Ledger."""

    means: Means
    cluster: str
    view: View

    async def note_tail(self, tail: Tail, copy: VolumeSpec, point: ForkPoint) -> None:
        """In one save: the cluster goes on with the fork, and what it had is a past volume that nobody gives up."""
        parts = Parting(tail, copy, point, self.view)
        await _change(self.means, self.cluster, lambda c, m: with_tail(c, m, parts))


@dataclass(frozen=True, slots=True)
class Parting:
    """Where this region and the primary part: what it keeps, the fork that follows, where that begins."""

    tail: Tail
    copy: VolumeSpec
    point: ForkPoint
    view: View


def with_tail(cluster: DBCluster, known: Membership, parts: Parting) -> DBCluster:
    """The cluster goes on with a fork of its volume that ends where the primaries parted."""
    if cluster.volume.volume_id == parts.copy.volume_id:
        return cluster
    now_s = time.time()
    lost = LostTail(cluster.volume.volume_id, parts.tail.after_lsn, parts.tail.end_lsn, cluster.generation, now_s)
    known = replace(known, tails=(lost, *known.tails)[:TAILS_MAX])
    past = PastVolume(cluster.volume, now_s, now_s + TAIL_KEPT_S)
    # Nodes that have made their part say so when they are asked for it; the others make it then.
    groups = tuple(Group(p.group, p.node_ids) for p in parts.copy.groups)
    origin = Origin.of(cluster.volume.volume_id, parts.point)
    volume = replace(cluster.volume, volume_id=parts.copy.volume_id, groups=groups, origin=origin)
    return followed(replace(cluster, volume=volume, past=(past, *cluster.past)), known, parts.view)


TAIL_KEPT_S: Final = 100 * 365 * 24 * 3600.0  # a person has it dropped, no clock


def _side(means: Means, cluster: DBCluster, known: Membership) -> RegionalVolume:
    return RegionalVolume(volume_spec(cluster.volume), means.addresses(), known.first_lsn)


def _member(means: Means, name: str) -> tuple[DBCluster, Membership]:
    cluster = means.declared.fleet.cluster(name)
    if cluster.membership is None:
        raise UsageError(f"cluster {name!r} is part of no global cluster any more")
    return cluster, cluster.membership


async def _change(means: Means, name: str, change: Callable[[DBCluster, Membership], DBCluster]) -> Fleet:
    """Nothing, if the cluster has gone or left meanwhile."""

    def changed(fleet: Fleet) -> Fleet:
        cluster = next((c for c in fleet.clusters if c.name == name), None)
        if cluster is None or cluster.membership is None:
            return fleet
        return fleet.with_cluster(change(cluster, cluster.membership))

    return await means.declared.commit(changed)


class Volumes:
    """What is done to volumes themselves; tests put another one in its place."""

    put_tail_aside = staticmethod(rejoin.put_tail_aside)
    drain = staticmethod(promotion.drain)
    promote = staticmethod(promotion.promote)
