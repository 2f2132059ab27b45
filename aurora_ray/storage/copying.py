"""Copying a whole segment from a peer, for a node that is new or fell behind what the log still covers.

The sender streams a checkpoint (hard links, so it stands still). The receiver builds `<group>.incoming`; what its old
copy alone has (log the peer did not, a higher promise) is carried over; then `<group>.incoming` becomes
`<group>.ready`, which is the point of no return, and takes the place of `<group>`. A crash before that point leaves
the old segment, one after it is finished at the next start (`volume.py`). Appends go on meanwhile: carrying over and
swapping happen in one go, without giving way to anything.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from typing import TYPE_CHECKING, Final

from aurora_ray.log.batch import decode_header
from aurora_ray.log.segment_rules import SegmentEpochs, annulled
from aurora_ray.storage.keys import FAMILIES, LSN_MAX, META_KEY, lsn_key
from aurora_ray.storage.meta import SegmentMeta
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.store import SegmentStore
from aurora_ray.storage.v1 import storage_pb2 as pb
from aurora_ray.storage.volume import INCOMING, READY, swap_directories, sync_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aurora_ray.storage.node import Node
    from aurora_ray.storage.segment import Segment
    from aurora_ray.storage.v1.storage_pb2_grpc import StorageNodeStub
    from aurora_ray.storage.volume import NodeVolume

_CHUNK_BYTES: Final = 1 << 20


async def send_segment(node: Node, segment: Segment) -> AsyncIterator[pb.SegmentChunk]:
    """All entries of a segment as of now."""
    copies = node.config.data_dir / "copies"
    copies.mkdir(exist_ok=True)
    path = copies / uuid.uuid4().hex
    try:
        async with segment.background:
            await asyncio.to_thread(segment.store.checkpoint, path)
        store = SegmentStore(path, write_buffer_bytes=1 << 20)
        try:
            for family in FAMILIES:
                chunk, nbytes = pb.SegmentChunk(), 0
                for key, value in store.scan(family, b""):
                    chunk.entries.add(family=family, key=key, value=value)
                    nbytes += len(value) + 64
                    if nbytes >= _CHUNK_BYTES:
                        yield chunk
                        chunk, nbytes = pb.SegmentChunk(), 0
                if nbytes:
                    yield chunk
        finally:
            store.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def replace_segment(
    node: Node, volume: NodeVolume, segment: Segment, stub: StorageNodeStub, *, timeout_s: float
) -> None:
    """Replaces `segment` by a peer's copy. The caller holds `segment.repair`."""
    path = segment.store.path
    incoming = path.with_name(path.name + INCOMING)
    if incoming.exists():
        shutil.rmtree(incoming)
    store = volume.open_store(incoming)
    try:
        await _receive(store, segment, stub, timeout_s)
        await store.flush_all()
        async with segment.background:
            if segment.closed:
                return
            _carry_over(segment, store)
            store.close()
            _swap(node, volume, segment)
    finally:
        store.close()
        shutil.rmtree(incoming, ignore_errors=True)
    node.counters["copied_segments"] += 1


async def _receive(store: SegmentStore, segment: Segment, stub: StorageNodeStub, timeout_s: float) -> None:
    request = pb.CopySegmentRequest(volume=segment.volume, group=segment.group)
    call = stub.CopySegment(request, timeout=timeout_s)
    pacer = Pacer()
    try:
        async for chunk in call:
            changes = store.batch()
            for entry in chunk.entries:
                changes.put(entry.family, entry.key, entry.value)
            changes.write_without_log()
            if pacer.due:
                await pacer.rest()
    finally:
        call.cancel()


def _carry_over(segment: Segment, store: SegmentStore) -> None:
    """Brings the promises and the log that only the old copy has into the new one; durable when it returns."""
    ours, theirs = segment.meta, SegmentMeta.unpack(store.get(META_KEY) or b"")
    promised = max((ours.epochs, theirs.epochs), key=lambda epochs: epochs.promised_epoch)
    installed = max((ours.epochs, theirs.epochs), key=lambda epochs: epochs.installed_epoch)
    epochs = SegmentEpochs(promised.promised_epoch, promised.owner, installed.installed_epoch, installed.truncations)
    theirs.epochs = epochs
    theirs.vdl = max(ours.vdl, theirs.vdl)
    changes = store.batch()
    for source in (store, segment.store):
        for batch in source.log_batches(theirs.coalesced_lsn, LSN_MAX):
            header = decode_header(batch)
            key = lsn_key(header.flush_end)
            unknown = header.epoch > epochs.installed_epoch
            if unknown or annulled(epochs.truncations, header.epoch, header.flush_end):
                changes.delete("log", key)
            elif source is not store:
                changes.put("log", key, batch)
    changes.put("default", META_KEY, theirs.pack())
    changes.write_synced()


def _swap(node: Node, volume: NodeVolume, segment: Segment) -> None:
    path = segment.store.path
    path.with_name(path.name + INCOMING).rename(path.with_name(path.name + READY))
    sync_directory(path.parent)
    segment.close()
    swap_directories(path)
    store = volume.open_store(path)
    fresh = volume.adopt(segment.group, store, SegmentMeta.unpack(store.get(META_KEY) or b""))
    fresh.learn_vdl(segment.meta.vdl)
    node.index(volume)
