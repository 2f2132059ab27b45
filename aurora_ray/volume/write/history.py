"""The history that a writer's epoch installs on nodes: what recovery decided, and who holds the groups now."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from aurora_ray.volume.recovery import Truncate
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.recovery import Recovered, SegmentState
    from aurora_ray.volume.volume_node import VolumeNode


class History:
    """Of one epoch and its owner. Never changes."""

    def __init__(self, recovered: Recovered, owner: bytes) -> None:
        assert uuid.UUID(bytes=owner).int, "an owner is told from all others"  # noqa: S101
        self._recovered, self._owner = recovered, owner

    async def install(self, client: VolumeNode, members: Mapping[int, Membership]) -> list[SegmentState]:
        """Installs it with these members on a node; what the node has then.

        Raises FencedError if the node follows a higher epoch, StorageError.
        """
        found = self._recovered
        order = Truncate(found.epoch, found.truncations, found.end_lsn, found.tails, members)
        return await client.truncate(order, self._owner, CALL_TIMEOUT_S)
