"""A regional replicator: follows the durable log of the primary's storage nodes, and is the writer of a copy of it.

The primary's writer knows nothing of it. The copy is a volume like any other, and the replicator its writer: it opens
it (seal, find the durable end), so one that was replaced can append no more, and appends the primary's flushes at their
own LSNs; each is durable on four of the six nodes here before it counts. So a copy is always a prefix of the primary,
byte for byte, and to promote it is to open it once more, for a later generation.

Whatever breaks, it goes on from the copy's own durable end. What waits here is bounded: `Follower` holds 8 MiB a group,
and no more is taken from it while IN_FLIGHT_BYTES are not durable here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, DivergedError, FencedError, OutOfRangeError, QuorumLostError
from aurora_ray.replication.lag import Lag, LagMeter
from aurora_ray.replication.readdress import Envelope, readdress, written_s
from aurora_ray.replication.seeding import SeedProgress, seed
from aurora_ray.replication.sides import add_missing_groups
from aurora_ray.replication.succession import common_lsn, epochs_of
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.write.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.log.flush import Flush
    from aurora_ray.replication.sides import Notes, RegionalVolume
    from aurora_ray.replication.succession import Succession
    from aurora_ray.volume.spec import NodeAddress

IN_FLIGHT_BYTES: Final = 32 << 20
OPEN_TIMEOUT_S: Final = 60.0
DURABLE_TIMEOUT_S: Final = 30.0  # after which it is said that the nodes here do not take what comes; it goes on


class Phase(Enum):
    """What a replicator does."""

    OPENING = "opening"  # finds the durable end of the copy, and seals out whoever had it
    SEEDING = "seeding"  # brings the pages as of the LSN at which the copy begins
    FOLLOWING = "following"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Order:
    """What a replicator is to do.

    `succession` is that of the primary now, `held` that of the copy as it was noted.
    """

    source: RegionalVolume
    target: RegionalVolume
    succession: Succession
    held: Succession


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """As of now. LSNs: up to where the copy is durable, and the primary is known to be."""

    phase: Phase
    epoch: int
    lsn: int
    source_lsn: int
    lag: Lag
    flush_count: int
    log_bytes: int
    seed: SeedProgress
    trouble: str


@dataclass
class Replicator:
    """One opening of the copy. `run` returns only by an error; then make another one, or do what the error says."""

    order: Order
    notes: Notes
    phase: Phase = Phase.OPENING
    flush_count: int = 0
    log_bytes: int = 0  # of batches, as they came over the link
    trouble: str = ""  # what keeps it from going on, if anything does
    opened: asyncio.Event = field(default_factory=asyncio.Event)  # whoever had the copy is sealed out
    seed_progress: SeedProgress = field(default_factory=SeedProgress)
    _volume: Volume | None = None
    _follower: Follower | None = None
    _lag: LagMeter = field(default_factory=lambda: LagMeter(0, time.time()))
    _flushes: deque[tuple[int, int]] = field(default_factory=deque)  # (end, bytes) that may not be durable here yet
    _in_flight_bytes: int = 0

    async def run(self) -> None:
        """Raises FencedError when somebody else has the copy, or a later generation; DivergedError if the copy holds a
        tail that the primary has not; OutOfRangeError if the primary's log no longer reaches back to its end: then the
        copy is to be begun anew. Raises QuorumLostError if too few nodes answer for too long to open it.
        """
        order, fenced = self.order, asyncio.Event()
        try:
            async with AsyncExitStack() as cleanup:
                volume = await Volume.open(
                    order.target.spec,
                    order.target.nodes,
                    timeout_s=OPEN_TIMEOUT_S,
                    on_fenced=fenced.set,
                    az=order.target.az,
                    epochs=epochs_of(order.succession.generation),
                    abroad=order.target.abroad,
                )
                self._volume = volume
                self.opened.set()
                cleanup.push_async_callback(volume.close)
                copying = asyncio.create_task(self._copy(volume, cleanup), name="copy the log")
                waiting = asyncio.create_task(fenced.wait(), name="wait for the fence")
                try:
                    await asyncio.wait((copying, waiting), return_when=asyncio.FIRST_COMPLETED)
                    if not copying.done():
                        volume.durable.check()
                finally:
                    for task in (copying, waiting):
                        task.cancel()
                    await asyncio.gather(copying, waiting, return_exceptions=True)
                copying.result()
        except AuroraError as error:
            self.trouble = str(error)
            raise
        finally:
            self.phase = Phase.ENDED

    @property
    def volume(self) -> Volume | None:
        """The copy, once it is open."""
        return self._volume

    async def update_nodes(self, source: Iterable[NodeAddress], target: Iterable[NodeAddress]) -> None:
        """Takes in where the nodes of either side answer now."""
        if self._follower is not None:
            await self._follower.update_nodes(source)
        if self._volume is not None:
            await self._volume.update_nodes(target)

    def status(self) -> ReplicatorStatus:
        """As of now."""
        self._listen()
        volume = self._volume
        return ReplicatorStatus(
            phase=self.phase,
            epoch=0 if volume is None else volume.epoch,
            lsn=self._lag.lsn,
            source_lsn=self._lag.source_lsn,
            lag=self._lag.lag(time.time()),
            flush_count=self.flush_count,
            log_bytes=self.log_bytes,
            seed=self.seed_progress,
            trouble=self.trouble,
        )

    # ---- inside

    async def _copy(self, volume: Volume, cleanup: AsyncExitStack) -> None:
        order = self.order
        self._check_prefix(max(volume.tail_lsn, order.target.first_lsn))
        if volume.tail_lsn < order.target.first_lsn:
            self.phase = Phase.SEEDING
            await seed(order.source, order.target, volume, self.notes, self.seed_progress)
        await self.notes.note_succession(order.succession)
        source = order.source
        follower = Follower.open(
            source.spec, source.nodes, after_lsn=volume.tail_lsn, az=source.az, abroad=source.abroad
        )
        cleanup.push_async_callback(follower.close)
        self._lag = LagMeter(volume.vdl, time.time())
        volume.durable.listen(self._on_durable)
        self._follower, self.phase = follower, Phase.FOLLOWING
        async for flush in follower:
            await self._take(volume, flush)

    def _check_prefix(self, end_lsn: int) -> None:
        order = self.order
        if end_lsn < order.source.first_lsn:
            raise OutOfRangeError(
                f"the copy ends at LSN {end_lsn}, and the primary has no history below {order.source.first_lsn}:"
                " begin the copy anew"
            )
        common = common_lsn(order.held, end_lsn, order.succession)
        if common < end_lsn:
            raise DivergedError(
                f"the copy holds {end_lsn - common} bytes of redo above LSN {common} that the primary has not:"
                " put them aside, then follow it",
                common,
            )

    async def _take(self, volume: Volume, flush: Flush) -> None:
        await add_missing_groups(volume, flush.groups, self.notes)
        await self._make_room(volume, flush.nbytes)
        copy = readdress(flush, volume.redo.end, Envelope(volume.spec.volume_id.bytes, volume.epoch, volume.vdl))
        volume.redo.submit(copy)
        self.flush_count += 1
        self.log_bytes += copy.nbytes
        self._flushes.append((copy.end, copy.nbytes))
        self._in_flight_bytes += copy.nbytes
        self._lag.on_flush(flush.end, written_s(flush))
        self._listen()

    async def _make_room(self, volume: Volume, nbytes: int) -> None:
        """Waits for the nodes here, however long that takes. Raises FencedError."""
        while self._flushes and self._in_flight_bytes + nbytes > IN_FLIGHT_BYTES:
            try:
                await volume.durable.wait_for(self._flushes[0][0], DURABLE_TIMEOUT_S)
            except FencedError:
                raise
            except QuorumLostError as error:
                self.trouble = str(error)

    def _on_durable(self, lsn: int) -> None:
        self.trouble = ""
        while self._flushes and self._flushes[0][0] <= lsn:
            self._in_flight_bytes -= self._flushes.popleft()[1]
        self._lag.on_durable(lsn, time.time())

    def _listen(self) -> None:
        """Takes in what the primary's nodes have said meanwhile."""
        follower = self._follower
        if follower is not None and follower.heard_s:
            self._lag.on_heard(follower.durable.lsn, time.time() - (time.monotonic() - follower.heard_s))
