"""Fills an empty store with a segment's content from several peers at once; what for is told in `rebuild.py`.

The content is cut into parts: ranges of pages, stretches of log, the file table. Each peer is given one part after the
other; what it fails to deliver is left to the next one, from where it broke off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import google_crc32c

from aurora_ray.errors import AuroraError, MalformedError, StorageError
from aurora_ray.log.batch import check_records, decode_header, verify
from aurora_ray.log.lineage import Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation, annulled
from aurora_ray.storage.disk.keys import IMAGE_HEAD, guarded, lsn_key, page_key
from aurora_ray.storage.node.progress import CopyProgress
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.storage.disk.store import SegmentStore
    from aurora_ray.storage.heal.peers import Peer

_log = logging.getLogger(__name__)

RANGE_BYTES: Final = 8 << 20  # of pages or log, taken from one peer at a time
PEER_FAILURES_MAX: Final = 3  # then a peer takes no further part
PART_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Plan:
    """What to copy from whom: pages and table as of `floor_lsn`, log in (floor_lsn, end_lsn]."""

    sources: tuple[Peer, ...]
    epochs: SegmentEpochs
    floor_lsn: int
    end_lsn: int
    vdl: int
    page_size: int
    log_bytes: int
    lineage: Lineage

    def promising(self, epoch: int) -> Plan:
        """With a promise to keep."""
        return replace(self, epochs=replace(self.epochs, promised_epoch=max(epoch, self.epochs.promised_epoch)))


def make_plan(answers: Sequence[Peer]) -> Plan | None:
    """From what peers say of the segment; None if none of them has anything."""
    if not answers:
        return None
    newest = max((peer.state for peer in answers), key=lambda state: (state.installed_epoch, state.members_number))
    current = [peer for peer in answers if peer.state.installed_epoch == newest.installed_epoch]
    floor_lsn = max(peer.state.floor_lsn for peer in current)
    end_lsn = max(peer.state.scl for peer in current)
    # How far the end of a group's log lies says nothing of how much log there is: LSNs count all groups' redo. A peer
    # that is behind gives what it has.
    sources = [peer for peer in current if peer.state.scl >= floor_lsn]
    epochs = SegmentEpochs(
        newest.installed_epoch,
        b"",  # not known
        newest.installed_epoch,
        tuple(Truncation(cut.epoch, cut.lsn, cut.first) for cut in newest.truncations),
        Membership(newest.members_number, tuple(newest.members), tuple(newest.next_members)),
    )
    return Plan(
        tuple(sources),
        epochs,
        floor_lsn,
        end_lsn,
        max(peer.state.vdl for peer in current),
        sources[0].page_size,
        max(peer.state.log_bytes for peer in sources),
        sources[0].lineage,
    )


@dataclass
class _Pages:
    """A range of pages; `start` moves as they come in."""

    start: pb.PageKey
    stop: pb.PageKey | None


@dataclass
class _Log:
    """Batches with flush_end in (after_lsn, up_to_lsn]; `after_lsn` moves as they come in."""

    after_lsn: int
    up_to_lsn: int


@dataclass
class _Table:
    """The file table as of the floor."""


_Part = _Pages | _Log | _Table


@dataclass
class Copy:
    """Fills a store according to a plan. A part that a peer fails to deliver is finished by another."""

    plan: Plan
    volume: bytes
    group: int
    store: SegmentStore
    progress: CopyProgress
    _left: deque[_Part] = field(default_factory=deque)

    async def run(self) -> None:
        """All of it. Raises StorageError when no peer is left that can deliver."""
        plan = self.plan
        self._left.extend(await self._parts())
        await asyncio.gather(*(self._take_from(peer) for peer in plan.sources))
        if self._left:
            raise StorageError(f"no peer can deliver {self._left[0]}")

    async def _parts(self) -> list[_Part]:
        plan, parts = self.plan, list[_Part]()
        if plan.floor_lsn > 0:
            if self.group == 0:
                parts.append(_Table())
            parts += await self._page_parts()
        parts += _log_parts(plan.floor_lsn, plan.end_lsn, plan.log_bytes)
        self.progress.bytes_total += plan.log_bytes
        return parts

    async def _page_parts(self) -> list[_Part]:
        per_range = max(1, RANGE_BYTES // self.plan.page_size)
        request = pb.OutlineSegmentRequest(volume=self.volume, group=self.group, pages_per_range=per_range)
        for peer in self.plan.sources:
            try:
                reply = await peer.client.outline_segment(request, PART_TIMEOUT_S)
            except AuroraError as error:
                _log.debug("outline from %s: %s", peer.node_id, error)
                continue
            self.progress.bytes_total += reply.pages * self.plan.page_size
            bounds: list[pb.PageKey | None] = [pb.PageKey(), *reply.splits, None]
            return [_Pages(start, stop) for start, stop in pairwise(bounds) if start is not None]
        raise StorageError("no peer tells the outline of its segment")

    async def _take_from(self, peer: Peer) -> None:
        """Parts from one peer until none is left that it can deliver."""
        failures = 0
        while failures < PEER_FAILURES_MAX:
            part = next((part for part in self._left if _can_deliver(peer, part)), None)
            if part is None:
                return
            self._left.remove(part)
            begin = _begin_of(part)
            try:
                await self._take(peer, part)
            except AuroraError as error:
                failures += _begin_of(part) == begin  # one that takes longer than a call may goes on from there
                self._left.append(part)
                _log.info("copy of group %d from %s: %s", self.group, peer.node_id, error)

    async def _take(self, peer: Peer, part: _Part) -> None:
        if isinstance(part, _Pages):
            await self._take_pages(peer, part)
        elif isinstance(part, _Log):
            await self._take_log(peer, part)
        else:
            await self._take_table(peer)

    async def _take_pages(self, peer: Peer, part: _Pages) -> None:
        lsn = self.plan.floor_lsn
        request = pb.CopySegmentRequest(volume=self.volume, group=self.group, lsn=lsn, start=part.start, stop=part.stop)
        call = peer.client.copy_segment(request, PART_TIMEOUT_S)
        pacer = Pacer()
        try:
            async for chunk in call:
                changes = self.store.page_batch()
                for page in chunk.pages:
                    if google_crc32c.value(page.image) != page.crc32c:
                        raise MalformedError(f"page {page.page} of file {page.file_id} came damaged")
                    key = page_key(page.file_id, page.page, lsn)
                    changes.put("pages", key, guarded(key, IMAGE_HEAD + page.image))
                    self.progress.bytes_copied += len(page.image)
                    if pacer.due:
                        await pacer.rest()
                changes.write_without_log()
                if not chunk.HasField("next"):
                    return
                part.start = chunk.next
        finally:
            await call.aclose()
        raise StorageError("the stream ended before the range did")

    async def _take_log(self, peer: Peer, part: _Log) -> None:
        request = pb.FetchLogRequest(
            volume=self.volume, group=self.group, after_lsn=part.after_lsn, up_to_lsn=part.up_to_lsn
        )
        call = peer.client.fetch_log(request, PART_TIMEOUT_S)
        pacer = Pacer()
        try:
            async for chunk in call:
                changes = self.store.batch()
                for batch in chunk.batches:
                    header = verify(batch)
                    check_records(batch, header)
                    ours = self.plan.lineage.may_hold(self.volume, header.volume, header.flush_end)
                    if header.group != self.group or not ours:
                        raise MalformedError(f"a batch of group {header.group} was sent for group {self.group}")
                    if belongs(self.plan.epochs, header.epoch, header.flush_end):
                        changes.put("log", lsn_key(header.flush_end), batch)
                    self.progress.bytes_copied += len(batch)
                    if pacer.due:
                        await pacer.rest()
                changes.write()
                if chunk.batches:
                    part.after_lsn = decode_header(chunk.batches[-1]).flush_end
        finally:
            await call.aclose()

    async def _take_table(self, peer: Peer) -> None:
        lsn = self.plan.floor_lsn
        packed = await peer.client.read_file_table(self.volume, lsn, lsn, PART_TIMEOUT_S)
        changes = self.store.batch()
        changes.put("tables", lsn_key(lsn), guarded(lsn_key(lsn), packed))
        changes.write()


def _log_parts(after_lsn: int, up_to_lsn: int, log_bytes: int) -> list[_Log]:
    """Log in (after_lsn, up_to_lsn], of about `log_bytes`, in as many stretches of LSNs as these bytes ask for."""
    distance = up_to_lsn - after_lsn
    count = min(max(1, -(-log_bytes // RANGE_BYTES)), max(1, distance))
    bounds = [after_lsn + distance * number // count for number in range(count + 1)]
    return [_Log(start, stop) for start, stop in pairwise(bounds) if stop > start]


def _begin_of(part: _Part) -> object:
    if isinstance(part, _Pages):
        return part.start.file_id, part.start.page
    return part.after_lsn if isinstance(part, _Log) else None


def _can_deliver(peer: Peer, part: _Part) -> bool:
    return not isinstance(part, _Log) or peer.state.scl >= part.up_to_lsn


def belongs(epochs: SegmentEpochs, epoch: int, flush_end: int) -> bool:
    """Whether a batch is part of the history that these epochs carry."""
    return epoch <= epochs.installed_epoch and not annulled(epochs.truncations, epoch, flush_end)
