"""Making the copies of protection groups."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import QuorumLostError
from aurora_ray.log.sizes import write_quorum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.volume.spec import GroupPlacement, VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode

CREATE_GRACE_S: Final = 2.0  # for slow nodes, when enough have created their copies


async def create_segments(
    spec: VolumeSpec, placements: Sequence[GroupPlacement], clients: Mapping[str, VolumeNode], timeout_s: float
) -> set[str]:
    """Creates the copies of `placements`; the nodes that have theirs. Raises QuorumLostError for fewer than 4 of 6.

    Nobody creates a missing segment later (an empty one in the place of a lost one would make redo vanish), so nodes
    that are slow get a while longer when the quorum is there already.
    """

    async def create(client: VolumeNode) -> None:
        for placement in placements:
            if client.node.node_id in placement.node_ids:
                await client.create_segments(
                    spec.page_size, [placement.group], placement.node_ids, timeout_s, spec.lineage
                )

    def short_of_quorum() -> list[int]:
        created = {node for node, task in tasks.items() if task.done() and task.exception() is None}
        return [
            placement.group
            for placement in placements
            if len(created.intersection(placement.node_ids)) < write_quorum(len(placement.node_ids))
        ]

    tasks = {node: asyncio.create_task(create(client)) for node, client in clients.items()}
    try:
        deadline = time.monotonic() + timeout_s + 1
        waiting = set(tasks.values())
        while waiting and time.monotonic() < deadline:
            left_s = deadline - time.monotonic()
            _, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not short_of_quorum():
                deadline = min(deadline, time.monotonic() + CREATE_GRACE_S)
        if short_of_quorum():
            errors = [str(task.exception()) for task in tasks.values() if task.done() and task.exception()]
            raise QuorumLostError(f"too few nodes created groups {short_of_quorum()}: {errors}")
        return {node for node, task in tasks.items() if task.done() and task.exception() is None}
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
