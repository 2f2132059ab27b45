"""How the actions of `decide/backups.py` are carried out, and what instances are told of backups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_ray.compute.config import RestoreOrder
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_incarnation
from aurora_ray.control.perform.means import END_TIMEOUT_S, Means

if TYPE_CHECKING:
    from aurora_ray.control.decide.backups import ReopenBackup
    from aurora_ray.control.model.state import DBCluster


async def reopen_backup(means: Means, action: ReopenBackup) -> None:
    """The loop opens it again."""
    instance = means.processes.instances.get(action.instance_id)
    if instance is not None and instance.seen.phase is InstancePhase.AVAILABLE:
        await end_incarnation(instance, means.notify, END_TIMEOUT_S, "what it backs up has changed")


def restore_order(cluster: DBCluster) -> RestoreOrder | None:
    """What a writer is told of a volume that is not known to be whole yet."""
    plan = cluster.volume.restore
    if plan is None or cluster.volume.initialised:
        return None
    return RestoreOrder(plan.url, plan.place, plan.key_file, plan.lsn)
