"""When a reader goes on as the writer in place, with its engine and its sessions; pure.

Two decisions. A writer that was lost, and not ended by anybody's will, has the best of its cluster's readers declared
the writer (`MakeWriter`). And whoever is declared the writer, still serves as a reader and can go on as it is, is
promoted (`PromoteInstance`), once the writer before has ended. Both only where what a promotion rests on is known to
hold (`why_not`): else its place is opened anew, as ever. So it is if the promotion fails: the incarnation has ended
then, and nothing need be remembered.

What is decided here comes before all that `reconcile` says of the same instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.compute.role import Role
from aurora_ray.control.decide.readers import failover_target
from aurora_ray.control.decide.reconcile import Action, former_writer, waits_for
from aurora_ray.control.model.keys import Key, Kind, key
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.state import ClusterPhase
from aurora_ray.engine.registry import adapter

if TYPE_CHECKING:
    from aurora_ray.control.model.observed import Observed
    from aurora_ray.control.model.state import DBCluster, DBInstance, Fleet


@dataclass(frozen=True, slots=True)
class MakeWriter(Action):
    """Declare a reader the writer, as `instance_id`, which was it, is lost and is a reader when it is back."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str
    target: str


@dataclass(frozen=True, slots=True)
class PromoteInstance(Action):
    """Have an instance that serves as a reader go on as the writer in place; if it cannot, end its incarnation."""

    kind: ClassVar = Kind.INSTANCE
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """`wanted` as for `reconcile.decide`; `waiting`: instances that stay what they are until others are done."""

    wanted: tuple[Action | str, ...]
    waiting: frozenset[Key]


NOTHING: Final = Ahead((), frozenset())
LAG_MAX_MS: Final = 2000.0  # about what an opening takes


def ahead(fleet: Fleet, observed: Observed) -> Ahead:
    """What is to be done before anything else is decided of these instances."""
    wanted: list[Action | str] = []
    waiting: set[Key] = set()
    for cluster in fleet.clusters if observed.control_open else ():
        writer = cluster.writer()
        if why_not(cluster):
            continue
        wanted.extend(_makes_writer(cluster, writer, observed))
        if not _goes_on(cluster, writer, observed):
            continue
        waits = waits_for(cluster.volume, observed) or former_writer(cluster, observed)
        if waits:
            wanted.append(f"{writer.instance_id} does not go on as the writer yet: {waits}")
            waiting.add(key(Kind.INSTANCE, writer.instance_id))
        else:
            why = f"{writer.instance_id} serves as a reader and shall be the writer of {cluster.name}"
            wanted.append(PromoteInstance(why, cluster.name, writer.instance_id))
            waiting.update(_closed(cluster, observed))
    return Ahead(tuple(wanted), frozenset(waiting))


def _closed(cluster: DBCluster, observed: Observed) -> Iterator[Key]:
    """Readers that have yet to open: not beside a promotion, which takes half a second if it has the machine."""
    for reader in cluster.readers():
        seen = observed.instances.get(reader.instance_id)
        if seen is None or seen.phase in (InstancePhase.ENDED, InstancePhase.IDLE):
            yield key(Kind.INSTANCE, reader.instance_id)


def why_not(cluster: DBCluster) -> str:
    """Why none of a cluster's readers goes on in place; empty if one may. What an opening does besides, a promotion
    does not: repairs, what other regions must agree to, the capacity of a serverless one."""
    if not adapter(cluster.engine).goes_on_in_place:
        return "its engine's readers cannot"
    if cluster.phase is ClusterPhase.DELETING or cluster.paused_since_s:
        return "it shall have no writer"
    if not cluster.volume.initialised or cluster.repairs:
        return "its next opening has something to do first"
    if cluster.membership is not None or cluster.is_secondary:
        return "other regions have a say"
    return "it is serverless" if cluster.capacity is not None else ""


def concerns(cluster: DBCluster, instance: DBInstance) -> bool:
    """Whether it is a reader that may go on as the writer, or a writer that has such readers."""
    traits = instance.role.traits
    return not why_not(cluster) and (traits.reads or (traits.writes and bool(cluster.readers())))


def goes_on(cluster: DBCluster, instance_id: str, observed: Observed) -> bool:
    """Whether it is a reader of this cluster's volume, and serves."""
    seen = observed.instances.get(instance_id)
    return seen is not None and seen.volume_id == str(cluster.volume.volume_id) and seen.serves(Role.READER)


def _goes_on(cluster: DBCluster, writer: DBInstance, observed: Observed) -> bool:
    return writer.role.traits.writes and goes_on(cluster, writer.instance_id, observed)


def _makes_writer(cluster: DBCluster, writer: DBInstance, observed: Observed) -> Iterator[Action | str]:
    seen = observed.instances.get(writer.instance_id)
    if writer.instance_id not in observed.lost or not writer.role.traits.writes:
        return
    if seen is not None and seen.phase not in (InstancePhase.ENDED, InstancePhase.IDLE):
        return
    target = failover_target(cluster, observed.instances)
    if target is None or not goes_on(cluster, target.instance_id, observed) or waits_for(cluster.volume, observed):
        return
    lag_ms = observed.instances[target.instance_id].lag_ms
    if lag_ms is None or lag_ms > LAG_MAX_MS:  # it would have to replay that first, behind what its sessions look at
        return
    mine = key(Kind.INSTANCE, target.instance_id)
    if mine in observed.busy | observed.held or mine in observed.attempts:
        return
    why = f"{writer.instance_id} is lost, and {target.instance_id} can go on as the writer of {cluster.name} at once"
    yield MakeWriter(why, cluster.name, writer.instance_id, target.instance_id)
