"""Whether sessions on readers of a global cluster may write, by a user's word: the primary runs what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aurora_ray.control.api.regional import global_cluster, member
from aurora_ray.control.api.residency import silent_regions
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.registry import adapter
from aurora_ray.errors import UsageError

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.plane import ControlPlane


async def set_forwarding(plane: ControlPlane, name: str, *, on: bool, timeout_s: float) -> dict[str, Any]:
    """Declares whether readers, in all regions, forward what their sessions write. Waits until all regions know
    that can be reached; the others hear of it when they can.

    Raises UsageError, also for an engine that cannot forward, and QuorumLostError when the time is over.
    """
    cluster, known = member(plane, name)
    if cluster.is_secondary:
        raise UsageError(f"{plane.fleet.region} is a secondary region of {name}: that is set in {known.primary}")
    if on and not adapter(cluster.engine).forwards(cluster.engine_version):
        raise UsageError(f"readers of {cluster.engine} {cluster.engine_version} cannot forward writes")
    silent = await silent_regions(plane, name, timeout_s)

    def change(fleet: Fleet) -> Fleet:
        now = global_cluster(fleet, name)
        assert now.membership is not None  # noqa: S101 - it was looked up by it
        return fleet.with_cluster(replace(now, membership=replace(now.membership, forwards=on)))

    await plane.commit(change)
    rule = "readers forward writes" if on else "readers forward no writes"
    plane.events.note(EventKind.REGION, cluster.name, f"of {name}: {rule}", cluster.name)
    plane.notify()

    def known_everywhere() -> bool:
        _, now = member(plane, name)
        views = [plane.regions.view(name, peer.region) for peer in now.peers if peer.region not in silent]
        return all(view is not None and view[0].forwards == on for view in views)

    await plane.wait_until(known_everywhere, timeout_s, f"all regions of {name} to know")
    return {"global": name, "forwarding": on, "rule": rule, "not_told": silent}
