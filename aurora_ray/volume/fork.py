"""The verb *fork*: a new volume that has all history of another one up to an LSN.

What happens on a node, and why all copies are the same, is told in `storage/node/fork.py`; which LSNs can be forked and
how they are found, in `origin.py`. Here is what is asked of whom:

1. **Locate.** Every node says how far its copies' logs reach, for the present and at the target.
2. **Hold.** Every node is asked to keep history from the origin on, until all have forked it.
3. **Fork.** Each node that holds the parent makes its copies of the child. Once a write quorum of each group has them
   the child exists; who has not may get an empty copy afterwards, which is filled by the others.

Nothing of it concerns the parent's writer: it may write, die or be replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, QuorumLostError
from aurora_ray.log.lineage import Lineage
from aurora_ray.log.sizes import write_quorum
from aurora_ray.volume import origin
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.origin import Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from aurora_ray.volume.origin import Answers, ForkPoint, Range
    from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode

CALL_TIMEOUT_S: Final = 2.0
FORK_TIMEOUT_S: Final = 10.0
LEASE_S: Final = 60.0
GRACE_S: Final = 2.0  # for slow nodes, when enough have forked


async def find_point(
    ask: Callable[[Target], Awaitable[Answers]],
    placements: Sequence[GroupPlacement],
    target: Target,
    written_lsn: int = 0,
) -> tuple[ForkPoint, Range]:
    """Where the fork for `target` begins, and what else could be forked. `ask` puts a target to all nodes, and gives
    the answers of those that answer.

    `written_lsn`: up to where the volume's writer says that all is durable. With it the present is all that was
    acknowledged before it was asked; nodes may not have heard yet of the last second.

    Raises OutOfRangeError, which names the range, and QuorumLostError.
    """
    present = origin.current(placements, await ask(Target()))
    whole = origin.whole_range(placements, present, written_lsn)
    wish = origin.within(whole, target)
    found = origin.current(placements, await ask(wish))
    lsn = origin.flush_end(found, wish)
    if wish.time_us:
        found = origin.current(placements, await ask(Target(lsn)))
    epoch = max(place.epoch for places in present for place in places)
    return origin.point_at(found, lsn, epoch, whole), whole


async def ask_all(clients: Mapping[str, VolumeNode], target: Target) -> Answers:
    """Puts a target to all nodes; what those say that answer."""

    async def ask(client: VolumeNode) -> Sequence[origin.GroupPlace]:
        try:
            return await client.locate(target, CALL_TIMEOUT_S)
        except AuroraError:
            return ()

    places = await asyncio.gather(*(ask(client) for client in clients.values()))
    return dict(zip(clients, places, strict=True))


async def fork(
    parent: VolumeSpec,
    child: UUID,
    nodes: Sequence[NodeAddress],
    target: Target,
    *,
    written_lsn: int = 0,
    timeout_s: float = 30.0,
) -> tuple[VolumeSpec, ForkPoint]:
    """Makes the volume `child` out of `parent`, on the same nodes; its specification, and where it begins.

    Raises as `find_point`, and QuorumLostError if a group is forked on fewer than 4 of 6 nodes; then some may have it,
    and asking again with the same name and target finds them.
    """
    fleet, forks = Nodes(nodes, parent.volume_id.bytes), Nodes(nodes, child.bytes)
    try:
        placements = [replace(placement, next_node_ids=None) for placement in parent.groups]
        point, _ = await find_point(lambda wish: ask_all(fleet.clients, wish), placements, target, written_lsn)
        await hold(fleet.clients, f"fork {child}", point.lsn)
        spec = replace(
            parent, volume_id=child, groups=tuple(placements), lineage=Lineage(parent.volume_id.bytes, point.lsn)
        )
        await _fork_all(spec, point, forks.clients, timeout_s)
        return spec, point
    finally:
        await fleet.close()
        await forks.close()


async def hold(clients: Mapping[str, VolumeNode], holder: str, lsn: int) -> None:
    """Asks all nodes to keep history from `lsn` on for LEASE_S; those that do not answer may not be able to fork it."""
    holding = (client.hold(holder, lsn, LEASE_S, CALL_TIMEOUT_S) for client in clients.values())
    await asyncio.gather(*holding, return_exceptions=True)


async def _fork_all(spec: VolumeSpec, point: ForkPoint, clients: Mapping[str, VolumeNode], timeout_s: float) -> None:
    """Has each node make its copies; returns when all have, or when enough have and the others had some time more."""

    async def fork_on(client: VolumeNode) -> None:
        for placement in spec.groups:
            if client.node.node_id in placement.node_ids:
                await client.fork(spec.lineage.parent, point, placement, FORK_TIMEOUT_S)

    def short_of_quorum() -> list[int]:
        forked = {node for node, task in tasks.items() if task.done() and task.exception() is None}
        return [
            placement.group
            for placement in spec.groups
            if len(forked.intersection(placement.node_ids)) < write_quorum(len(placement.node_ids))
        ]

    tasks = {node: asyncio.create_task(fork_on(client)) for node, client in clients.items()}
    try:
        deadline = time.monotonic() + timeout_s
        waiting = set(tasks.values())
        while waiting and time.monotonic() < deadline:
            left_s = deadline - time.monotonic()
            _, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not short_of_quorum():
                deadline = min(deadline, time.monotonic() + GRACE_S)
        if groups := short_of_quorum():
            errors = [str(task.exception()) for task in tasks.values() if task.done() and task.exception()]
            raise QuorumLostError(f"too few nodes forked groups {groups}: {errors}")
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
