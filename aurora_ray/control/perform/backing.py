"""How the actions of `decide/backups.py` are carried out, and what instances are told of backups."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aurora_ray.backup import ended
from aurora_ray.compute.backing import store_at
from aurora_ray.compute.config import RestoreOrder
from aurora_ray.control.model.observed import InstancePhase
from aurora_ray.control.perform.ending import end_incarnation
from aurora_ray.control.perform.means import END_TIMEOUT_S, Means
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from aurora_ray.control.decide.backups import ReopenBackup
    from aurora_ray.control.model.state import DBCluster, DeletedCluster

BUCKET_TIMEOUT_S: Final = 10.0


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


async def end_backups(fleet_id: UUID, deleted: DeletedCluster, say: Callable[[str], object]) -> None:
    """A deleted cluster is given up for good: says so in its backups, which go when their time is over.

    Where the bucket does not answer, they stay, and nobody removes them but a person.
    """
    cluster, plan = deleted.cluster, deleted.cluster.backup
    if plan is None:
        return
    had = [(cluster.volume.volume_id, deleted.deleted_at_s), *((p.volume.volume_id, p.until_s) for p in cluster.past)]
    try:
        async with asyncio.timeout(BUCKET_TIMEOUT_S):
            for volume_id, until_s in had:
                store = await asyncio.to_thread(store_at, plan.url, f"{fleet_id}/{volume_id}", plan.key_file)
                await ended.end(store, until_s)
    except (AuroraError, TimeoutError) as error:
        say(f"the backups of {cluster.name}, which was deleted, stay in {plan.url}: {error or 'it does not answer'}")
