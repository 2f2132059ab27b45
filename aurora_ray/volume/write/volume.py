"""A volume, opened by its one writer: the parts put together.

    redo      flushes in, the VDL out           (the end of the log, what is in flight)
    durable   the VDL, to listen to and wait for
    members   who holds the groups, and where
    fence     whether somebody else has taken over
    reads     pages and file tables as of an LSN

A writer that somebody else has replaced is *fenced*: once so many nodes refuse it that no group can gather a write
quorum, every wait ends with FencedError, who listens to the fence is told once, and nothing can be submitted any more.
One or two nodes that refuse (a recovery began there and died) are borne like nodes that are down.

A wait that ends with QuorumLostError, or because the volume was closed, has an unknown outcome: what was submitted may
still become durable.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from aurora_ray.errors import FencedError, StorageError, UsageError
from aurora_ray.volume.durable import DurableLsn
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.read.pages import READ_TIMEOUT_S, PageReader, check_durable
from aurora_ray.volume.recovery import placement_of
from aurora_ray.volume.shape import Shape
from aurora_ray.volume.takeover import ANY_EPOCH, CALL_TIMEOUT_S, take_over
from aurora_ray.volume.write.copies import create_segments
from aurora_ray.volume.write.fanout import Fanout
from aurora_ray.volume.write.fence import Fence
from aurora_ray.volume.write.history import History
from aurora_ray.volume.write.membership import Members
from aurora_ray.volume.write.redo import RedoWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record
    from aurora_ray.rpc.link import Abroad
    from aurora_ray.volume.read.pages import PageRange, PageRun
    from aurora_ray.volume.recovery import Recovered
    from aurora_ray.volume.spec import NodeAddress, VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode


class Volume:
    """A volume opened for writing at `epoch`. Also a `PageSource`, of what is durable."""

    @classmethod
    async def create(cls, spec: VolumeSpec, nodes: Sequence[NodeAddress], timeout_s: float) -> None:
        """Creates the segments of a new volume. Raises QuorumLostError if a group gets fewer than 4 of 6, UsageError if
        it has a parent."""
        if spec.lineage.parent:
            raise UsageError("a volume with a parent is forked (volume/fork.py), never made empty")
        fleet = Nodes(nodes, spec.volume_id.bytes)
        try:
            await create_segments(spec, spec.groups, fleet.clients, timeout_s)
        finally:
            await fleet.close()

    @classmethod
    async def open(
        cls,
        spec: VolumeSpec,
        nodes: Sequence[NodeAddress],
        *,
        timeout_s: float,
        on_fenced: Callable[[], object] | None = None,
        az: str | None = None,
        epochs: range = ANY_EPOCH,
        abroad: Abroad | None = None,
    ) -> Volume:
        """Seals out whoever has the volume now, finds the durable end, and opens there.

        `on_fenced` listens to the fence. `az` is where the caller is: reads prefer copies there. `epochs`: of which one
        is taken. `abroad`: how the nodes' fleet is reached, if it is not ours. Raises QuorumLostError, FencedError if
        the volume has gone beyond `epochs`, UsageError for a `spec` that lacks groups.
        """
        fleet = Nodes(nodes, spec.volume_id.bytes, abroad)
        owner = uuid.uuid4().bytes
        fleet.tell_each_other()
        try:
            recovered = await take_over(spec, fleet.clients, owner, timeout_s, epochs)
        except BaseException:
            await fleet.close()
            raise
        volume = cls(spec, fleet, owner, recovered, az=az)
        if on_fenced is not None:
            volume.fence.listen(on_fenced)
        return volume

    def __init__(self, spec: VolumeSpec, nodes: Nodes, owner: bytes, recovered: Recovered, *, az: str | None) -> None:
        """Not to be called: `open` does."""
        # Who holds the groups may have changed since `spec` was written down.
        found = [placement_of(group, held) for group, held in recovered.members.items()]
        self._shape = shape = Shape(spec.with_placements(found))
        self._nodes = nodes
        self.epoch = recovered.epoch
        self.durable = DurableLsn(recovered.end_lsn)
        self.fence = Fence(recovered.epoch, shape, self.durable)
        self._fanout = Fanout(shape, nodes, self)
        self.redo = RedoWriter(shape, recovered, self.durable, self._fanout)
        history = History(recovered, owner)
        self.members = Members(shape, nodes, fanout=self._fanout, redo=self.redo, history=history, recovered=recovered)
        self.reads = PageReader(shape, nodes.clients, self._fanout.has_our_history, self.redo.acked, az=az)
        self._fanout.arrange(recovered.installed)
        self._heartbeats = asyncio.create_task(self.redo.beat(), name="volume heartbeat")

    @property
    def spec(self) -> VolumeSpec:
        """The shape as it is now."""
        return self._shape.spec

    @property
    def vdl(self) -> int:
        """Everything up to here is durable."""
        return self.durable.lsn

    @property
    def tail_lsn(self) -> int:
        """Everything up to here was submitted."""
        return self.redo.end.lsn

    async def append(self, records: Sequence[Record], timeout_s: float = 30.0) -> int:
        """Appends records as one flush and waits until it is durable; its LSN. Raises FencedError, QuorumLostError."""
        return await self.redo.append(records, timeout_s)

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in where the nodes answer now."""
        await self.members.update_nodes(nodes)

    def stats(self) -> dict[str, int]:
        """Counters since opening."""
        return {
            "vdl": self.vdl,
            "tail_lsn": self.tail_lsn,
            "inflight_bytes": self.redo.inflight_bytes,
            **self._fanout.stats(),
            "reads": self.reads.read_count,
            "hedged_reads": self.reads.hedged_count,
            "damaged_reads": self.reads.damaged_count,
        }

    # ---- read, as a PageSource

    @property
    def read_lsn(self) -> int:
        """The newest LSN that can be read."""
        return self.durable.lsn

    async def read_pages(
        self, ranges: Sequence[PageRange], lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges as of `lsn` (default: all that is durable now), in the order asked.

        Raises OutOfRangeError for an LSN that is not durable or no longer kept, QuorumLostError if no copy answers.
        """
        point = self._read_point(lsn)
        return await self.reads.read_pages(ranges, point, self._required(point), timeout_s)

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """The file table as of `lsn` (default: all that is durable now). Raises as `read_pages`."""
        point = self._read_point(lsn)
        return await self.reads.read_file_table(point, self._required(point)[0], timeout_s)

    async def hold(self, holder: str, lsn: int, lease_s: float) -> float:
        """Asks every node to keep what can be read as of `lsn` and later, until the lease ends; returns when all have
        answered, or had the time to, with the least that those which did have granted, in seconds."""
        holding = (client.hold(holder, lsn, lease_s, CALL_TIMEOUT_S) for client in self._nodes.clients.values())
        answers = await asyncio.gather(*holding, return_exceptions=True)
        return min([lease_s, *(answer for answer in answers if isinstance(answer, float))])

    def _read_point(self, lsn: int | None) -> int:
        if lsn is None:
            return self.vdl
        check_durable(lsn, self.vdl)
        return lsn

    def _required(self, lsn: int) -> dict[int, int]:
        """How complete a copy of each group must be: up to its last batch, or up to `lsn` where it has later ones."""
        return {group: min(lsn, tail) for group, tail in self.redo.durable_tails.items()}

    # ---- what the streams tell, as a StreamOwner

    async def prepare(self, client: VolumeNode) -> None:
        """Installs our history on a node. Raises FencedError."""
        await self.members.prepare(client)

    def on_ack(self, node_id: str, lsn: int) -> None:
        """A node has all it was sent up to `lsn`."""
        self.fence.on_ack(node_id)
        self.redo.on_ack(node_id, lsn)

    def on_subscribed(self) -> None:
        """Somebody follows the log at one more node."""
        self.redo.tell_subscribers()

    def on_node_fenced(self, node_id: str, error: FencedError) -> None:
        """A node follows a higher epoch."""
        self.fence.on_refusal(node_id, error)

    async def close(self) -> None:
        """Ends the streams. Waits that are still open fail; what they wait for may become durable all the same."""
        self.durable.fail(StorageError("the volume was closed: what was not durable has an unknown outcome"))
        self._heartbeats.cancel()
        await asyncio.gather(self._heartbeats, return_exceptions=True)
        await self._fanout.close()
        await self._nodes.close()
