"""A client of `subscribe`: the durable log of a whole volume from an LSN on.

One feed a group reads from one copy; `FlushMerger` puts whole flushes together. A copy gives nothing that is not
durable, whatever history it carries, so any copy will do. A copy that is behind what another one has told is left for
another; when that does not help, the nodes are asked anew who holds what, and which groups there are.

What waits here is bounded: a feed reads no more while its group has BUFFER_BYTES waiting for other groups or for the
caller. A group that the next flush waits for has nothing waiting, so the bound stops nobody who is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, Self

from aurora_ray.errors import AuroraError, OutOfRangeError, QuorumLostError, StorageError
from aurora_ray.rpc.link import HOME
from aurora_ray.rpc.node_client import close_all
from aurora_ray.volume.durable import DurableLsn
from aurora_ray.volume.follow.feed import Feed
from aurora_ray.volume.follow.merge import FlushMerger
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.read.copies import ask_states, told_placements
from aurora_ray.volume.shape import Shape
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence

    from aurora_ray.log.flush import Flush
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.volume.spec import NodeAddress, VolumeSpec

BUFFER_BYTES: Final = 8 << 20  # of one group's log that wait for other groups, or for the caller
STALLED_S: Final = (0.05, 2.0)  # without progress though more is durable: then other copies are tried; doubles
REFRESH_S: Final = 0.25  # at most so often are the nodes asked who holds what


class Follower:
    """Iterate over it: it yields flushes, in order, without a gap, until it is closed. One caller at a time.

    `lsn` is the end of the last flush that was given out; `durable` the newest VDL that any copy told, which is at most
    what is ahead. Raises OutOfRangeError when the log behind `lsn` is kept by no copy any more.
    """

    @classmethod
    def open(
        cls,
        spec: VolumeSpec,
        nodes: Iterable[NodeAddress],
        *,
        after_lsn: int,
        az: str | None = None,
        abroad: Abroad = HOME,
    ) -> Follower:
        """Follows from `after_lsn` on; copies in `az` come first. Nothing is waited for: see `wait_durable`.

        `abroad`: how the nodes' fleet is reached, if it is not ours.
        """
        return cls(spec, Nodes(nodes, spec.volume_id.bytes, abroad), after_lsn, az)

    def __init__(self, spec: VolumeSpec, nodes: Nodes, after_lsn: int, az: str | None) -> None:
        """Not to be called: `open` does."""
        self.heard_s = 0.0  # on the monotonic clock: when any copy told anything last
        self._shape = Shape(spec)
        self._nodes = nodes
        self._az = az
        self._merger = FlushMerger(after_lsn)
        self.durable = DurableLsn(after_lsn)
        self._came = asyncio.Event()  # log came, or the end
        self._taken = asyncio.Event()  # a flush was taken: there may be room
        self._refresh_lock = asyncio.Lock()
        self._refreshed_s = 0.0
        self.heard_s = time.monotonic()  # when a copy last said anything
        self._behind_s: float | None = None  # since when more is known to be durable than came
        self._feeds: dict[int, Feed] = {}
        self._follow_groups()
        self._watching = asyncio.create_task(self._watch(), name="watch the feeds")

    @property
    def lsn(self) -> int:
        """The end of the last flush that was given out."""
        return self._merger.lsn

    @property
    def copies(self) -> dict[int, str | None]:
        """Group -> the node whose log is being read."""
        return {group: feed.node_id for group, feed in self._feeds.items()}

    @property
    def waits_since_s(self) -> float | None:
        """Since when (monotonic clock) more is durable than was given out; None if all was."""
        return self._behind_s if self.durable.lsn > self._merger.lsn else None

    def __aiter__(self) -> AsyncIterator[Flush]:
        return self

    async def __anext__(self) -> Flush:
        """The next flush. Raises OutOfRangeError, or StorageError once it was closed."""
        while True:
            flush = self._merger.take()
            if flush is not None:
                self._taken.set()
                return flush
            self.durable.check()
            self._came.clear()
            await self._came.wait()

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in where the nodes answer now, new nodes among them."""
        changed, unused = self._nodes.update(nodes, keep=())
        gone = {client.node.node_id for client in unused} | changed
        for feed in self._feeds.values():
            if feed.node_id in gone:
                feed.leave_copy()
        await close_all(unused)
        self._refreshed_s = 0.0
        await self.on_trouble()

    async def close(self) -> None:
        """Ends all. Whoever waits for a flush gets StorageError."""
        self._end(StorageError("the follower was closed"))
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(feed.close() for feed in self._feeds.values()))
        await self._nodes.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _end(self, error: AuroraError) -> None:
        self.durable.fail(error)
        self._came.set()

    # ---- as a FeedOwner

    def after_lsn(self, group: int) -> int:
        """From where on log of a group is wanted."""
        return self._merger.after_lsn(group)

    def holders(self, group: int) -> Sequence[str]:
        """Copies in our zone first."""
        return sorted(
            self._shape.members[group], key=lambda node: node in self._nodes and self._nodes.az(node) != self._az
        )

    async def room(self, group: int) -> None:
        """Returns when less than BUFFER_BYTES of a group wait."""
        while self._merger.buffered_bytes(group) >= BUFFER_BYTES:
            self._taken.clear()
            await self._taken.wait()

    def on_log(self, group: int, batches: Collection[bytes], vdl: int) -> None:
        """Log of a group, and what its copy knows to be durable. Raises MalformedError."""
        self.heard_s = time.monotonic()
        for batch in batches:
            self._merger.add(group, batch)
        if vdl > self.durable.lsn:
            if self.waits_since_s is None:
                self._behind_s = self.heard_s
            self.durable.advance(vdl)
        if batches:
            self._came.set()

    def on_gone(self, error: OutOfRangeError) -> None:
        """What is wanted is kept by no copy any more."""
        self._end(OutOfRangeError(f"the log behind LSN {self.lsn} cannot be followed: {error}"))

    async def on_trouble(self) -> None:
        """Asks the nodes who holds what, unless that was done a moment ago."""
        async with self._refresh_lock:
            if time.monotonic() - self._refreshed_s < REFRESH_S:
                return
            self._refreshed_s = time.monotonic()
            with contextlib.suppress(QuorumLostError):
                states = await ask_states(self._nodes.clients, CALL_TIMEOUT_S)
                told = [state for own in states.values() for state in own]
                for placement in told_placements(self._shape.spec.placements, told).values():
                    self._shape.place(placement)
                self._follow_groups()

    def _follow_groups(self) -> None:
        for group in self._shape.members.keys() - self._feeds.keys():
            self._feeds[group] = Feed(group, self._nodes, self)

    # ---- copies that are behind

    async def _watch(self) -> None:
        """While more is durable than was put together, but nothing comes: has other copies tried."""
        patience_s = STALLED_S[0]
        lsn, since_s = self._merger.lsn, time.monotonic()
        while True:
            await asyncio.sleep(STALLED_S[0])
            missing = self._merger.missing()
            whole = missing is not None and not missing
            if self._merger.lsn != lsn or self._merger.lsn >= self.durable.lsn or whole:
                patience_s = STALLED_S[0]
                lsn, since_s = self._merger.lsn, time.monotonic()
            elif time.monotonic() - since_s >= patience_s:
                patience_s, since_s = min(2 * patience_s, STALLED_S[1]), time.monotonic()
                if missing is None or missing - self._feeds.keys():
                    await self.on_trouble()
                for group in self._feeds.keys() if missing is None else missing & self._feeds.keys():
                    self._feeds[group].leave_copy()
