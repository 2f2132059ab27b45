"""The policy of residency of a global cluster, by a user's word; who asks it, and when: moves.py."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.control.api.moves import UNDECLARED, known_regions, require, require_quiet
from aurora_ray.control.api.regional import global_cluster, member
from aurora_ray.control.report import audit
from aurora_ray.control.report.events import EventKind
from aurora_ray.errors import QuorumLostError, UsageError
from aurora_ray.replication.residency import Policy, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane

HEARD_S: Final = 5.0  # whoever was heard of since then hears of a policy, too


async def set_policy(
    plane: ControlPlane, name: str, regions: Sequence[str], jurisdictions: Sequence[str], timeout_s: float
) -> dict[str, Any]:
    """Declares where the data of a global cluster may lie, none of both: anywhere. Waits until all regions know.

    What would lie elsewhere now has to go first: regions, backups, exported traces. Raises UsageError, ResidencyError,
    and QuorumLostError for a region that cannot be reached, before anything is changed, or that does not say in time
    that it knows; then the policy is in force here, and there as soon as it hears of it.
    """
    cluster, known = member(plane, name)
    here = plane.fleet.region
    if cluster.is_secondary:
        raise UsageError(f"{here} is a secondary region of {name}: its policy is changed in {known.primary}")
    policy = Policy.of(regions, jurisdictions, known_regions(plane.config))
    silent = await silent_regions(plane, name, timeout_s)
    heard = {peer.region: plane.regions.view(name, peer.region) for peer in known.peers}
    if silent and policy.restricts:
        raise QuorumLostError(
            f"region {silent[0]} of {name} cannot be reached and would not hear of it: wait for it, or have it removed"
        )
    require(plane.config, policy, name, Purpose.POLICY, [("", here), *(("", region) for region in heard)])
    places = [(here, cluster.backup.location if cluster.backup is not None else here)]
    places += [(r, each[0].backs_up_to) for r, each in heard.items() if each and each[0].backs_up_to is not None]
    require(plane.config, policy, name, Purpose.BACKUP, [(region, place or UNDECLARED) for region, place in places])
    require_quiet(plane.config, policy, name, here)

    def change(fleet: Fleet) -> Fleet:
        return fleet.with_cluster(replace(global_cluster(fleet, name), residency=policy))

    await plane.commit(change)
    plane.events.note(EventKind.REGION, cluster.name, f"of {name}: {policy}", cluster.name)
    plane.notify()

    def told() -> bool:
        _, now = member(plane, name)
        views = [(peer.region, plane.regions.view(name, peer.region)) for peer in now.peers]
        return all(each is not None and each[0].residency == policy for region, each in views if region not in silent)

    await plane.wait_until(told, timeout_s, f"all regions of {name} to know: {policy}")
    return {"global": name, "policy": policy.to_dict(), "rule": str(policy)}


async def silent_regions(plane: ControlPlane, name: str, timeout_s: float) -> list[str]:
    """Regions that would not hear now of what is declared. One that has just begun has heard of nobody yet, so they are
    waited for."""

    def silent() -> list[str]:
        _, known = member(plane, name)
        views = {peer.region: plane.regions.view(name, peer.region) for peer in known.peers}
        return sorted(region for region, each in views.items() if each is None or each[1] > HEARD_S)

    with contextlib.suppress(QuorumLostError):
        await plane.wait_until(lambda: not silent(), min(timeout_s, HEARD_S), "hearing of all regions")
    return silent()


def describe(plane: ControlPlane, name: str) -> dict[str, Any]:
    """The policy as this region knows it, and what this region was asked. Raises UsageError."""
    cluster, _ = member(plane, name)
    return {
        "global": name,
        "region": plane.fleet.region,
        "policy": cluster.residency.to_dict(),
        "rule": str(cluster.residency),
        "audit": audit.read(plane.config.data_dir),
    }
