"""The log of one group, from one copy after the other: whatever breaks, it goes on where it was."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from aurora_ray.errors import AuroraError, NodeUnreachableError, OutOfRangeError
from aurora_ray.log.sizes import read_quorum

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aurora_ray.rpc.calls import Replies
    from aurora_ray.volume.nodes import Nodes

PENALTY_S: Final = 1.0  # how long a copy that failed, or was behind, comes last
BACKOFF_S: Final = (0.02, 1.0)  # between rounds over all copies
SILENT_S: Final = 3.0  # a copy that says nothing for so long is left: it would tell its VDL every second

_log = logging.getLogger(__name__)


class FeedOwner(Protocol):
    """What a feed asks of its follower."""

    def after_lsn(self, group: int) -> int:
        """From where on log of a group is wanted."""

    def holders(self, group: int) -> Sequence[str]:
        """The nodes that hold a copy, the best first."""

    async def room(self, group: int) -> None:
        """Returns when more may be brought."""

    def on_log(self, group: int, batches: Collection[bytes], vdl: int) -> None:
        """Log of a group, and what its copy knows to be durable. Raises MalformedError."""

    async def on_trouble(self) -> None:
        """No copy of a group gave anything: perhaps others hold it now, or it answers elsewhere."""

    def on_gone(self, error: OutOfRangeError) -> None:
        """What is wanted is kept by no copy any more."""


class Feed:
    """Subscribes to one group for as long as it is not closed."""

    def __init__(self, group: int, nodes: Nodes, owner: FeedOwner) -> None:
        self.group = group
        self.node_id: str | None = None  # whose log is being read
        self._nodes, self._owner = nodes, owner
        self._shunned_until_s: dict[str, float] = {}
        self._gone: dict[str, OutOfRangeError] = {}
        self._leaving = False
        self._patience: asyncio.Timeout | None = None  # of the read that is going on
        self._task = asyncio.create_task(self._run(), name=f"follow group {group}")

    def leave_copy(self) -> None:
        """The copy in use is behind: another one shall be tried."""
        self._leaving = True
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Ends the subscription."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s = BACKOFF_S[0]
        while True:
            brought = False
            for node_id in self._order():
                brought = await self._try(node_id)
                if brought:
                    break
            if brought:
                backoff_s = BACKOFF_S[0]
                continue
            self._check_gone()
            await self._owner.on_trouble()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S[1])

    def _order(self) -> list[str]:
        now_s = time.monotonic()
        holders = [node for node in self._owner.holders(self.group) if node in self._nodes]
        return sorted(holders, key=lambda node: max(0.0, self._shunned_until_s.get(node, 0.0) - now_s))

    def _check_gone(self) -> None:
        """As many copies as a recovery would listen to say so, and none has it."""
        holders = self._owner.holders(self.group)
        gone = [self._gone[node] for node in holders if node in self._gone]
        if gone and len(gone) >= read_quorum(len(holders)):
            self._owner.on_gone(gone[0])

    async def _try(self, node_id: str) -> bool:
        """Reads from a copy until it breaks or is left. True if it brought anything."""
        brought = False
        self._leaving = False
        self.node_id = node_id
        replies = self._nodes[node_id].subscribe(self.group, self._owner.after_lsn(self.group))
        try:
            while not self._leaving:
                await self._owner.room(self.group)
                chunk = await self._read(replies)
                if chunk is None:
                    raise NodeUnreachableError(f"storage node {node_id} ended the subscription")
                self._owner.on_log(self.group, chunk.batches, chunk.vdl)
                brought = True
                self._gone.pop(node_id, None)
        except OutOfRangeError as error:
            self._gone[node_id] = error
        except (AuroraError, TimeoutError) as error:
            self._gone.pop(node_id, None)
            _log.debug("group %d is left at %s: %s", self.group, node_id, error)
        finally:
            self.node_id = None
            self._shunned_until_s[node_id] = time.monotonic() + PENALTY_S
            await replies.aclose()
        return brought

    async def _read(self, replies: Replies) -> Any:
        """The next chunk. Raises TimeoutError when the copy is silent, or is to be left."""
        try:
            async with asyncio.timeout(SILENT_S) as self._patience:
                return await replies.read()
        finally:
            self._patience = None
