"""How volumes get more protection groups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aurora_ray.compute.commands import AddGroup
from aurora_ray.control.model.placement import place_group
from aurora_ray.volume.spec import GroupPlacement

if TYPE_CHECKING:
    from aurora_ray.control.decide import reconcile
    from aurora_ray.control.model.state import Fleet
    from aurora_ray.control.perform.means import Means


async def allocate_group(means: Means, action: reconcile.AllocateGroup) -> None:
    """Declares where one more protection group lives."""

    def change(fleet: Fleet) -> Fleet:
        cluster = fleet.cluster(action.cluster)
        if len(cluster.volume.groups) != action.group:
            return fleet
        group = place_group(action.group, fleet.azs, fleet.nodes, fleet.volumes())
        return fleet.with_volume(replace(cluster.volume, groups=(*cluster.volume.groups, group)))

    await means.declared.commit(change)


async def add_group(means: Means, action: reconcile.AddGroup) -> None:
    """Tells whoever appends to the volume of one that was declared."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None:
        await instance.process.do(AddGroup(GroupPlacement(action.group.group, action.group.node_ids)))
        instance.got_group(action.group.group)
