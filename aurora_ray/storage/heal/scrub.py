"""Scrubbing: reads everything stored, slowly, and looks whether it is still what was stored.

A round over a segment has two halves. First its files: a checkpoint (hard links, so it stands still) is opened with no
cache and every value's checksum is checked, RocksDB checking its blocks on the way. Then its content: page ranges as of
one LSN are compared, by digest, with those of a peer, another one each round. Where they differ the page is looked for,
and the peers have the majority: damage that no checksum shows, like a bug's, would be found so.

What is found goes into the node's DamageBook, and the repairer mends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, MalformedError
from aurora_ray.log.batch import verify
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.damage import STORE, Damage, DamagedError
from aurora_ray.storage.disk.datadir import CHECKPOINTS
from aurora_ray.storage.disk.keys import LOG_FAMILIES, LSN_KEY, PAGE_FAMILIES, PAGE_KEY, content_of
from aurora_ray.storage.disk.store import SegmentStore
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.content import FIRST, ContentDigest, PageKey, Walk
from aurora_ray.storage.supervised import in_thread
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aurora_ray.storage.heal.peers import Peer, Peers
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

_COMPARE_PAGES: Final = 256  # a digest each
_CALL_TIMEOUT_S: Final = 60.0


class Throttle:
    """Keeps work below a rate: `await spend(n)` after each piece."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = time.monotonic()

    async def spend(self, nbytes: int) -> None:
        """Waits until so many more bytes are within the rate."""
        now_s = time.monotonic()
        self._free_s = max(self._free_s, now_s) + nbytes / self._bytes_per_s
        if self._free_s - now_s > 0.01:
            await asyncio.sleep(self._free_s - now_s)


class Scrubber:
    """Rounds over all segments of a node. A failure ends the work on one segment, never the rounds."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers = node, peers
        self._throttle = Throttle(node.config.scrub_bytes_per_s)
        self._turn = 0

    async def run(self) -> None:
        """Rounds until cancelled."""
        interval_s = self._node.config.scrub_interval_s
        if not interval_s:
            return
        while True:
            await asyncio.sleep(interval_s)
            await self.round()

    async def round(self) -> None:
        """Everything once."""
        for volume in list(self._node.volumes.values()):
            for segment in list(volume.segments.values()):
                try:
                    await self.scrub(segment)
                except DamagedError as error:
                    if not segment.closed:  # else it has been replaced meanwhile
                        self._node.damage.report(error)
                except AuroraError as error:
                    _log.info("volume %s group %d: scrubbing ended early: %s", volume.name, segment.group, error)
                    self._node.note_failure(error)
                except Exception as error:
                    self._node.counters["failed_scrubs"] += 1
                    _log.exception("volume %s group %d: scrubbing failed: %s", volume.name, segment.group, error)
        self._turn += 1
        self._node.counters["scrub_rounds"] += 1

    async def scrub(self, segment: Segment) -> None:
        """One segment. Raises what ends it early."""
        await self._check_files(segment)
        if not self._node.damage.items((segment.volume, segment.group)):
            await self._compare(segment)

    # ---- files

    async def _check_files(self, segment: Segment) -> None:
        copies = self._node.config.data_dir / CHECKPOINTS
        effects.make_directory(copies)
        path = copies / uuid.uuid4().hex
        try:
            async with segment.background:
                if segment.closed:
                    return
                await in_thread(segment.store.checkpoint, path)
            store = SegmentStore(path, write_buffer_bytes=1 << 20, owner=(segment.volume, segment.group))
            try:
                for family in ("default", *LOG_FAMILIES, *PAGE_FAMILIES):
                    await self._check_family(segment, store, family)
            finally:
                store.close()
        finally:
            await in_thread(effects.remove_tree, path)

    async def _check_family(self, segment: Segment, store: SegmentStore, family: str) -> None:
        pacer, nbytes = Pacer(rest_s=segment.rest_s), 0
        for key, value in store.scan(family, b""):
            nbytes += len(key) + len(value)
            try:
                if family == "log":
                    verify(value)
                else:
                    content_of(key, value)
            except MalformedError as error:
                self._report(segment, _item(family, key), str(error))
            if pacer.due:
                self._node.counters["scrubbed_bytes"] += nbytes
                await self._throttle.spend(nbytes)
                nbytes = 0
                await pacer.rest()
        self._node.counters["scrubbed_bytes"] += nbytes
        await self._throttle.spend(nbytes)

    def _report(self, segment: Segment, item: Damage, why: str) -> None:
        if not segment.closed:
            self._node.damage.report(DamagedError((segment.volume, segment.group), item, why))

    # ---- content

    async def _compare(self, segment: Segment) -> None:
        """With one peer, as of the last layer's end: for us the cheapest LSN to read at."""
        lsn = segment.meta.coalesced_lsn
        answers = await self._peers.ask(segment.volume, segment.group)
        epoch = segment.meta.epochs.installed_epoch
        sound = [p for p in answers if p.state.installed_epoch >= epoch and p.state.floor_lsn <= lsn <= p.state.scl]
        if not lsn or not sound:
            return
        peer = sound[self._turn % len(sound)]
        position: PageKey | None = FIRST
        while position is not None:
            position = await self._compare_range(segment, lsn, position, peer, sound)

    async def _compare_range(
        self, segment: Segment, lsn: int, start: PageKey, peer: Peer, sound: Sequence[Peer]
    ) -> PageKey | None:
        """Compares some pages from `start` on; where to go on, None at the end."""
        walk, ours = Walk(segment, lsn, start), ContentDigest()
        pages = dict(await walk.step(_COMPARE_PAGES))
        for key, content in pages.items():
            ours.add(key, content)
        request = pb.DigestRequest(volume=segment.volume, group=segment.group, lsn=lsn)
        request.start.file_id, request.start.page = start
        if not walk.done:
            request.stop.file_id, request.stop.page = walk.position
        theirs = await peer.client.digest(request, _CALL_TIMEOUT_S)
        nbytes = len(pages) * segment.meta.page_size
        self._node.counters["compared_bytes"] += nbytes
        if (theirs.pages, theirs.digest) != (ours.pages, ours.digest()):
            await self._find_difference(segment, request, pages, sound)
        await self._throttle.spend(nbytes)
        return None if walk.done else walk.position

    async def _find_difference(
        self, segment: Segment, request: pb.DigestRequest, ours: dict[PageKey, bytearray], sound: Sequence[Peer]
    ) -> None:
        """Reports the pages where the peers' majority says something else than we do."""
        self._node.counters["differing_ranges"] += 1
        votes: dict[PageKey, Counter[bytes | None]] = {}
        copies = [copy for peer in sound if (copy := await _copy_of(peer, request)) is not None]
        for key in {*ours, *(key for copy in copies for key in copy)}:
            votes[key] = Counter(copy.get(key) for copy in copies)
        for key, counts in sorted(votes.items()):
            mine = bytes(ours[key]).rstrip(b"\0") if key in ours else None
            theirs, count = counts.most_common(1)[0]
            if theirs != mine and count > counts[mine] + 1:  # we have a vote, too
                self._report(segment, Damage("page", *key), f"{count} peers have other content as of {request.lsn}")


async def _copy_of(peer: Peer, request: pb.DigestRequest) -> dict[PageKey, bytes | None] | None:
    """The peer's pages in the request's range, without trailing zeros; None if it does not deliver."""
    order = pb.CopySegmentRequest(volume=request.volume, group=request.group, lsn=request.lsn, start=request.start)
    if request.HasField("stop"):
        order.stop.CopyFrom(request.stop)
    found: dict[PageKey, bytes | None] = {}
    try:
        async for chunk in peer.client.copy_segment(order, _CALL_TIMEOUT_S):
            for page in chunk.pages:
                found[PageKey(page.file_id, page.page)] = page.image
    except AuroraError:
        return None
    return found


def _item(family: str, key: bytes) -> Damage:
    """What a damaged value is part of."""
    if family == "pages":
        file_id, page, _ = PAGE_KEY.unpack(key)
        return Damage("page", file_id, page)
    if family == "log":
        return Damage("log", LSN_KEY.unpack(key)[0])
    if family == "tables":
        return Damage("table", LSN_KEY.unpack(key)[0])
    return STORE
