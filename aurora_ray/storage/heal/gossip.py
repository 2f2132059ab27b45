"""Gossip: a node asks its peers what they have and fetches what it lacks.

Each round asks one peer in turn, or all of them while there is a gap. What a peer answers is used in this order: a
newer truncation history is adopted, then missing log is fetched, and if the peer no longer keeps log that old, or there
is much of it and nothing here yet, the whole segment is copied from all peers at once (`repair.py`).

While the writer's redo comes in without a gap, what a peer has more of is on its way here: nothing is fetched, and only
one round in _ROUNDS_A_LOOK asks at all: each would find a peer a flush ahead, and fetch what comes anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, MalformedError, NodeUnreachableError, StorageError
from aurora_ray.log.batch import check_records, verify
from aurora_ray.log.segment_rules import Membership, Truncation, adopt, annulled, knows
from aurora_ray.storage.disk.keys import lsn_key
from aurora_ray.storage.disk.rocks import WriteFailedError
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aurora_ray.rpc.node_client import NodeClient
    from aurora_ray.storage.heal.peers import Peers
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.node.volume import NodeVolume
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

_CATCH_UP_PAUSE_S: Final = 0.05
_ROUNDS_A_LOOK: Final = 4
_FETCH_TIMEOUT_S: Final = 60.0
_COPY_FROM_BYTES: Final = 8 << 20  # an empty segment that lacks more log than this is copied from all peers at once


class Gossip:
    """The node's side of repair. Failures of peers are normal and end with the round."""

    def __init__(self, node: Node, peers: Peers, copy: Callable[[bytes, int], object]) -> None:
        """`copy` has a segment (volume, group) copied from the peers, in the background."""
        self._node, self._peers, self._copy = node, peers, copy
        self._turn = self._round = 0

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            await asyncio.sleep(self._node.config.gossip_interval_s)
            await self._peers.prune()
            self._round += 1
            segments = self._node.segments.values()
            if self._round % _ROUNDS_A_LOOK == 0 or not all(segment.keeps_up for segment in segments):
                await self.round()

    async def round(self) -> None:
        """Asks the next peer, or all if log is missing here."""
        known = sorted(self._node.peers)
        if not known or not self._node.volumes:
            return
        self._turn += 1
        gap = any(segment.has_gap for segment in self._node.segments.values())
        asked = known if gap else [known[self._turn % len(known)]]
        await asyncio.gather(*(self.exchange(node_id) for node_id in asked))

    async def catch_up(self, volume: NodeVolume, tails: Mapping[int, int], timeout_s: float) -> None:
        """Asks every peer again and again until each group reaches its tail or the time is over.

        A recovery waits for this: a peer that hangs must not keep it from what the others have.
        """

        def behind() -> bool:
            return any(volume.segment(group).scl < lsn for group, lsn in tails.items())

        deadline_s = time.monotonic() + timeout_s
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while behind():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._node.peers:
                    return
                for node_id in sorted(self._node.peers):
                    if node_id not in running or running[node_id].done():
                        running[node_id] = asyncio.create_task(self.exchange(node_id, at_once=True))
                _, hanging = await asyncio.wait(running.values(), timeout=min(left_s, _CATCH_UP_PAUSE_S))
                if not hanging and behind():
                    await asyncio.sleep(_CATCH_UP_PAUSE_S)
        finally:
            for exchange in running.values():
                exchange.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def exchange(self, node_id: str, *, at_once: bool = False) -> None:
        """Learns one peer's state and repairs from it; `at_once`: what is on its way here as well."""
        client = self._peers.client(node_id)
        if client is None:
            return
        try:
            state = await client.state(timeout_s=self._node.config.peer_timeout_s)
            for theirs in state.volumes:
                volume = self._node.volumes.get(theirs.volume)
                if volume is not None:
                    await self._repair(volume, theirs.segments, client, at_once)
        except NodeUnreachableError as error:
            _log.debug("gossip with %s: %s", node_id, error)
        except AuroraError as error:
            self._node.counters["gossip_failed"] += 1
            _log.info("gossip with %s: %s", node_id, error)

    async def _repair(
        self, volume: NodeVolume, theirs: Iterable[pb.SegmentState], client: NodeClient, at_once: bool
    ) -> None:
        for state in theirs:
            segment = volume.segments.get(state.group)
            if segment is None or segment.closed or segment.repair.locked():
                continue
            try:
                async with segment.repair:
                    await self._repair_segment(segment, state, client, at_once)
            except NodeUnreachableError:
                raise
            except MalformedError as error:
                self._node.counters["gossip_malformed"] += 1
                _log.warning("a peer sent log that is damaged: %s", error)
            except StorageError as error:
                self._node.counters["gossip_failed"] += 1
                _log.info("gossip about group %d: %s", state.group, error)
                self._node.note_failure(error)
            except Exception as error:
                self._node.counters["gossip_failed"] += 1
                _log.exception("gossip about group %d failed", state.group)
                self._node.note_failure(WriteFailedError((segment.volume, segment.group), error))

    async def _repair_segment(
        self, segment: Segment, state: pb.SegmentState, client: NodeClient, at_once: bool
    ) -> None:
        adopt_history(segment, state)
        if not has_more(segment, state) or self._node.disk_full or (segment.keeps_up and not at_once):
            return
        empty = segment.scl == 0
        if segment.scl < state.floor_lsn or (empty and state.log_bytes > _COPY_FROM_BYTES):
            self._copy(segment.volume, segment.group)
        else:
            await self._fetch(segment, state, client)

    async def _fetch(self, segment: Segment, state: pb.SegmentState, client: NodeClient) -> None:
        request = pb.FetchLogRequest(
            volume=segment.volume, group=segment.group, after_lsn=segment.scl, up_to_lsn=state.scl
        )
        call = client.fetch_log(request, _FETCH_TIMEOUT_S)
        try:
            while True:
                # Others may have it too: a peer that hangs must not hold the segment's repair for long.
                async with asyncio.timeout(self._node.config.peer_timeout_s):
                    chunk = await call.read()
                if chunk is None:
                    return
                stored = store_fetched(segment, chunk.batches, state.installed_epoch)
                self._node.counters["repaired_batches"] += stored
                if not stored:
                    return
        except TimeoutError:
            _log.info(
                "volume %s group %d: a peer stopped in the middle of its log", segment.volume.hex(), segment.group
            )
        finally:
            await call.aclose()


def adopt_history(segment: Segment, state: pb.SegmentState) -> None:
    """Adopts a peer's newer history or membership; with the same history, its knowledge of what is durable."""
    held = segment.meta.epochs
    membership = Membership(state.members_number, tuple(state.members), tuple(state.next_members))
    history = [Truncation(t.epoch, t.lsn, t.first) for t in state.truncations]
    epochs = adopt(held, state.installed_epoch, history, membership)
    if epochs is not None:
        segment.take_over(epochs, state.vdl)
    elif state.installed_epoch == held.installed_epoch and state.vdl > segment.vdl:
        segment.learn_vdl(state.vdl)


def has_more(segment: Segment, state: pb.SegmentState) -> bool:
    """Whether a peer in this state has log to fetch."""
    return state.scl > segment.scl and knows(segment.meta.epochs.truncations, state.installed_epoch)


def store_fetched(segment: Segment, batches: Iterable[bytes], peer_epoch: int) -> int:
    """Stores those batches that continue the chain under the installed history; how many. Raises MalformedError.

    `peer_epoch`: whose history the peer carried before it sent them.
    """
    epochs, at_lsn = segment.meta.epochs, segment.scl
    if segment.closed or not knows(epochs.truncations, peer_epoch):
        return 0
    fetched = []
    for batch in batches:
        header = verify(batch)
        check_records(batch, header)
        ours = segment.meta.lineage.may_hold(segment.volume, header.volume, header.flush_end)
        if header.group != segment.group or not ours:
            raise MalformedError(f"a batch of group {header.group} was sent for group {segment.group}")
        if header.flush_end <= at_lsn:
            continue
        never_happened = annulled(epochs.truncations, header.epoch, header.flush_end)
        if header.prev_lsn != at_lsn or header.epoch > epochs.installed_epoch or never_happened:
            break
        at_lsn = header.flush_end
        fetched.append((header, batch))
    segment.store.append_log((lsn_key(header.flush_end), batch) for header, batch in fetched)
    for header, _ in fetched:
        segment.link(header, from_writer=False)
    return len(fetched)
