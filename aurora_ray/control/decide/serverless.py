"""Clusters whose capacity follows their load: how much each instance gets, who is paused, and who is woken.

What an instance has in force it holds of its machine: more is given to it when it holds it, and given back when it has
less (`FitPool`; whoever is cut short in between is found out by comparing the two). Where its machine has no more,
nothing is decided that it cannot have there, the reason says so, and it may move (`moving.py`).

An instance whose capacity is not the one that the policy (capacity.py) wants gets another (`ScaleInstance`). It has
none, but a size, until it is first given one, and again when its cluster has no bounds any more; a provisioned one
keeps its size. Readers of promotion tiers 0 and 1 follow the writer, whose place they may have to take; the others
scale alone.

A cluster whose minimum is 0 is paused (`PauseCluster`) when for its time nothing kept it awake: `awake` says what does.
That is declared, and `reconcile` then stops its engines. It is woken (`ResumeCluster`) when somebody waits at one of
its endpoints, whoever began to wait and whoever was the control plane then; or when its minimum is no longer 0, or its
storage needs a writer. The processes of its instances stay for KEEP_PROCESSES_S, so that it wakes quickly, and are
ended then; or sooner, when KEEP_PROCESSES_OF other clusters were paused after it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

from aurora_ray.control.decide import reconcile
from aurora_ray.control.decide.capacity import Autoscaler, Idleness, Sample, steps_up
from aurora_ray.control.decide.moving import MoveInstance, Moves, az_in
from aurora_ray.control.decide.stepwise import Stepwise, power_down
from aurora_ray.control.model.keys import Kind
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.state import ClusterPhase, DBCluster, DBInstance, Fleet
from aurora_ray.engine.sizes import ACU_BYTES, ACU_STEP

if TYPE_CHECKING:
    from aurora_ray.control.model.capacity import Capacity
    from aurora_ray.control.model.observed import CapacityUse, InstanceSeen
    from aurora_ray.control.model.runtime import Short

KEEP_PROCESSES_S: Final = 3600.0
KEEP_PROCESSES_OF: Final = 8  # clusters: a process is about 100 MB
FOLLOWING_TIERS: Final = (0, 1)


@dataclass(frozen=True, slots=True)
class EndpointUse:
    """Of all endpoints of a cluster together: sessions that are open, connections that wait, and all that ever came."""

    open: int = 0
    held: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class ScaleInstance(reconcile.Action):
    """Give an instance another capacity, in ACUs; 0: it has its size, and nothing else."""

    kind: ClassVar = Kind.CAPACITY
    of: ClassVar = ("instance_id",)
    cluster: str
    instance_id: str
    acu: float


@dataclass(frozen=True, slots=True)
class FitPool(reconcile.Action):
    """Have an instance hold as much of its machine as it has in force; 0: nothing."""

    kind: ClassVar = Kind.CAPACITY
    of: ClassVar = ("instance_id",)
    instance_id: str
    acu: float


@dataclass(frozen=True, slots=True)
class LookAtPools(reconcile.Action):
    """Find what instances hold of their machines."""

    kind: ClassVar = Kind.LOOK_AT_POOLS


@dataclass(frozen=True, slots=True)
class PauseCluster(reconcile.Action):
    """Declare that a cluster is paused, unless somebody has come meanwhile."""

    kind: ClassVar = Kind.PAUSE
    of: ClassVar = ("cluster",)
    cluster: str


@dataclass(frozen=True, slots=True)
class ResumeCluster(reconcile.Action):
    """Declare that a paused cluster runs."""

    kind: ClassVar = Kind.PAUSE
    of: ClassVar = ("cluster",)
    cluster: str


class Serverless:
    """All clusters with bounds. `wanted` is called again and again, with the same clock."""

    def __init__(self) -> None:
        self._scalers: dict[str, Autoscaler | Stepwise] = {}  # by instance
        self._idle: dict[str, Idleness] = {}
        self._accepted: dict[str, int] = {}
        self._why: dict[str, str] = {}  # by instance: why it has the capacity that it has
        self._awake: dict[str, tuple[str, ...]] = {}
        self._short: Mapping[str, Short] = {}
        self._moves = Moves()
        self._now_s = 0.0
        self._azs: tuple[str, ...] = ()
        self._alone = True  # there is one machine

    def reason(self, instance_id: str) -> str:
        """Why it has the capacity that it has; empty: not known."""
        return self._why.get(instance_id, "")

    def awake(self, cluster: str) -> tuple[str, ...]:
        """What keeps a cluster awake that could be paused, as last looked at."""
        return self._awake.get(cluster, ())

    def wanted(  # noqa: PLR0917
        self,
        fleet: Fleet,
        seen: Mapping[str, InstanceSeen],
        use: Mapping[str, EndpointUse],
        held: Collection[str],
        now_s: float,
        wall_s: float,
        short: Mapping[str, Short] = MappingProxyType({}),
    ) -> Iterator[reconcile.Action]:
        """Actions, as in `reconcile`. `use`: of the endpoints, by cluster, where it is known; `held`: the paused
        clusters for which somebody waits; `wall_s`: Unix time; `short`: those whose machines have no more."""
        self._short, self._now_s, self._azs = short, now_s, fleet.azs
        self._alone = len({node.host for node in fleet.nodes}) <= 1
        kept = sorted((c.paused_since_s for c in fleet.clusters if c.paused_since_s), reverse=True)[:KEEP_PROCESSES_OF]
        for cluster in fleet.clusters:
            if cluster.phase is not ClusterPhase.AVAILABLE:
                continue
            if cluster.paused_since_s:
                self._forget(cluster)
                yield from _paused(fleet, cluster, seen, held, wall_s, warm=cluster.paused_since_s >= kept[-1])
            elif (rule := cluster.capacity) is None:
                self._forget(cluster)
                yield from _ungoverned(cluster, seen)
            else:
                yield from self._scaled(cluster, rule, seen)
                yield from self._paused_when_idle(fleet, cluster, rule, seen, use.get(cluster.name), now_s)

    def _forget(self, cluster: DBCluster) -> None:
        for memory in (self._idle, self._accepted, self._awake):
            memory.pop(cluster.name, None)
        for instance in cluster.instances:
            self._scalers.pop(instance.instance_id, None)
            self._why.pop(instance.instance_id, None)
            self._moves.forget(instance.instance_id)

    # ---- capacity

    def _scaled(
        self, cluster: DBCluster, rule: Capacity, seen: Mapping[str, InstanceSeen]
    ) -> Iterator[reconcile.Action]:
        led = _leads(cluster.writer(), seen.get(cluster.writer().instance_id))
        for instance in cluster.engines():
            if cluster.rule_of(instance) is None:
                self._scalers.pop(instance.instance_id, None)
                yield from _governed_no_more(cluster, instance, seen)
                continue
            now = seen.get(instance.instance_id)
            if now is None or now.phase is not InstancePhase.AVAILABLE:
                self._scalers.pop(instance.instance_id, None)
                continue
            if now.capacity is None:
                if now.connections is not None:  # it has told how it is
                    why = f"{cluster.name} scales from {rule.min_acu:g} to {rule.max_acu:g} ACU"
                    yield ScaleInstance(why, cluster.name, instance.instance_id, rule.least_acu)
                continue
            follows = led if instance.role.traits.reads and instance.promotion_tier in FOLLOWING_TIERS else 0.0
            yield from self._scale(cluster, rule, instance, now.capacity, now.connections or 0, follows)

    def _scale(  # noqa: PLR0917
        self,
        cluster: DBCluster,
        rule: Capacity,
        instance: DBInstance,
        used: CapacityUse,
        sessions: int,
        follows: float,
    ) -> Iterator[reconcile.Action]:
        instance_id = instance.instance_id
        scaler, kind = self._scalers.get(instance_id), Stepwise if rule.by_powers else Autoscaler
        if not isinstance(scaler, kind):
            scaler = self._scalers[instance_id] = kind()
        short = self._short.get(instance_id)
        most = used.room if self._alone else math.inf  # more than that is asked for where another machine may have it
        most = most if short is None else min(most, max(short.holds, used.acu))
        most = power_down(most) if rule.by_powers and most < rule.max_acu else most
        room = replace(rule, min_acu=min(rule.min_acu, most), max_acu=min(rule.max_acu, most))
        sample = Sample(
            used.at_s,
            used.acu,
            used.cpus,
            used.cpus_per_acu,
            used.held_back,
            used.misses,
            cache_full=used.cache_full,
            sessions=sessions,
            busy=used.busy,
        )
        decision = scaler.look(room, sample, follows=follows)
        why = decision.why
        if short is not None and most < rule.max_acu and decision.acu >= most:
            there, comes = self._moves.look(instance, short, self._azs, self._now_s)
            why = f"{why}; it needs a machine with more room: of this one it holds {short.holds:g} ACU; {comes}"
            self._why[instance_id] = why
            if there is not None:
                az = az_in(there, instance.az, self._azs)
                yield MoveInstance(why, cluster.name, instance_id, there.host, az, short.asked)
                return
        elif decision.acu == used.room == most < rule.max_acu and decision.acu > used.acu:
            why += ", and its machine has no more"
        if decision.acu != used.acu:
            self._why[instance_id] = why
            yield ScaleInstance(f"{used.acu:g} to {decision.acu:g} ACU: {why}", cluster.name, instance_id, decision.acu)
        else:
            self._why.setdefault(instance_id, why)

    # ---- pause

    def _paused_when_idle(  # noqa: PLR0917
        self,
        fleet: Fleet,
        cluster: DBCluster,
        rule: Capacity,
        seen: Mapping[str, InstanceSeen],
        use: EndpointUse | None,
        now_s: float,
    ) -> Iterator[reconcile.Action]:
        name = cluster.name
        if not rule.pauses:
            self._idle.pop(name, None)
            self._awake.pop(name, None)
            return
        awake = list(keeps_awake(fleet, cluster, seen))
        if use is None:
            awake.append("whether anybody is connected is not known")
        else:
            came = use.accepted - self._accepted.get(name, use.accepted)
            self._accepted[name] = use.accepted
            awake += [f"{use.open} sessions at its endpoints"] * bool(use.open)
            awake += [f"{use.held} connections that wait"] * bool(use.held)
            awake += ["somebody has just been connected"] * bool(came)
        self._awake[name] = tuple(awake)
        idle_s = self._idle.setdefault(name, Idleness()).look(awake, now_s)
        if idle_s >= rule.pause_after_s:
            yield PauseCluster(f"{name} was not used for {idle_s:.0f} s", name)


def keeps_awake(fleet: Fleet, cluster: DBCluster, seen: Mapping[str, InstanceSeen]) -> Iterator[str]:
    """What of a cluster's own keeps it from being paused, or wakes it."""
    if (storage := _needs_writer(fleet, cluster)) != "":
        yield storage
    for instance in cluster.engines():
        now = seen.get(instance.instance_id)
        if instance.provisioned:
            yield f"{instance.instance_id} is provisioned, and never stops"
        if now is not None and now.capacity is not None and now.capacity.slots:
            yield f"{now.capacity.slots} replication slots on {instance.instance_id}"
        if now is None or not now.serves(instance.role):
            yield f"{instance.instance_id} does not serve yet"
        elif now.connections is None:
            yield f"the sessions of {instance.instance_id} are not known yet"
        elif now.connections:
            yield f"{now.connections} sessions on {instance.instance_id}"


def _needs_writer(fleet: Fleet, cluster: DBCluster) -> str:
    volume = cluster.volume
    if not volume.initialised:
        return "its volume is being made"
    if cluster.membership is not None:  # other regions follow it, and may ask it to make way
        return f"it is part of the global cluster {cluster.membership.name}"
    if cluster.repairs:
        return "it is being repaired"
    going = fleet.replacements()
    if any(group.next_node_ids or going.keys() & {*group.node_ids} for group in volume.groups):
        return "a storage node that has copies of its volume is being replaced"
    return ""


def _paused(
    fleet: Fleet,
    cluster: DBCluster,
    seen: Mapping[str, InstanceSeen],
    held: Collection[str],
    wall_s: float,
    *,
    warm: bool,
) -> Iterator[reconcile.Action]:
    """`warm`: it is one of those whose processes may stay."""
    name = cluster.name
    if cluster.capacity is None or not cluster.capacity.pauses:
        yield ResumeCluster(f"{name} is paused, and its minimum is not 0", name)
    elif name in held:
        yield ResumeCluster(f"somebody waits at an endpoint of {name}, which is paused", name)
    elif (storage := _needs_writer(fleet, cluster)) != "":
        yield ResumeCluster(f"{name} is paused, and {storage}", name)
    elif not warm or wall_s - cluster.paused_since_s >= KEEP_PROCESSES_S:
        since = f"for {KEEP_PROCESSES_S:g} s" if warm else f"and {KEEP_PROCESSES_OF} others were paused after it"
        for instance in cluster.engines():
            now = seen.get(instance.instance_id)
            if now is not None and now.phase in (InstancePhase.ENDED, InstancePhase.IDLE):
                yield reconcile.StopInstance(f"{name} is paused {since}", instance.instance_id)


def _ungoverned(cluster: DBCluster, seen: Mapping[str, InstanceSeen]) -> Iterator[reconcile.Action]:
    for instance in cluster.engines():
        yield from _governed_no_more(cluster, instance, seen)


def _governed_no_more(
    cluster: DBCluster, instance: DBInstance, seen: Mapping[str, InstanceSeen]
) -> Iterator[reconcile.Action]:
    now = seen.get(instance.instance_id)
    if now is not None and now.phase is InstancePhase.AVAILABLE and now.capacity is not None:
        yield ScaleInstance(f"{instance.instance_id} has its size", cluster.name, instance.instance_id, 0.0)


def _leads(writer: DBInstance, now: InstanceSeen | None) -> float:
    """What readers have that follow the writer: of a provisioned one, what its memory comes to."""
    if now is not None and now.capacity is not None:
        return now.capacity.acu
    return steps_up(writer.memory_bytes / ACU_BYTES) if writer.provisioned else 0.0


def fitted(
    fleet: Fleet, seen: Mapping[str, InstanceSeen], held: Mapping[str, float] | None, short: Collection[str] = ()
) -> Iterator[reconcile.Action]:
    """Whatever instances hold of their machines (None: that is not known) becomes what they have in force. One that is
    opening, or ending, keeps what it has; one whose machine has no more (`short`) does not ask again."""
    if held is None:
        yield LookAtPools("it is not known what instances hold of their machines")
        return
    declared = {i.instance_id for cluster in fleet.clusters for i in cluster.instances}
    for instance_id in sorted(declared | held.keys()):
        now = seen.get(instance_id) if instance_id in declared else None
        if now is not None and now.phase in (InstancePhase.OPENING, InstancePhase.STOPPING):
            continue
        serves = now is not None and now.phase is InstancePhase.AVAILABLE
        acu = now.capacity.acu if serves and now is not None and now.capacity is not None else 0.0
        holds = held.get(instance_id, 0.0)
        if acu < holds or (acu > holds and instance_id not in short):
            yield FitPool(f"{instance_id} has {acu:g} ACU and holds {holds:g} of its machine", instance_id, acu)


def start_acu(rule: Capacity, last: float) -> float:
    """What an instance begins with that had `last` (0: it is not known)."""
    return min(max(last // ACU_STEP * ACU_STEP, rule.least_acu), rule.max_acu)
