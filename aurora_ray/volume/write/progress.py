"""How far the copies of a node are behind what is durable."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, NotCompleteError, StorageError, UsageError
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.volume.nodes import Nodes
    from aurora_ray.volume.shape import Shape
    from aurora_ray.volume.write.redo import RedoWriter

POLL_S: Final = (0.02, 0.5)


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """How far the copies of one node are. `behind_bytes`: of log, where it is furthest behind what is durable.

    `bytes_copied`, `bytes_total` and `mb_per_s` (10^6 bytes a second) tell of copies made from peers; `bytes_total` is
    an estimate while they run.
    """

    node_id: str
    complete: bool
    behind_bytes: int
    bytes_copied: int
    bytes_total: int
    mb_per_s: float

    def __str__(self) -> str:
        return (
            f"node {self.node_id} is {self.behind_bytes} bytes of log behind;"
            f" {self.bytes_copied} of {self.bytes_total} bytes copied at {self.mb_per_s:.1f} MB/s"
        )


class Progress:
    """Asks nodes. Keeps nothing."""

    def __init__(self, shape: Shape, nodes: Nodes, redo: RedoWriter) -> None:
        self._shape, self._nodes, self._redo = shape, nodes, redo

    async def of(
        self, node_id: str, timeout_s: float = CALL_TIMEOUT_S, targets: Mapping[int, int] | None = None
    ) -> NodeProgress:
        """Of a node's copies towards `targets`, LSNs by group (default: what is durable now).

        Raises UsageError for a node without an address, StorageError if it does not answer.
        """
        if node_id not in self._nodes:
            raise UsageError(f"no address known for node {node_id}: call update_nodes first")
        if targets is None:
            targets = self._targets(node_id)
        states = {state.group: state for state in await self._nodes[node_id].segments(timeout_s)}
        held = [states[group] for group in targets if group in states]
        copies = [state.copy for state in held if state.HasField("copy")]
        current = len(held) == len(targets) and all(state.installed_epoch == self._redo.epoch for state in held)
        behind = max((targets[state.group] - state.scl for state in held), default=0)
        return NodeProgress(
            node_id,
            current and behind <= 0,
            max(0, behind),
            sum(copy.bytes_copied for copy in copies),
            sum(copy.bytes_total for copy in copies),
            sum(copy.mb_per_s for copy in copies),
        )

    def _targets(self, node_id: str) -> dict[int, int]:
        tails = self._redo.durable_tails
        return {group: tails.get(group, 0) for group in self._shape.spec.groups_of(node_id)}

    async def wait_caught_up(self, node_id: str, timeout_s: float) -> None:
        """Returns once a node's copies have all that is durable now. Raises NotCompleteError when the time is up."""
        targets = self._targets(node_id)
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_S[0]
        seen = "it does not answer"
        while True:
            try:
                progress = await self.of(node_id, CALL_TIMEOUT_S, targets)
            except (StorageError, MalformedError) as error:
                seen = str(error)
            else:
                if progress.complete:
                    return
                seen = str(progress)
            if time.monotonic() + pause_s >= deadline:
                raise NotCompleteError(f"node {node_id} did not catch up within {timeout_s:g} s: {seen}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S[1])
