"""Why an instance of a global cluster is not opened yet, and what a replicator follows. Pure, below `reconcile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aurora_ray.control.model.keys import Kind, key
from aurora_ray.control.model.observed import NOTHING_ABROAD

if TYPE_CHECKING:
    from aurora_ray.control.model.observed import Addresses, Observed
    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.state import DBCluster, DBInstance
    from aurora_ray.control.model.views import View

ASK_FIRST_S: Final = 10.0
"""For so long a primary that starts asks the other regions whether one of them is the primary by now. One that does
not answer may have been promoted, and one that is down keeps nobody from writing: what is written may be a tail."""


def waits_for_regions(cluster: DBCluster, instance: DBInstance, observed: Observed) -> str:
    """Why the owner of the volume cannot be opened; empty if it can."""
    known = cluster.membership
    if known is None:
        return ""
    abroad = observed.abroad.get(cluster.name, NOTHING_ABROAD)
    later = [v.region for v in abroad.views.values() if v.generation > cluster.generation]
    if later:
        return f"region {later[0]} is of a later generation"
    if key(Kind.REGION, cluster.name) in observed.busy:
        return "its region is changing its part"
    if instance.role.traits.writes:
        unheard = [p.region for p in known.peers if p.region not in abroad.views]
        asks = bool(unheard) and abroad.asked_s < ASK_FIRST_S
        return f"region {unheard[0]} has not said yet whether it is the primary by now" if asks else ""
    return _waits_to_follow(cluster, known, observed)


def _waits_to_follow(cluster: DBCluster, known: Membership, observed: Observed) -> str:
    if known.yielded_to:
        return f"it has made way for generation {known.yielded_to}"
    source = source_of(cluster, observed)
    if source is None:
        return f"the primary region {known.primary} has not been heard of"
    return "" if source.turns == cluster.succession else f"region {source.region} is of another generation"


def source_of(cluster: DBCluster, observed: Observed) -> View | None:
    """The primary as it was heard of last; None in the primary itself."""
    known = cluster.membership
    view = observed.abroad.get(cluster.name, NOTHING_ABROAD).views.get(known.primary) if known is not None else None
    return view if view is not None and view.is_primary and view.volume else None


def source_addresses(view: View) -> Addresses:
    """Its storage nodes, as they are compared."""
    return tuple(sorted((node_id, address) for node_id, _, address in view.nodes))
