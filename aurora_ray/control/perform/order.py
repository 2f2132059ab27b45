"""Which of several instances that are to open goes first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aurora_ray.compute.role import Role

if TYPE_CHECKING:
    from aurora_ray.control.model.declared import Declared
    from aurora_ray.control.observe.processes import Processes

LOOK_S: Final = 0.02
LOOKS: Final = 100


async def let_the_writer_go_first(declared: Declared, processes: Processes, cluster: str, instance_id: str) -> None:
    """Before an instance opens: returns when its cluster's writer serves, or after two seconds.

    When roles change, two instances open at once, often on one machine, and it is the writer that everybody waits for.
    One that takes long, or cannot open, holds up nobody for longer: readers need no writer.
    """
    for _ in range(LOOKS):
        if _may_begin(declared, processes, cluster, instance_id):
            return
        await asyncio.sleep(LOOK_S)


def _may_begin(declared: Declared, processes: Processes, name: str, instance_id: str) -> bool:
    cluster = next((each for each in declared.fleet.clusters if each.name == name), None)
    if cluster is None or cluster.writer().instance_id == instance_id:
        return True
    writer = processes.instances.get(cluster.writer().instance_id)
    return writer is None or writer.seen.serves(Role.WRITER)
