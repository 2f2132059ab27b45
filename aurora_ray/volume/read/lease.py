"""A lease on history: what a reader at an LSN needs stays, for as long as the reader lives and a little longer.

Each node keeps history by itself, so a lease is asked of every node that holds a copy. It stands once a write quorum of
each group has granted it: then any read quorum includes a copy that keeps what the reader needs. The reader renews it;
the nodes forget it when it does not, so a dead reader holds nothing for longer than `lease_s`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, OutOfRangeError, QuorumLostError, UsageError
from aurora_ray.log.sizes import write_quorum

if TYPE_CHECKING:
    from aurora_ray.volume.nodes import Nodes
    from aurora_ray.volume.shape import Shape

LEASE_S: Final = 15.0
RENEWALS: Final = 3  # within the time of a lease
RENEW_LEAST_S: Final = 0.2
CALL_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)


class ReadLease:
    """Holds history from `lsn` on, for `holder`, a name that nobody else uses."""

    @classmethod
    async def take(cls, shape: Shape, nodes: Nodes, *, holder: str, lsn: int, lease_s: float = LEASE_S) -> ReadLease:
        """Raises OutOfRangeError if too few copies still have history from `lsn` on, QuorumLostError if they do not
        answer."""
        lease = cls(shape, nodes, holder, lsn, lease_s)
        try:
            await lease._renew()
        except BaseException:
            await lease._tell(0.0)
            raise
        lease._task = asyncio.create_task(lease._keep(), name=f"lease of {holder}")
        return lease

    def __init__(self, shape: Shape, nodes: Nodes, holder: str, lsn: int, lease_s: float) -> None:
        """Not to be called: `take` does."""
        self.lsn = lsn
        self.good_until_s = 0.0  # on the monotonic clock: so long a write quorum of each group has granted it
        self._shape, self._nodes = shape, nodes
        self._holder, self._lease_s = holder, lease_s
        self._granted_s = lease_s  # the least that a node grants
        self._task: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()  # set when too few copies still have what is to be held

    @property
    def lost(self) -> bool:
        """Whether history may be gone by now: too few copies could be reached for too long."""
        return time.monotonic() >= self.good_until_s

    def move(self, lsn: int) -> None:
        """Less needs to be kept, from the next renewal on. Raises UsageError for an LSN below `lsn`."""
        if lsn < self.lsn:
            raise UsageError(f"a lease cannot go back from {self.lsn} to {lsn}: take another one")
        self.lsn = lsn

    async def release(self) -> None:
        """Ends the lease; nodes that do not hear of it let it run out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.good_until_s = 0.0
        await self._tell(0.0)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(max(RENEW_LEAST_S, self._granted_s / RENEWALS))
            try:
                await self._renew()
            except AuroraError as error:
                if isinstance(error, OutOfRangeError):
                    self.gone.set()
                _log.warning("the lease of %s at LSN %d: %s", self._holder, self.lsn, error)

    async def _renew(self) -> None:
        asked_s = time.monotonic()
        failed, granted_s = await self._tell(self._lease_s)
        for placement in self._shape.spec.groups:
            for members in placement.sets:
                refused = [failed[node] for node in members if node in failed]
                if len(members) - len(refused) < write_quorum(len(members)):
                    gone = [error for error in refused if isinstance(error, OutOfRangeError)]
                    if gone:
                        raise gone[0]
                    raise QuorumLostError(f"too few copies of group {placement.group} grant a lease: {refused[0]}")
        self._granted_s = granted_s
        self.good_until_s = asked_s + granted_s

    async def _tell(self, lease_s: float) -> tuple[dict[str, AuroraError], float]:
        """Tells all nodes; why some have not granted it, and the least that the others did."""
        lsn, granted_s = self.lsn, [lease_s]
        failed: dict[str, AuroraError] = {}

        async def tell(node: str) -> None:
            try:
                if node not in self._nodes:
                    raise QuorumLostError(f"no address is known for node {node}")
                granted_s.append(await self._nodes[node].hold(self._holder, lsn, lease_s, CALL_TIMEOUT_S))
            except AuroraError as error:
                failed[node] = error

        await asyncio.gather(*(tell(node) for node in self._shape.spec.node_ids))
        return failed, min(granted_s)
