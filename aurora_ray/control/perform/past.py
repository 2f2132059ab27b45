"""How the actions of `decide/forks.py` are carried out; like all, they can be cut short at any point."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.control.decide import forks
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.model.state import ClusterPhase
from aurora_ray.control.model.store import volume_spec
from aurora_ray.control.perform.ending import end_incarnation
from aurora_ray.control.perform.means import END_TIMEOUT_S, Means

if TYPE_CHECKING:
    from aurora_ray.control.decide.replacement import ChangeMembers
    from aurora_ray.control.model.state import Fleet

OPEN_TIMEOUT_S: Final = 20.0


async def follow_volume(means: Means, action: forks.FollowVolume) -> None:
    """The loop opens it again."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_incarnation(instance, means.notify, END_TIMEOUT_S, "its cluster was rewound")


async def keep_history(means: Means, action: forks.KeepHistory) -> None:
    """And looks at what the node makes of it."""
    node = means.processes.nodes.get(action.node_id)
    if node is not None:
        for volume_id, seconds, log_bytes in action.wanted:
            await means.processes.clients.keep_history(action.node_id, node.seen.address, volume_id, seconds, log_bytes)
        await means.processes.look_at_node(action.node_id)


async def change_members(means: Means, action: ChangeMembers) -> None:
    """Of a volume that nobody serves: nobody else would tell afterwards who holds it, so that is noted at once."""
    kept = next((v for v in means.declared.fleet.kept_volumes() if v.volume_id == action.volume_id), None)
    if kept is None:
        return  # it was given up, or has a writer again
    placements = await means.processes.clients.change_members(
        volume_spec(kept), means.addresses(), action.placement, action.filled, OPEN_TIMEOUT_S
    )
    await means.declared.commit(lambda fleet: fleet.with_placements(action.volume_id, placements))


async def forget_past(means: Means, action: forks.ForgetPast) -> None:
    """The nodes are told next."""
    await means.declared.commit(lambda fleet: forks.without_past(fleet, action.cluster, action.volume_id))


async def end_temporary(means: Means, action: forks.EndTemporary) -> None:
    """Its instances end next."""

    def change(fleet: Fleet) -> Fleet:
        cluster = next((c for c in fleet.clusters if c.name == action.cluster), None)
        return fleet if cluster is None else fleet.with_cluster(replace(cluster, phase=ClusterPhase.DELETING))

    await means.declared.commit(change)
