"""When the primary of a global cluster acknowledges commits, by a user's word: a lease, a bound on the RPO, or none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from aurora_ray.compute.role import Role
from aurora_ray.control.api.regional import global_cluster, member
from aurora_ray.control.api.residency import silent_regions
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import QuorumLostError, UsageError
from aurora_ray.replication.lease import LEASE_MAX_S, LEASE_MIN_S, RPO_MAX_S, RPO_MIN_S

if TYPE_CHECKING:
    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked for, in seconds; 0: none, None: as it is."""

    lease_s: float | None = None
    rpo_s: float | None = None
    failover_after_s: float | None = None


async def set_limits(plane: ControlPlane, name: str, limits: Limits, timeout_s: float) -> dict[str, Any]:
    """Declares the lease that the primary needs, the bound on the RPO, and after which time a secondary takes over by
    itself, in seconds; 0: none, None: as it is. Waits until all regions know.

    Raises UsageError, and QuorumLostError for a region that cannot be reached: it would promote its copy without
    waiting for a lease that it has not heard of. To have none is possible then, too.
    """
    cluster, known = member(plane, name)
    if cluster.is_secondary:
        raise UsageError(f"{plane.fleet.region} is a secondary region of {name}: that is set in {known.primary}")
    lease_s, rpo_s = limits.lease_s, limits.rpo_s
    _check("a lease", lease_s, LEASE_MIN_S, LEASE_MAX_S)
    _check("a bound on the RPO", rpo_s, RPO_MIN_S, RPO_MAX_S)
    _check("the silence after which a secondary takes over", limits.failover_after_s, LEASE_MIN_S, LEASE_MAX_S)
    silent = await silent_regions(plane, name, timeout_s)
    if silent and lease_s:
        raise QuorumLostError(f"region {silent[0]} of {name} cannot be reached and would not hear of it: wait for it")

    writer = plane.processes.instances.get(cluster.writer().instance_id)
    if (lease_s or rpo_s) and writer is not None and writer.seen.serves(Role.WRITER):
        # Before any region waits for its end.
        await plane.regions.leases.begin(cluster, writer, min(lease_s or RPO_MAX_S, rpo_s or RPO_MAX_S))

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        assert now.membership is not None  # noqa: S101 - it was looked up by it
        changed = replace(now.membership, **{k: v for k, v in asdict(limits).items() if v is not None})
        if lease_s is not None:
            changed = replace(changed, lease_later_s=0.0)
        if changed.failover_after_s and not (changed.lease_s or changed.lease_later_s):
            raise UsageError(
                f"without a lease nobody knows whether the primary of {name} is gone or merely unreachable: "
                "a failover by itself needs one (--lease)"
            )
        return fleet.with_cluster(replace(now, membership=changed))

    wanted = global_cluster(await plane.commit(change), name).membership
    assert wanted is not None  # noqa: S101 - it was looked up by it
    told = f"of {name}: {describe(wanted)}"
    plane.events.note(EventKind.REGION, cluster.name, told, cluster.name)
    plane.notify()

    def known_everywhere() -> bool:
        _, now = member(plane, name)
        views = [plane.regions.view(name, peer.region) for peer in now.peers if peer.region not in silent]
        mine = [getattr(wanted, field.name) for field in fields(Limits)]
        return all(v is not None and [getattr(v[0], field.name) for field in fields(Limits)] == mine for v in views)

    await plane.wait_until(known_everywhere, timeout_s, f"all regions of {name} to know")
    in_force = {field.name: getattr(wanted, field.name) or None for field in fields(Limits)}
    return {"global": name, **in_force, "rule": describe(wanted), "not_told": silent}


def describe(known: Membership) -> str:
    """In words."""
    lease = f"the primary needs a lease of {known.lease_s:g} s" if known.lease_s else "no lease"
    if known.lease_later_s:
        lease = f"the primary needs a lease of {known.lease_later_s:g} s once all regions follow"
    bound = f"commits wait for an RPO of {known.rpo_s:g} s" if known.rpo_s else "no bound on the RPO"
    after_s = known.failover_after_s
    rule = f"a secondary takes over after {after_s:g} s of silence" if after_s else "no failover by itself"
    return f"{lease}, {bound}, {rule}"


def _check(what: str, given: float | None, least: float, most: float) -> None:
    if given and not least <= given <= most:
        raise UsageError(f"{what} is of {least:g} to {most:g} seconds, or none")
