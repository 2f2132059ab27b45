"""How the number of a cluster's readers follows its rule."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aurora_ray.control.decide import readers, scaling, sizing
from aurora_ray.control.model.state import TIER_MAX
from aurora_ray.control.perform.ports import free_ports
from aurora_ray.control.report.events import EventKind
from aurora_ray.engine.machine import this_machine

if TYPE_CHECKING:
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.perform.means import Means


async def scale_readers(means: Means, action: scaling.ScaleReaders) -> None:
    """Those that are added have the default size, and the last promotion tier, as they may go again."""
    name, host, machine = action.cluster, means.config.listen_host, this_machine()

    def change(fleet: Fleet) -> Fleet:
        fleet = scaling.with_kept(fleet, name, action.count)
        staying = sum(not reader.leaving_since_s for reader in fleet.cluster(name).readers())
        if action.count <= staying:
            return scaling.with_fewer(fleet, name, action.count, time.time())
        more = readers.with_readers(
            fleet,
            name,
            action.count - staying,
            tier=TIER_MAX,
            memory_bytes=0,
            ports=lambda fleet, count: free_ports(fleet, host, count),
            scaled=True,
        )
        return sizing.with_sizes(more, machine)

    await means.declared.commit(change)
    means.events.note(EventKind.READER, name, f"{action.why}: {action.count} are wanted", name)


async def remove_drained(means: Means, action: scaling.RemoveDrained) -> None:
    """The loop ends it, as nobody declares it any more."""
    cluster = means.declared.fleet.cluster_of(action.instance_id)

    def change(fleet: Fleet) -> Fleet:
        there = fleet.cluster_of(action.instance_id)
        leaves = there is not None and there.instance(action.instance_id).leaving_since_s > 0
        return readers.without_reader(fleet, action.instance_id) if leaves else fleet

    await means.declared.commit(change)
    if cluster is not None:
        means.events.note(EventKind.READER, action.instance_id, f"it was removed: {action.why}", cluster.name)
