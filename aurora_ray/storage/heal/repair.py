"""Mends what is damaged on this node, and has missing segments copied, from peers.

    a batch of log   fetched again
    a page           all its versions are written anew, as images, from what peers say that it was at the versions' LSNs
    a file table     read from a peer
    anything else    the whole segment is put together from the peers (`rebuild.py`); so is one that the steps above
                     cannot mend, because no peer looks back as far any more

Peers are asked only if they carry at least the history that this copy carries: of others, what looks complete may never
have happened. A page is believed when two peers agree on it, or when there is only one to ask.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import google_crc32c
import zstandard

from aurora_ray.errors import AuroraError, MalformedError, NodeUnreachableError, OutOfRangeError
from aurora_ray.log.batch import check_records, verify
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.segment_rules import knows
from aurora_ray.log.sizes import read_quorum
from aurora_ray.rpc.admission import ImpostorError
from aurora_ray.storage.disk.damage import STORE, Damage, DamagedError
from aurora_ray.storage.disk.keys import IMAGE_HEAD, LSN_MAX, PAGE_KEY, content_of, guarded, lsn_key, page_key
from aurora_ray.storage.disk.rocks import ReadFailedError, WriteFailedError
from aurora_ray.storage.heal.filling import belongs
from aurora_ray.storage.heal.rebuild import rebuild
from aurora_ray.storage.segment.chains import RANGE_PAGES
from aurora_ray.storage.segment.leftovers import Range
from aurora_ray.storage.supervised import supervised
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from aurora_ray.storage.disk.damage import SegmentKey
    from aurora_ray.storage.heal.peers import Peer, Peers
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

COPIES_AT_ONCE: Final = 2
_RETRY_S: Final = (0.2, 10.0)


class _NotNowError(AuroraError):
    """Too few peers can be asked; later perhaps."""

    retryable = True


class Repairer:
    """One task a segment at most; failures are tried again for as long as the damage is known."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers = node, peers
        self._tasks: dict[SegmentKey, asyncio.Task[object]] = {}
        self._copies = asyncio.Semaphore(COPIES_AT_ONCE)

    async def run(self) -> None:
        """Starts repairs as damage is found, until cancelled."""
        try:
            while True:
                await self._node.damage.found.wait()
                self._node.damage.found.clear()
                for key in self._node.damage.segments():
                    self._start(key, damaged=True)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def copy(self, volume: bytes, group: int) -> None:
        """Has a segment that lacks much copied from the peers, unless that is going on."""
        self._start((volume, group), damaged=False)

    def _start(self, key: SegmentKey, *, damaged: bool) -> None:
        if key in self._tasks:
            return

        def done(_: object) -> None:
            del self._tasks[key]
            if self._node.damage.items(key):  # found while the task was about to end
                self._node.damage.found.set()

        def work() -> Awaitable[object]:
            return self._mend_until_sound(key) if damaged else self._copy(key, damaged=False)

        supervision = supervised("repair", work, self._node.counters, pause_s=_RETRY_S)
        task = self._tasks[key] = asyncio.create_task(supervision, name=f"storage-repair-{key[1]}")
        task.add_done_callback(done)

    async def _mend_until_sound(self, key: SegmentKey) -> None:
        pause_s = _RETRY_S[0]
        while items := self._node.damage.items(key):
            if key[0] not in self._node.volumes:
                self._node.damage.forget(key)
                return
            before = len(items)
            for item in [STORE] if STORE in items else items:
                if await self._mend(key, item):
                    self._node.damage.forget(key, item)
            if len(self._node.damage.items(key)) >= before:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S[1])

    async def _mend(self, key: SegmentKey, item: Damage) -> bool:
        """Whether it worked."""
        segment = self._node.segments.get(key)
        try:
            if segment is None or item.kind == "store":
                return await self._copy(key, damaged=True)
            async with segment.repair:
                await self._mend_item(segment, item)
        except (_NotNowError, WriteFailedError, ReadFailedError, NodeUnreachableError, ImpostorError) as error:
            self._node.note_failure(error)
            _log.info("volume %s group %d: %s is not repaired yet: %s", key[0].hex(), key[1], item, error)
            return False
        except (AuroraError, zstandard.ZstdError) as error:
            _log.info("volume %s group %d: %s cannot be mended alone: %s", key[0].hex(), key[1], item, error)
            return await self._copy(key, damaged=True)
        self._node.counters[f"repaired_{item.kind}"] += 1
        return True

    async def _mend_item(self, segment: Segment, item: Damage) -> None:
        if item.kind == "log":
            await self._mend_log(segment, item.key)
        elif item.kind == "page":
            await self._mend_page(segment, item.key, item.page)
        else:
            await self._mend_table(segment, item.key)

    async def _copy(self, key: SegmentKey, *, damaged: bool) -> bool:
        volume = self._node.volumes.get(key[0])
        if volume is None or self._node.disk_full:
            return False
        segment = volume.segments.get(key[1])
        async with self._copies:
            if segment is None:
                return await rebuild(self._node, self._peers, volume, key[1], damaged=damaged)
            async with segment.repair:
                return await rebuild(self._node, self._peers, volume, key[1], damaged=damaged)

    async def _sound_peers(self, segment: Segment, lsn: int) -> list[Peer]:
        """Peers to believe as of `lsn`. Raises _NotNowError if there is none."""
        answers = await self._peers.ask(segment.volume, segment.group)
        installed_epoch = segment.meta.epochs.installed_epoch
        sound = [p for p in answers if p.state.installed_epoch >= installed_epoch and p.state.scl >= lsn]
        if not sound:
            raise _NotNowError(f"no peer with the current history reaches {lsn}")
        return sound

    # ---- log

    async def _mend_log(self, segment: Segment, lsn: int) -> None:
        """Fetches the batch stored at `lsn`; one that never happened according to the peers goes."""
        peers = await self._sound_peers(segment, lsn)
        lacking = 0
        for peer in peers:
            try:
                batches = await _fetch(segment, peer, lsn)
            except AuroraError as error:
                _log.debug("batch %d from %s: %s", lsn, peer.node_id, error)
                continue
            if batches:
                segment.store.append_log([(lsn_key(lsn), batches[0])])
                self._take_in(segment, lsn)
                return
            lacking += 1
        if lacking < min(len(peers), read_quorum(len(segment.meta.epochs.membership.members) or 1)):
            raise OutOfRangeError(f"no peer has the batch that ends at {lsn}")
        changes = segment.store.batch()
        changes.delete("log", lsn_key(lsn))
        changes.write_synced()

    def _take_in(self, segment: Segment, lsn: int) -> None:
        if lsn > segment.meta.coalesced_lsn:
            segment.rescan()
        for stored_lsn, batch in segment.store.log_entries(lsn - 1, lsn):
            verify(batch)
            if stored_lsn == lsn:
                return
        raise DamagedError((segment.volume, segment.group), Damage("log", lsn), "it stays damaged when written again")

    # ---- pages

    async def _mend_page(self, segment: Segment, file_id: int, page: int) -> None:
        """Writes every version that a read can need anew, as an image; the others go."""
        async with segment.background:
            meta = segment.meta
            first, last = page_key(file_id, page, 0), page_key(file_id, page, LSN_MAX)
            keys = [key for key, _ in segment.store.scan("pages", first, last)]
            lsns = [PAGE_KEY.unpack(key)[2] for key in keys]
            points = {max(lsn, meta.floor_lsn) for lsn in lsns if lsn <= meta.coalesced_lsn}
            contents = {lsn: await self._page_at(segment, lsn, file_id, page) for lsn in sorted(points)}
            changes = segment.store.page_batch()
            for key in keys:
                changes.delete("pages", key)
            for lsn, content in contents.items():
                if content is not None:
                    key = page_key(file_id, page, lsn)
                    changes.put("pages", key, guarded(key, IMAGE_HEAD + content.rstrip(b"\0")))
            if segment.closed:
                raise _NotNowError("the segment was replaced meanwhile")
            segment.chains.clear()
            segment.leftovers.note_range(Range(file_id, page // RANGE_PAGES), meta.coalesced_lsn)
            changes.write_without_log()
            await segment.store.flush_pages()

    async def _page_at(self, segment: Segment, lsn: int, file_id: int, page: int) -> bytes | None:
        """What peers say the page was. Raises OutOfRangeError if none looks back as far, _NotNowError."""
        peers = await self._sound_peers(segment, lsn)
        request = pb.ReadPagesRequest(volume=segment.volume, lsn=lsn, required_scl=lsn)
        request.ranges.add(group=segment.group, file_id=file_id, first_page=page, count=1)
        seen: list[bytes | None] = []
        refused = 0
        for peer in peers:
            try:
                reply = await peer.client.read_pages(request)
            except AuroraError as error:
                refused += isinstance(error, OutOfRangeError)
                continue
            if reply.kinds[:1] == b"\1" and google_crc32c.value(reply.pages) != int.from_bytes(reply.crcs, "little"):
                continue  # damaged on its way
            content = reply.pages if reply.kinds[0] else None
            if content in seen or len(peers) == 1:
                return content
            seen.append(content)
        if len(seen) == 1:
            return seen[0]
        if refused == len(peers):
            raise OutOfRangeError(f"no peer looks back to {lsn}")
        raise _NotNowError(f"{len(peers) - refused} peers do not agree on page {page} of file {file_id} as of {lsn}")

    # ---- tables

    async def _mend_table(self, segment: Segment, lsn: int) -> None:
        peers = await self._sound_peers(segment, lsn)
        packed = await _read_table(segment, peers, lsn)
        changes = segment.store.batch()
        changes.put("tables", lsn_key(lsn), guarded(lsn_key(lsn), packed))
        changes.write_synced()
        for key, value in segment.store.scan("tables", lsn_key(lsn), lsn_key(lsn + 1)):
            content_of(key, value)


async def _fetch(segment: Segment, peer: Peer, lsn: int) -> list[bytes]:
    """The batch that ends at `lsn`, if the peer has it and it belongs to the history here. Raises MalformedError."""
    request = pb.FetchLogRequest(volume=segment.volume, group=segment.group, after_lsn=lsn - 1, up_to_lsn=lsn)
    batches = [batch async for chunk in peer.client.fetch_log(request) for batch in chunk.batches]
    epochs = segment.meta.epochs
    for batch in batches:
        header = verify(batch)
        check_records(batch, header)
        ours = segment.meta.lineage.may_hold(segment.volume, header.volume, lsn)
        if (header.group, header.flush_end) != (segment.group, lsn) or not ours:
            raise MalformedError(f"a batch of group {header.group} that ends at {header.flush_end} was sent for {lsn}")
        if not (belongs(epochs, header.epoch, lsn) and knows(epochs.truncations, peer.state.installed_epoch)):
            return []
    return batches


async def _read_table(segment: Segment, peers: Sequence[Peer], lsn: int) -> bytes:
    """The packed table as of `lsn`. Raises OutOfRangeError or _NotNowError."""
    refused = 0
    for peer in peers:
        try:
            packed = await peer.client.read_file_table(segment.volume, lsn, lsn)
        except AuroraError as error:
            refused += isinstance(error, OutOfRangeError)
            continue
        FileTable.unpack_compressed(packed)
        return packed
    if refused == len(peers):
        raise OutOfRangeError(f"no peer looks back to {lsn}")
    raise _NotNowError(f"no peer tells the file table as of {lsn}")
