"""Whether a writer still has its volume: which nodes follow a higher epoch, and when that is the end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aurora_ray.errors import FencedError
from aurora_ray.log.sizes import write_quorum

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.volume.durable import DurableLsn
    from aurora_ray.volume.shape import Shape

_log = logging.getLogger(__name__)


class Fence:
    """A writer is fenced once so many nodes refuse it that no set of some group's members can be a write quorum."""

    def __init__(self, epoch: int, shape: Shape, durable: DurableLsn) -> None:
        self._epoch, self._shape, self._durable = epoch, shape, durable
        self._refusing: set[str] = set()
        self._listeners: list[Callable[[], object]] = []

    def listen(self, listener: Callable[[], object]) -> None:
        """`listener` is called once when somebody else has taken the volume over; at once if that was so before."""
        self._listeners.append(listener)
        if isinstance(self._durable.failure, FencedError):
            listener()

    def on_ack(self, node_id: str) -> None:
        """A node takes our redo."""
        self._refusing.discard(node_id)

    def on_refusal(self, node_id: str, error: FencedError) -> None:
        """A node follows a higher epoch; with three of six in a group we are no longer the writer."""
        self._refusing.add(node_id)
        _log.info("epoch %d: %s", self._epoch, error)
        for placement in self._shape.spec.groups:
            for nodes in placement.sets:
                if len(nodes) - len(self._refusing.intersection(nodes)) < write_quorum(len(nodes)):
                    self._end(error)
                    return

    def _end(self, error: FencedError) -> None:
        if self._durable.failure is not None:
            return
        self._durable.fail(error)
        for listener in self._listeners:
            listener()
