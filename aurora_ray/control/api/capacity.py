"""Serverless capacity by a user's word: bounds, and waking what is paused for what needs its engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aurora_ray.control.model.attempt import check_hope
from aurora_ray.control.model.capacity import Capacity
from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.moments import parse
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.serverless import with_resumed
from aurora_ray.control.report.events import EventKind
from aurora_ray.control.report.usage import report_usage
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.control.model.state import DBCluster, Fleet
    from aurora_ray.control.plane import ControlPlane


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a user says of a cluster's capacity; what is None stays as it is. `by_powers`, `safe_timeout_s`, `force`:
    see Capacity. `provisioned` and `serverless` name instances that have their size, or follow the cluster's bounds."""

    off: bool = False
    min_acu: float | None = None
    max_acu: float | None = None
    pause_after_s: float | None = None
    by_powers: bool | None = None
    safe_timeout_s: float | None = None
    force: bool | None = None
    provisioned: tuple[str, ...] = ()
    serverless: tuple[str, ...] = ()


async def scale(plane: ControlPlane, name: str, said: Scaling, timeout_s: float) -> dict[str, Any]:
    """Declares bounds, or none; returns when each instance that runs is within them.

    Raises UsageError for bounds that cannot be, and what `wait_until` raises.
    """

    def change(fleet: Fleet) -> Fleet:
        cluster = _kinds(fleet.cluster(name), said)
        rule = None if said.off else _bounds(cluster, said)
        if rule is not None:
            _check_running(plane, cluster, rule)
        changed = fleet.with_cluster(replace(cluster, capacity=rule))
        return changed if rule is not None and rule.pauses else with_resumed(changed, name)

    before = plane.fleet.cluster(name).capacity
    rule = (await plane.commit(change)).cluster(name).capacity
    if rule != before:
        told = f"from {rule.min_acu:g} to {rule.max_acu:g} ACU" if rule is not None else "off"
        told += f", paused after {rule.pause_after_s:g} s without use" if rule is not None and rule.pauses else ""
        plane.events.note(EventKind.CAPACITY, name, f"serverless capacity of {name}: {told}", name)
    plane.notify()
    await plane.wait_until(lambda: _in_force(plane, name), timeout_s, f"the capacity of {name}")
    return {"cluster": name, "capacity": report_capacity(plane, plane.fleet.cluster(name))}


def _kinds(cluster: DBCluster, said: Scaling) -> DBCluster:
    """With the named instances provisioned, or serverless."""
    both = set(said.provisioned) & set(said.serverless)
    if both:
        raise UsageError(f"{', '.join(sorted(both))} cannot be provisioned and serverless at once")
    now = dict.fromkeys(said.provisioned, True) | dict.fromkeys(said.serverless, False)
    for instance_id in now:
        if not cluster.instance(instance_id).role.traits.engine:
            raise UsageError(f"{instance_id} has no engine, and so no capacity")
    changed = (replace(i, provisioned=now.get(i.instance_id, i.provisioned)) for i in cluster.instances)
    return replace(cluster, instances=tuple(changed))


def _bounds(cluster: DBCluster, said: Scaling) -> Capacity:
    before = cluster.capacity
    least = said.min_acu if said.min_acu is not None else before.min_acu if before is not None else None
    most = said.max_acu if said.max_acu is not None else before.max_acu if before is not None else None
    if least is None or most is None:
        raise UsageError(f"{cluster.name} has no bounds yet: say both, as in --min 0.5 --max 8")
    if said.pause_after_s is not None and least > 0:
        raise UsageError(f"a cluster is paused with --min 0 alone: with at least {least:g} ACU it never is")
    known = before or Capacity(least, most)
    given = {n: getattr(said, n) for n in ("pause_after_s", "by_powers", "safe_timeout_s", "force")}
    rule = replace(known, min_acu=least, max_acu=most, **{n: value for n, value in given.items() if value is not None})
    if not rule.by_powers and (said.safe_timeout_s is not None or said.force is not None):
        raise UsageError("steps wait for a safe point in the mode v1 alone: say --mode v1")
    return rule


def _check_running(plane: ControlPlane, cluster: DBCluster, rule: Capacity) -> None:
    for instance in cluster.engines():
        there = plane.processes.instances.get(instance.instance_id)
        now = there.seen.capacity if there is not None else None
        if now is not None and now.acu > rule.max_acu and cluster.capacity != rule:
            raise UsageError(
                f"{instance.instance_id} runs with {now.acu:g} ACU: the maximum cannot be {rule.max_acu:g} before it "
                "needs less (or say --off, and the bounds then)"
            )


def _in_force(plane: ControlPlane, name: str) -> bool:
    cluster = plane.fleet.cluster(name)
    if cluster.paused_since_s:
        return cluster.capacity is not None and cluster.capacity.pauses
    for instance in cluster.engines():
        rule = cluster.rule_of(instance)
        check_hope(plane.attempts, key(Kind.INSTANCE, instance.instance_id))
        there = plane.processes.instances.get(instance.instance_id)
        if there is None or there.seen.phase is not InstancePhase.AVAILABLE:
            return False
        now = there.seen.capacity
        if (now is None) is not (rule is None):
            return False
        if now is not None and rule is not None and not min(rule.least_acu, now.room) <= now.acu <= rule.max_acu:
            return False
    return True


async def wake(plane: ControlPlane, name: str, why: str, timeout_s: float) -> None:
    """A cluster that is paused is woken for what needs its engine; returns when its writer serves. Raises what
    `wait_until` raises."""
    if not plane.fleet.cluster(name).paused_since_s:
        return
    await plane.commit(lambda fleet: with_resumed(fleet, name))
    plane.events.note(EventKind.CAPACITY, name, f"resumed: {why}", name)
    plane.notify()

    def serves() -> bool:
        cluster = plane.fleet.cluster(name)
        check_hope(plane.attempts, key(Kind.INSTANCE, cluster.writer().instance_id))
        there = plane.processes.instances.get(cluster.writer().instance_id)
        return there is not None and there.seen.serves(cluster.writer().role) and plane.endpoints.serves(cluster)

    await plane.wait_until(serves, timeout_s, f"resuming {name}")


def report_capacity(plane: ControlPlane, cluster: DBCluster) -> dict[str, Any] | None:
    """For `status`: bounds, what its instances have together, why, and what keeps it awake; `limits`: what the kernel
    holds each of them to. None without bounds."""
    rule = cluster.capacity
    if rule is None:
        return None
    writer, acu, limits = cluster.writer().instance_id, 0.0, {}
    for instance in cluster.engines():
        there = plane.processes.instances.get(instance.instance_id)
        now = there.seen.capacity if there is not None and there.seen.phase is InstancePhase.AVAILABLE else None
        if now is not None:
            acu += now.acu
            limits[instance.instance_id] = {"cpu": now.cpu_enforced, "memory_bytes": now.memory_limit_bytes or None}
    reason = "nobody uses it" if cluster.paused_since_s else plane.serverless.reason(writer)
    totals = plane.meter.totals(cluster.name)
    return rule.report() | {
        "acu": acu,
        "acu_hours": round(totals.acu_s / 3600, 6) if totals is not None else 0.0,
        "reason": reason,
        "paused_since": cluster.paused_since_s or None,
        "awake": list(plane.serverless.awake(cluster.name)),
        "limits": limits,
    }


def usage(plane: ControlPlane, name: str, since: str) -> dict[str, Any]:
    """What a cluster has used, since a moment (empty: since it is counted), and what it has now. Raises UsageError."""
    cluster, now_s = plane.fleet.cluster(name), time.time()
    moment = parse(since, now_s)
    if since and moment.time_us is None:
        raise UsageError(f"what was used is counted by time: say --since -1h, or a time, not {since}")
    since_s = moment.time_us / 1e6 if moment.time_us is not None else None
    found = report_usage(cluster, plane.meter, plane.usage_log, since_s, now_s)
    return found | {"capacity": report_capacity(plane, cluster)}
