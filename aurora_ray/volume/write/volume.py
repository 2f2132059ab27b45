"""A volume, opened by its one writer.

`submit` is the hot path: the batches are encoded already, the call returns at once, and
`on_vdl` says when what has become durable. The LSNs of a flush are the caller's: flushes follow each other without gaps
from `tail_lsn` on, each batch links back to its group's last (`group_tails`).

A writer that somebody else has replaced is *fenced*: once so many nodes refuse it that no group can gather a write
quorum, every wait ends with FencedError, `on_fenced` is called once, and nothing can be submitted any more. One or
two nodes that refuse (a recovery began there and died) are borne like nodes that are down.

A wait that ends with QuorumLostError, or because the volume was closed, has an unknown outcome: what was submitted may
still become durable.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
import uuid
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, FencedError, QuorumLostError, StorageError, UsageError
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.record import GroupRecords, RecordBuilder
from aurora_ray.volume.node_client import NodeClient, close_all, set_peers
from aurora_ray.volume.read.pages import READ_TIMEOUT_S, PageReader, PageRun, check_durable
from aurora_ray.volume.recovery import Truncate, placement_of
from aurora_ray.volume.spec import GroupPlacement, NodeAddress, VolumeSpec, write_quorum
from aurora_ray.volume.takeover import CALL_TIMEOUT_S, take_over
from aurora_ray.volume.write.deferral import Deferral
from aurora_ray.volume.write.membership import MembershipChanges, NodeProgress, create_segments
from aurora_ray.volume.write.quorum import QuorumTracker
from aurora_ray.volume.write.streams import FLUSH_BYTES_MAX, NodeStream, serialize_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record
    from aurora_ray.log.segment_rules import Membership
    from aurora_ray.volume.recovery import Recovered, SegmentState

INFLIGHT_BYTES_MAX: Final = 256 << 20  # redo that is not durable yet; callers keep below by `wait_room`
HEARTBEAT_S: Final = 0.5

logger = logging.getLogger(__name__)


class Volume:
    """A volume opened for writing at `epoch`."""

    @classmethod
    async def create(cls, spec: VolumeSpec, nodes: Sequence[NodeAddress], timeout_s: float) -> None:
        """Creates the segments of a new volume. Raises QuorumLostError if a group gets fewer than 4 of 6."""
        clients = {node.node_id: NodeClient(node, spec.volume_id.bytes) for node in nodes}
        try:
            await create_segments(spec, spec.groups, clients, timeout_s)
        finally:
            await close_all(clients.values())

    @classmethod
    async def open(
        cls,
        spec: VolumeSpec,
        nodes: Sequence[NodeAddress],
        *,
        timeout_s: float,
        on_vdl: Callable[[int], object] | None = None,
        on_fenced: Callable[[], object] | None = None,
        az: str | None = None,
    ) -> Volume:
        """Seals out whoever has the volume now, finds the durable end, and opens there. Raises QuorumLostError.

        `on_vdl` is called with the new VDL, from within the event loop, each time that it moves; it must not block.
        `az` is where the caller is: reads prefer copies there.
        """
        clients = {node.node_id: NodeClient(node, spec.volume_id.bytes) for node in nodes}
        owner = uuid.uuid4().bytes
        telling = asyncio.create_task(set_peers(clients), name="tell the nodes of each other")
        try:
            recovered = await take_over(spec, clients, owner, timeout_s)
        except BaseException:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await close_all(clients.values())
            raise
        volume = cls(spec, clients, owner, recovered, az=az)
        volume._see_to(telling)  # goes on: nodes that hang are not waited for
        volume.on_vdl = on_vdl
        if on_fenced is not None:
            volume.add_fenced_callback(on_fenced)
        return volume

    def __init__(
        self,
        spec: VolumeSpec,
        clients: dict[str, NodeClient],
        owner: bytes,
        recovered: Recovered,
        *,
        az: str | None,
    ) -> None:
        """Not to be called: see `open`."""
        spec = spec.with_placements(placement_of(group, held) for group, held in recovered.members.items())
        self.spec = spec  # who holds the groups may have changed since it was written down
        self.on_vdl: Callable[[int], object] | None = None
        self.epoch = recovered.epoch
        self.tail_lsn = recovered.end_lsn
        self.group_tails: dict[int, int] = dict(recovered.tails)
        self.inflight_bytes = 0
        self._recovered = recovered
        self._owner = owner
        self._clients = clients
        self._on_fenced: list[Callable[[], object]] = []
        self._failure: AuroraError | None = None
        self._fenced_nodes: set[str] = set()
        self._quorum = QuorumTracker(spec.placements, recovered.end_lsn, recovered.tails)
        self._in_flight: deque[tuple[int, int, float]] = deque()  # flushes: end, bytes, when submitted (monotonic)
        self._waits: list[tuple[int, int, asyncio.Future[None]]] = []  # heap of (lsn, tie-breaker, wait)
        self._ties = count()
        self._append_lock = asyncio.Lock()
        self._streams: dict[str, NodeStream] = {}
        self._ending: list[asyncio.Task[None]] = []  # streams to nodes that hold nothing any more
        self._telling: set[asyncio.Task[None]] = set()  # where the others are; nobody waits for it
        self._members = spec.members
        self._reader = PageReader(spec, self._members, clients, self._has_our_history, self._quorum.acked, az=az)
        self._changes = MembershipChanges(self, recovered)
        self._deferral = Deferral()
        self._uniform: bool
        self._node_groups: dict[str, frozenset[int]]
        self._learn_placement(recovered.installed)
        self._last_submit_s = 0.0
        self._heartbeats = asyncio.create_task(self._beat(), name="volume heartbeat")

    @property
    def vdl(self) -> int:
        """Everything up to here is durable."""
        return self._quorum.vdl

    @property
    def durable_tails(self) -> dict[int, int]:
        """The end of the last durable flush of each group."""
        return dict(self._quorum.group_tails)

    def add_fenced_callback(self, callback: Callable[[], object]) -> None:
        """`callback` is called once when somebody else has taken the volume over; at once if that was so before."""
        self._on_fenced.append(callback)
        if isinstance(self._failure, FencedError):
            callback()

    def stats(self) -> dict[str, int]:
        """Counters since opening."""
        streams = self._streams.values()
        return {
            "vdl": self.vdl,
            "tail_lsn": self.tail_lsn,
            "inflight_bytes": self.inflight_bytes,
            "messages": sum(stream.message_count for stream in streams),
            "reconnects": sum(stream.reconnect_count for stream in streams),
            "hedged_flushes": self._deferral.hedged_count,
            "skipped_flushes": sum(stream.skipped_count for stream in streams),
            "reads": self._reader.read_count,
            "hedged_reads": self._reader.hedged_count,
            "damaged_reads": self._reader.damaged_count,
        }

    # ---- append

    def submit(self, flush_start: int, flush_end: int, batches: list[tuple[int, bytes]]) -> None:
        """Hands over the flush (flush_start, flush_end], encoded: (group, batch) a group. Does not block.

        Called in the event loop, in LSN order. Raises what ended the volume (FencedError), or UsageError for a flush
        out of order or too large.
        """
        if self._failure is not None:
            raise self._failure
        if flush_start != self.tail_lsn:
            raise UsageError(f"a flush from {flush_start} cannot follow the tail at {self.tail_lsn}")
        nbytes = sum([len(batch) for _, batch in batches])
        if nbytes > FLUSH_BYTES_MAX or self.inflight_bytes + nbytes > INFLIGHT_BYTES_MAX:
            raise UsageError(f"no room for {nbytes} bytes beside {self.inflight_bytes} in flight: wait for room first")
        groups = tuple([group for group, _ in batches])
        self._quorum.submit(flush_end, groups)
        self.tail_lsn = flush_end
        for group in groups:
            self.group_tails[group] = flush_end
        self.inflight_bytes += nbytes
        self._last_submit_s = now_s = time.monotonic()
        self._in_flight.append((flush_end, nbytes, now_s))
        if self._uniform:
            message = serialize_batches([batch for _, batch in batches])
            held = self._deferral.held
            for node, stream in self._streams.items():
                stream.push(flush_end, message, hold=node in held)
            self._deferral.on_submit(self._in_flight[0])
        else:
            self._push_by_node(flush_end, batches)

    async def wait_durable(self, lsn: int, timeout_s: float) -> None:
        """Returns once the VDL has reached `lsn`. Raises FencedError, or QuorumLostError when the time is up."""
        if self.vdl >= lsn:
            return
        if self._failure is not None:
            raise self._failure
        wait = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waits, (lsn, next(self._ties), wait))
        try:
            async with asyncio.timeout(timeout_s):
                await wait
        except TimeoutError:
            raise QuorumLostError(
                f"LSN {lsn} was not durable within {timeout_s:g} s (VDL {self.vdl}); its outcome is not known yet"
            ) from None

    async def wait_room(self, nbytes: int, timeout_s: float) -> None:
        """Returns once `nbytes` more may be submitted. Raises as `wait_durable`."""
        deadline = time.monotonic() + timeout_s
        while self.inflight_bytes + nbytes > INFLIGHT_BYTES_MAX and self._in_flight:
            await self.wait_durable(self._in_flight[0][0], max(0.0, deadline - time.monotonic()))

    async def append(self, records: Sequence[Record], timeout_s: float = 30.0) -> int:
        """Encodes records (their LSNs are assigned here), submits them as one flush, and waits until it is durable.

        Gives the LSN of the last one. For tools and tests; the driver encodes by itself and calls `submit`.
        """
        if not records:
            return self.vdl
        async with self._append_lock:
            await self.wait_room(sum(record.encoded_bytes for record in records), timeout_s)
            builder = RecordBuilder(self.tail_lsn)
            for record in records:
                builder.add(record)
            start, end = builder.start_lsn, builder.end_lsn
            parts = builder.take()
            groups = tuple(part.group for part in parts)
            batches = [(part.group, self._encode(part, groups, start, end)) for part in parts]
            self.submit(start, end, batches)
        await self.wait_durable(end, timeout_s)
        return end

    def _encode(self, part: GroupRecords, groups: tuple[int, ...], start: int, end: int) -> bytes:
        return encode_batch(
            group=part.group,
            volume=self.spec.volume_id.bytes,
            epoch=self.epoch,
            prev_lsn=self.group_tails[part.group] if part.record_count else 0,
            flush_start=start,
            flush_end=end,
            time_us=time.time_ns() // 1000,
            vdl=self.vdl,
            record_count=part.record_count,
            groups=groups,
            records=part.payload,
        )

    def _push_by_node(self, flush_end: int, batches: list[tuple[int, bytes]]) -> None:
        """For groups on different nodes: nodes that hold the same of the flush's groups share one message."""
        touched = frozenset([group for group, _ in batches])
        messages: dict[frozenset[int], bytes] = {}
        for node, stream in self._streams.items():
            held = touched & self._node_groups[node]
            if held:
                if held not in messages:
                    messages[held] = serialize_batches([batch for group, batch in batches if group in held])
                stream.push(flush_end, messages[held])

    async def _beat(self) -> None:
        """While nothing is written: tells the nodes the VDL, and learns soon if we have been replaced."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if time.monotonic() - self._last_submit_s >= HEARTBEAT_S:
                for node, stream in self._streams.items():
                    groups = sorted(self._node_groups[node])
                    if groups:
                        beats = [
                            self._encode(GroupRecords(group, b"", 0), (group,), self.vdl, self.vdl) for group in groups
                        ]
                        stream.heartbeat(self.vdl, serialize_batches(beats))

    # ---- what the streams tell

    async def prepare(self, client: NodeClient) -> None:
        """Installs our history on a node that was not there when we opened. Raises FencedError."""
        await self.install(client, self._changes.members)

    def on_ack(self, node_id: str, lsn: int) -> None:
        """A node has all it was sent up to `lsn`."""
        self._fenced_nodes.discard(node_id)
        if self._quorum.ack(node_id, lsn):
            self._vdl_moved()

    def _vdl_moved(self) -> None:
        vdl, in_flight, waits = self._quorum.vdl, self._in_flight, self._waits
        while in_flight and in_flight[0][0] <= vdl:
            _, nbytes, submitted_s = in_flight.popleft()
            self.inflight_bytes -= nbytes
            self._deferral.on_durable(time.monotonic() - submitted_s, in_flight[0] if in_flight else None)
        while waits and waits[0][0] <= vdl:
            wait = heapq.heappop(waits)[2]
            if not wait.done():
                wait.set_result(None)
        if self.on_vdl is not None:
            self.on_vdl(vdl)

    def on_node_fenced(self, node_id: str, error: FencedError) -> None:
        """A node follows a higher epoch; with three in a group we are no longer the writer."""
        self._fenced_nodes.add(node_id)
        logger.info("epoch %d: %s", self.epoch, error)
        for placement in self.spec.groups:
            for nodes in placement.sets:
                if len(nodes) - len(self._fenced_nodes.intersection(nodes)) < write_quorum(len(nodes)):
                    self._end(error)
                    return

    def _end(self, error: AuroraError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for _, _, wait in self._waits:
            if not wait.done():
                wait.set_exception(error)
        self._waits.clear()
        if isinstance(error, FencedError):
            for callback in self._on_fenced:
                callback()

    # ---- read

    async def read_pages(
        self, ranges: Sequence[tuple[int, int, int, int]], lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> list[PageRun]:
        """The ranges (see PageRange) as of `lsn` (default: all that is durable now), in the order asked."""
        point = self._read_point(lsn)
        return await self._reader.read_pages(ranges, point, self._required(point), timeout_s)

    async def read_file_table(self, lsn: int | None = None, timeout_s: float = READ_TIMEOUT_S) -> FileTable:
        """The file table as of `lsn` (default: all that is durable now)."""
        point = self._read_point(lsn)
        return await self._reader.read_file_table(point, self._required(point)[0], timeout_s)

    def _read_point(self, lsn: int | None) -> int:
        if lsn is None:
            return self.vdl
        check_durable(lsn, self.vdl)
        return lsn

    def _required(self, lsn: int) -> dict[int, int]:
        """How complete a copy of each group must be: up to its last batch, or up to `lsn` where it has later ones."""
        return {group: min(lsn, tail) for group, tail in self._quorum.group_tails.items()}

    # ---- shape

    async def add_group(self, placement: GroupPlacement, timeout_s: float = 30.0) -> VolumeSpec:
        """Makes the volume one protection group larger; the new specification.

        Persist that before a flush touches the group: a recovery with the old one would refuse to open.
        """
        if placement.group in self._members:
            raise UsageError(f"the volume has group {placement.group} already")
        unknown = set(placement.node_ids) - self._clients.keys()
        if unknown:
            raise UsageError(f"no addresses known for {sorted(unknown)}: call update_nodes first")
        spec = self.spec.with_placements([placement])
        created = await create_segments(spec, [placement], self._clients, timeout_s)
        # The new segments must carry our history: a node that has it for the others may not have it for these.
        await asyncio.gather(
            *(self.prepare(self._clients[node]) for node in created), return_exceptions=True
        )  # a node that misses it calls itself stale at the first batch
        self.group_tails.setdefault(placement.group, self.spec.lineage.origin_lsn)
        self._changes.add(placement)
        return self.go_by(placement)

    async def change_placement(self, placement: GroupPlacement, timeout_s: float = 30.0) -> VolumeSpec:
        """One step of a change of a group's members (see spec.py): begin, commit or abort; the new specification.

        Give the addresses of new nodes by `update_nodes` before `begin`, and persist each specification before the next
        step. Writing and reading go on. A step that fails has changed nothing here and can be tried again; asking for
        the placement that is in force takes a failed `begin` back. Raises UsageError for anything that is no such step,
        NotCompleteError for a `commit` while 4 of the 6 next members lack log, QuorumLostError.
        """
        if self._failure is not None:
            raise self._failure
        return await self._changes.step(placement, timeout_s)

    async def wait_caught_up(self, node_id: str, timeout_s: float) -> None:
        """Returns once a node's copies have all that is durable now. Raises NotCompleteError when the time is up."""
        await self._changes.wait_caught_up(node_id, timeout_s)

    async def progress(self, node_id: str, timeout_s: float = CALL_TIMEOUT_S) -> NodeProgress:
        """How far a node's copies are. Raises StorageError if it does not answer."""
        return await self._changes.progress(node_id, timeout_s)

    async def update_nodes(self, nodes: Iterable[NodeAddress]) -> None:
        """Takes in new addresses (nodes that restarted elsewhere) and new nodes; forgets who is not among them and
        holds nothing."""
        known = {node.node_id: node for node in nodes}
        gone = self._clients.keys() - known.keys() - self._node_groups.keys() if not self._changes.going_on else ()
        replaced = [self._clients.pop(node_id) for node_id in gone]
        for node in known.values():
            old = self._clients.get(node.node_id)
            if old is not None and old.node == node:
                continue
            client = self._clients[node.node_id] = NodeClient(node, self.spec.volume_id.bytes)
            if node.node_id in self._streams:
                await self._streams[node.node_id].use(client)
            if old is not None:
                replaced.append(old)
        self._learn_placement()
        await close_all(replaced)
        self._see_to(asyncio.create_task(set_peers(dict(self._clients)), name="tell the nodes of each other"))

    def _see_to(self, telling: asyncio.Task[None]) -> None:
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def go_by(self, placement: GroupPlacement) -> VolumeSpec:
        """From now on a group has these members; the new specification. For `MembershipChanges`."""
        moved = self._quorum.place(placement)
        self.spec = self.spec.with_placements([placement])
        self._members[placement.group] = placement.all_node_ids
        self._learn_placement()
        if moved:
            self._vdl_moved()
        return self.spec

    async def install(self, client: NodeClient, members: Mapping[int, Membership]) -> list[SegmentState]:
        """Installs our history with these members on a node; what it has then. Raises StorageError."""
        return await client.truncate(self._history(members), self._owner, CALL_TIMEOUT_S)

    @property
    def clients(self) -> Mapping[str, NodeClient]:
        """Every node whose address is known. For `MembershipChanges`."""
        return self._clients

    def _learn_placement(self, installed: Collection[str] = ()) -> None:
        """Has a stream to everybody who holds anything, and to nobody else."""
        self._node_groups = {node: frozenset(self.spec.groups_of(node)) for node in self.spec.node_ids}
        for node in self._node_groups.keys() & self._clients.keys() - self._streams.keys():
            self._streams[node] = NodeStream(node, self._clients[node], self, installed=node in installed)
        for node in self._streams.keys() - self._node_groups.keys():
            self._ending.append(asyncio.create_task(self._streams.pop(node).close(), name=f"leaving {node}"))
        everything = frozenset(self._members)
        self._uniform = all(self._node_groups[node] == everything for node in self._streams)
        # While members change, a write needs a quorum of two sets: everybody gets everything at once.
        steady = self._uniform and all(len(placement.sets) == 1 for placement in self.spec.groups)
        azs = {node: self._clients[node].node.az for node in self._streams}
        self._deferral.arrange(self._streams, azs, write_quorum(len(self._node_groups)) if steady else None)

    def _has_our_history(self, node: str) -> bool:
        stream = self._streams.get(node)
        return stream is not None and stream.installed

    def _history(self, members: Mapping[int, Membership]) -> Truncate:
        recovered = self._recovered
        return Truncate(self.epoch, recovered.truncations, recovered.end_lsn, recovered.tails, members)

    async def close(self) -> None:
        """Ends the streams. Waits that are still open fail; what they wait for may become durable all the same."""
        self._end(StorageError("the volume was closed: what was not durable has an unknown outcome"))
        self._heartbeats.cancel()
        self._deferral.close()
        for telling in self._telling:
            telling.cancel()
        streams = [stream.close() for stream in self._streams.values()]
        await asyncio.gather(self._heartbeats, *self._telling, *self._ending, *streams, return_exceptions=True)
        await close_all(self._clients.values())
