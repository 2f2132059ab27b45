"""A region's part in its global clusters: rules, as pure as those of `reconcile`.

Each region's control plane decides for its own region alone, by its declared state and by what the others said last.
Nobody commands another region but for one request: a switchover asks the primary to make way. All else follows from
generations, which only rise: whoever sees a higher one than its own is no primary any more, and follows.

    StepDown       a later generation was seen: no engine writes here any more
    Follow         the turns of the later primary are taken over, once no writer is left; a tail is put aside
    Drain          a primary that made way and has no writer left is sealed, and its end noted
    AskToMakeWay   the primary is asked to, for a switchover to here
    NoteEnd        it said where it ended
    NoteReached    the copy has all of that
    TakeOver       the primary was not heard of for too long, and the user has a rule for that
    NoteRefusal    another region wants to take a generation by a failover: none before it gets a lease from here
    Promote        the copy is sealed for its own generation, and a writer declared
    LeaseAgain     all regions follow a primary that took over from a fenced one: it needs its lease again
    GiveUpTurn     a change that a later generation has overtaken is void
    NoteRegions    the primary says who belongs to the global cluster
    NoteCopied     all pages of the copy are here: readers can open
    TellSource     a replicator learns where the primary's storage nodes answer
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.abroad import source_addresses, source_of
from aurora_ray.control.decide.reconcile import Action, AddGroup, AllocateGroup
from aurora_ray.control.decide.succeeding import takes_over
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import NOTHING_ABROAD, Abroad, Addresses, InstancePhase, InstanceSeen, Observed
from aurora_ray.control.model.placement import quorum_up
from aurora_ray.control.model.regional import Membership
from aurora_ray.control.model.state import ClusterPhase, DBCluster, Fleet
from aurora_ray.control.model.views import View, with_members
from aurora_ray.errors import UsageError
from aurora_ray.log.sizes import WRITE_QUORUM
from aurora_ray.replication.lease import GIVE_UP_S, blocking, bound_until
from aurora_ray.replication.turnover import Seen, Step, Turnover, Way, next_step


@dataclass(frozen=True, slots=True)
class StepDown(Action):
    """Declare that no engine writes here any more, since that region, or the primary that it knows, took a later
    generation."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    later: View


@dataclass(frozen=True, slots=True)
class Follow(Action):
    """Take over the turns of that primary; what only this region has is put aside first."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    primary: View


@dataclass(frozen=True, slots=True)
class Drain(Action):
    """Seal the volume of a primary that made way for a generation, and note its end."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    generation: int


@dataclass(frozen=True, slots=True)
class AskToMakeWay(Action):
    """Ask the primary region to stop its writer."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    region: str
    generation: int


@dataclass(frozen=True, slots=True)
class NoteEnd(Action):
    """Note where the primary ended, which the copy must reach."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    end_lsn: int


@dataclass(frozen=True, slots=True)
class NoteReached(Action):
    """Note that the copy is complete, before it is sealed and nobody is left to tell."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    generation: int


@dataclass(frozen=True, slots=True)
class TakeOver(Action):
    """Begin a failover to here, which waits until it is sure that the old primary is fenced."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    old: str
    generation: int


@dataclass(frozen=True, slots=True)
class NoteRefusal(Action):
    """Note that primaries of earlier generations get no lease from this region any more."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    generation: int


@dataclass(frozen=True, slots=True)
class LeaseAgain(Action):
    """Have the writer need a lease, then declare it."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str


@dataclass(frozen=True, slots=True)
class Promote(Action):
    """Make this region the primary. `known_lsn`: up to where the old one is known to have had redo. `fenced`: whether
    no lease of an earlier one is in force; None: there are no leases. `alone`: see Membership.alone."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    turnover: Turnover
    known_lsn: int
    fenced: bool | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class GiveUpTurn(Action):
    """Forget a change of the primary that was overtaken."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    generation: int


@dataclass(frozen=True, slots=True)
class NoteRegions(Action):
    """Take over from the primary who belongs to the global cluster."""

    kind: ClassVar = Kind.REGION
    of: ClassVar = ("cluster",)
    cluster: str
    primary: View


@dataclass(frozen=True, slots=True)
class NoteCopied(Action):
    """Note that all pages of the copy are here."""

    kind: ClassVar = Kind.INITIALISED
    of: ClassVar = ("cluster",)
    cluster: str


@dataclass(frozen=True, slots=True)
class TellSource(Action):
    """Give a replicator the addresses of the primary's storage nodes."""

    kind: ClassVar = Kind.TELL_SOURCE
    of: ClassVar = ("instance_id",)
    instance_id: str
    primary: View


def wanted(fleet: Fleet, observed: Observed) -> Iterator[Action | str]:
    """Of all global clusters; only with the declared state in force."""
    for cluster in fleet.clusters:
        if cluster.membership is not None and cluster.phase is ClusterPhase.AVAILABLE and observed.control_open:
            yield from _of_cluster(fleet, cluster, cluster.membership, observed)


def _of_cluster(fleet: Fleet, cluster: DBCluster, known: Membership, observed: Observed) -> Iterator[Action | str]:
    abroad = observed.abroad.get(cluster.name, NOTHING_ABROAD)
    later = [v for v in abroad.views.values() if v.generation > cluster.generation]
    if later:
        yield from _is_overtaken(cluster, known, max(later, key=lambda v: v.generation), observed)
        return
    if known.yielded_to and known.drained_lsn is None:  # also of one that takes its place back: by its end
        waits = _not_free(cluster, observed)
        why = f"{cluster.name} made way for generation {known.yielded_to}, and no writer is left"
        yield f"{cluster.name} is not drained yet: {waits}" if waits else Drain(why, cluster.name, known.yielded_to)
    elif known.turnover is not None:
        yield from _turn(cluster, known, known.turnover, abroad, observed)
    elif cluster.is_secondary and not known.yielded_to:
        yield from _secondary(fleet, cluster, observed)
    elif known.lease_later_s and not known.yielded_to and _all_follow(cluster, known, abroad):
        yield LeaseAgain(f"all regions follow {cluster.name}", cluster.name)


def _all_follow(cluster: DBCluster, known: Membership, abroad: Abroad) -> bool:
    views = [abroad.views[peer.region] for peer in known.peers if peer.region in abroad.reached]
    following = [view for view in views if view.following and view.generation == cluster.generation]
    return 0 < len(known.peers) == len(following)


def _is_overtaken(cluster: DBCluster, known: Membership, view: View, observed: Observed) -> Iterator[Action | str]:
    said = f"region {view.region} is of generation {view.generation}, {cluster.name} here of {cluster.generation}"
    if not cluster.is_secondary:
        yield StepDown(f"{said}: it is no primary any more", cluster.name, view)
        return
    if known.turnover is not None and view.generation >= known.turnover.generation:
        yield GiveUpTurn(f"{said}: what was begun here is overtaken", cluster.name, known.turnover.generation)
        return
    if not view.is_primary:
        yield f"{said}, but the primary itself has not been heard of"
    elif waits := _not_free(cluster, observed):
        yield f"{said}; it is not followed yet: {waits}"
    else:
        yield Follow(f"{said}: it is the primary", cluster.name, view)


def _not_free(cluster: DBCluster, observed: Observed) -> str:
    """Why the volume cannot be sealed for another generation yet: a writer that ends in order makes all of its redo
    durable; one that does not is shut out by the seal."""
    for instance in cluster.instances:
        seen = observed.instances.get(instance.instance_id)
        ends = (InstancePhase.AVAILABLE, InstancePhase.STOPPING, InstancePhase.OPENING)
        if seen is not None and seen.role.traits.writes and seen.phase in ends:
            return f"its writer {instance.instance_id} has not ended yet"
    for group in cluster.volume.groups:
        if not quorum_up(group, observed.holders(cluster.volume, group)):
            return f"fewer than {WRITE_QUORUM} copies of group {group.group} run"
    return ""


# ---- a secondary region


def _secondary(fleet: Fleet, cluster: DBCluster, observed: Observed) -> Iterator[Action | str]:
    views, known = observed.abroad.get(cluster.name, NOTHING_ABROAD).views, cluster.membership
    takes = max(((v.takes, v.region) for v in views.values()), default=(0, ""))
    if known is not None and known.lease_s and takes[0] > max(known.refuses_below, cluster.generation):
        yield NoteRefusal(f"region {takes[1]} takes generation {takes[0]}", cluster.name, takes[0])
        return
    if known is not None:
        copy = observed.instances.get(cluster.writer().instance_id)
        abroad = observed.abroad.get(cluster.name, NOTHING_ABROAD)
        if generation := takes_over(cluster, known, abroad, copy.copy_lsn if copy is not None else 0):
            why = f"{known.primary} was not heard of for {known.failover_after_s:g} s"
            yield TakeOver(why, cluster.name, known.primary, generation)
            return
    view = source_of(cluster, observed)
    if view is None or view.turns != cluster.succession:
        return
    if with_members(cluster, view, fleet.region) != cluster:
        yield NoteRegions(f"the primary {view.region} says who belongs to it", cluster.name, view)
    owner = cluster.writer().instance_id
    seen = observed.instances.get(owner)
    declared = {group.group for group in cluster.volume.groups}
    more = sorted({placement.group for placement in view.spec.groups} - declared)
    if more:
        yield AllocateGroup(f"the primary's volume has group {more[0]}", cluster.name, more[0])
    if seen is None or not seen.serves(Role.REPLICATOR):
        return
    if seen.copied and not cluster.volume.initialised:
        yield NoteCopied(f"all pages of {cluster.name} are here", cluster.name)
    yield from _groups(cluster, owner, seen, observed)
    addresses: Addresses = source_addresses(view)
    if addresses and seen.source_told != addresses:
        yield TellSource(f"{owner} does not know where the nodes of {view.region} answer", owner, view)


def _groups(cluster: DBCluster, owner: str, seen: InstanceSeen, observed: Observed) -> Iterator[Action]:
    for group in cluster.volume.groups:
        if group.group not in seen.groups and quorum_up(group, observed.holders(cluster.volume, group)):
            yield AddGroup(f"{owner} does not know yet who holds group {group.group}", owner, group)
            return


# ---- becoming the primary


def _turn(
    cluster: DBCluster, known: Membership, turnover: Turnover, abroad: Abroad, observed: Observed
) -> Iterator[Action | str]:
    old = abroad.views.get(turnover.old)
    made_way = old is not None and old.yielded_to == turnover.generation and not old.writes
    drained = old.drained_lsn if made_way and old is not None else None
    owner = observed.instances.get(cluster.writer().instance_id)
    copy_lsn = owner.copy_lsn if owner is not None else 0
    if known.yielded_to:  # it was the primary and takes its place back: it has what it ended with
        copy_lsn = known.drained_lsn or 0
    seen = Seen(
        old_reachable=turnover.old in abroad.reached,
        old_runs=not made_way,
        old_follows=False,
        old_generation=old.generation if old is not None else 0,
        new_generation=cluster.generation,
        new_lsn=copy_lsn,
        new_runs=False,
    )
    try:
        step = next_step(turnover, seen)
    except UsageError as error:
        yield GiveUpTurn(str(error), cluster.name, turnover.generation)
        return
    begun = f"{turnover.way.value} of {known.name} to {turnover.new}"
    match step:
        case Step.STOP_OLD if old is not None and old.yielded_to == turnover.generation:
            yield f"{begun}: {turnover.old} stops its writer"
        case Step.STOP_OLD:
            yield AskToMakeWay(f"{begun}: {step.value}", cluster.name, turnover.old, turnover.generation)
        case Step.DRAIN_OLD if drained is not None:
            yield NoteEnd(f"{begun}: {turnover.old} ended at LSN {drained}", cluster.name, drained)
        case Step.NOTE_COPY:
            yield NoteReached(f"{begun}: {step.value}", cluster.name, turnover.generation)
        case Step.PROMOTE_NEW:
            fenced, leased = _fenced(known, turnover, abroad, made_way=made_way)
            waits = leased or _not_free(cluster, observed)
            known_lsn = max(old.lsn if old is not None else 0, turnover.end_lsn or 0)
            why = f"{begun}: {step.value}"
            alone = bool(fenced) and not made_way and known.may_be_alone(cluster.generation)
            yield waits or Promote(why, cluster.name, turnover, known_lsn, fenced, alone)
        case _:
            yield f"{begun}: {step.value}"


def _fenced(known: Membership, turnover: Turnover, abroad: Abroad, *, made_way: bool) -> tuple[bool | None, str]:
    """Whether the old primary has no lease any more (None: there are none), and why that is waited for.

    Regions that do not answer may keep it from ever being sure. A failover is somebody's word: it waits for no longer
    than a lease may last, and says then that it is not.
    """
    if not known.lease_s or turnover.way is Way.SWITCHOVER:
        return None, ""
    needed = blocking(len(known.peers) + 1)
    if made_way or abroad.fenced >= needed:
        return True, ""
    if not turnover.sure and abroad.turns_s >= bound_until(0.0, known.lease_s) + GIVE_UP_S:
        return False, ""
    return None, (
        f"failover of {known.name} to {turnover.new}: {turnover.old} may have a lease "
        f"({abroad.fenced} of {needed} regions say that it has none of theirs)"
    )
