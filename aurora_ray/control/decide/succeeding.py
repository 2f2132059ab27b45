"""Whether a secondary region takes over by itself, if the user has turned that on; pure.

The rule: the primary was not heard of for `failover_after_s`, neither here nor in so many other regions that every
majority has one of these; of them this one has the most redo, or the one that has does nothing for as long again. There
is a lease then (`replication/lease.py`), so nothing begins before the old primary is known to acknowledge nothing more:
a rule that is wrong about a region costs a change of the primary, and never has two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.replication.lease import blocking
from aurora_ray.replication.succession import next_generation

if TYPE_CHECKING:
    from aurora_ray.control.model.observed import Abroad
    from aurora_ray.control.model.regional import Membership
    from aurora_ray.control.model.state import DBCluster


def takes_over(cluster: DBCluster, known: Membership, abroad: Abroad, copy_lsn: int) -> int:
    """The generation in which this region takes over; 0: it does not."""
    after_s, unheard_s = known.failover_after_s, abroad.heard_s.get(known.primary, abroad.asked_s)
    if not known.lease_s or not after_s or unheard_s < after_s or not cluster.volume.initialised:
        return 0
    others = [
        view
        for region, view in abroad.views.items()
        if region in abroad.reached and region != known.primary and view.generation == cluster.generation
    ]
    agree = [view for view in others if view.unheard_s >= after_s]
    if 1 + len(agree) < blocking(len(known.peers) + 1):
        return 0
    mine = (copy_lsn, -known.slot)
    better = any((view.lsn, -known.peer(view.region).slot) > mine for view in agree)
    if better and unheard_s < 2 * after_s:
        return 0
    seen = (view.highest for view in abroad.views.values())
    return next_generation(max([cluster.generation, known.refuses_below, *seen]), known.slot)
