"""Forks: a segment of a new volume that has all history of another volume's segment up to an LSN, the *origin*.

The fork's segment is a *checkpoint* of the parent's, made by hard links to RocksDB's files, which never change once
they are written, and then cut at the origin: batches, layers, file tables and cuts above it go from the copy. What is
left is the parent's segment as a recovery that truncated at the origin would have left it. So

* forking writes a few small files, whatever the size: what is in memory buffers, manifests, the metadata;
* reading, coalescing, collecting, scrubbing, copying to peers and recovering need not know of forks at all, and a fork
  of a fork of a fork is read like any segment;
* nobody holds anything for anybody: the file system counts who has a file, and what the parent collects, drops or loses
  the fork has still, and the other way round. They are dropped in any order, and their data goes with the last of them;
* the fork has its parent's past, as far as the parent's floor: it can be forked or read at an LSN before its origin.

What is shared is given up piece by piece, as merging writes files anew. A fork to which little was written is therefore
neither folded nor merged for tidiness (`Segment.shares_most`).

**Why all copies are the same.** The origin lies at or below what was the VDL under the history of an epoch E: no later
recovery can annul it. A segment is forked only if it carries E's history or a later one (whatever an earlier epoch had
left above its end is gone then) and is complete up to the origin, and all that lies above it is cut off. So any two
copies have the same batches. The fork's epochs begin above E, with the same on every copy: above whatever wrote those
batches, and promised to nobody, so that whoever opens the fork seals it first, like any volume. Its history is the one
truncation at the origin: what earlier ones annulled below it is on no copy any more, and above it there is nothing.

**A node that cannot.** One that is down, or whose copy of the parent is damaged or behind its peers' logs, gets no
fork. Four of six are enough; the others get empty copies later, which the four fill like that of any new member.

**Page versions above the origin.** The parent may have coalesced beyond the origin. Such versions lie in the checkpoint
among those that the fork will write, and finding them takes a look at all keys. Reads at or below the last layer kept
never meet them; so they are left, the metadata says so (`unswept`), and they go before the fork's first layer
(`storage/pages/sweeping.py`). For a fork of the present there are none.

A crash while the checkpoint is being cut leaves a note beside it, by which the next start removes both; once the note
is gone, the segment is there. Asking again is harmless.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from aurora_ray.errors import (
    DiskFullError,
    NotCompleteError,
    OutOfRangeError,
    StaleSegmentError,
    StorageError,
    UnknownVolumeError,
    UsageError,
)
from aurora_ray.log.lineage import VOLUME_ID_BYTES, Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs, Truncation
from aurora_ray.storage.disk.keys import CUT_KEY, CUT_PREFIX, LSN_MAX, META_KEY, lsn_key
from aurora_ray.storage.segment.meta import SegmentMeta
from aurora_ray.storage.segment.segment import Segment, VdlBox
from aurora_ray.storage.supervised import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aurora_ray.storage.disk.store import SegmentStore
    from aurora_ray.storage.node.node import Node


class ForkOrder(NamedTuple):
    """A fork that a node is asked for. `lsn` is durable under the history of `epoch`; `tails`: of each group whose
    segment is to be made, the end of its last batch at or below `lsn`; `members` hold the fork's groups, whose epochs
    begin with `first_epoch`."""

    volume: bytes
    parent: bytes
    lsn: int
    epoch: int
    tails: Mapping[int, int]
    members: Sequence[str]
    first_epoch: int

    def checked(self) -> ForkOrder:
        """The same. Raises UsageError for one that makes no sense."""
        if len(self.volume) != VOLUME_ID_BYTES or not self.tails:
            raise UsageError("a fork is named by 16 bytes and has at least one group")
        self.lineage.checked(self.volume)
        if not self.lsn or not self.epoch:
            raise UsageError("nothing was ever durable at LSN 0 or in epoch 0: there is nothing to fork")
        if self.first_epoch <= self.epoch:
            raise UsageError(f"a fork's epochs begin above those of its parent's log: not with {self.first_epoch}")
        late = [group for group, tail in self.tails.items() if tail > self.lsn]
        if late:
            raise UsageError(f"the tails of groups {late} lie above the LSN {self.lsn} of the fork")
        return self

    @property
    def lineage(self) -> Lineage:
        """Of the fork."""
        return Lineage(self.parent, self.lsn)

    @property
    def epochs(self) -> SegmentEpochs:
        """Those that each of the fork's segments begins with; see the module."""
        epoch = self.first_epoch
        history = (Truncation(epoch, self.lsn),)
        return SegmentEpochs(epoch, b"", epoch, history, Membership(0, tuple(self.members)))


async def fork(node: Node, order: ForkOrder) -> None:
    """Makes the fork's segments on this node, those that are not there yet.

    Raises UsageError, UnknownVolumeError, MalformedError; NotCompleteError, StaleSegmentError, OutOfRangeError for a
    parent that is not fit here; DiskFullError, StorageError. What was made until then is found by the next try.
    """
    order.checked()
    node.reclaim()
    if node.disk_full:
        raise DiskFullError(f"the disk of node {node.config.node_id} is full: it forks nothing")
    # A thread that makes a checkpoint cannot be stopped: who asked may go, the work is ended in order.
    work = asyncio.create_task(_fork(node, order), name=f"fork {order.volume.hex()}")
    node.forks.add(work)
    work.add_done_callback(node.forks.discard)
    await asyncio.shield(work)


async def _fork(node: Node, order: ForkOrder) -> None:
    async with node.forking:  # what is tried again finds what the first try made
        for group in order.tails:
            if (order.volume, group) not in node.segments:
                try:
                    await _fork_group(node, order, group)
                except OSError as error:
                    raise StorageError(f"group {group} of {order.parent.hex()} could not be forked: {error}") from error
            elif node.segments[order.volume, group].meta.lineage != order.lineage:
                raise UsageError(f"volume {order.volume.hex()} is here already, with another parent or origin")


async def _fork_group(node: Node, order: ForkOrder, group: int) -> None:
    parent = node.volume(order.parent).segment(group)
    _require_fit(parent.meta, parent.scl, order, group)
    volume = node.volume_to_be(order.volume)
    async with volume.forking(group) as path:
        async with parent.soon():
            if parent.closed:
                raise UnknownVolumeError(f"group {group} of the parent was replaced or dropped on this node: ask again")
            unswept = parent.meta.unswept or parent.versions_lsn > order.lsn
            await in_thread(parent.store.checkpoint, path)
        store = volume.open_store(path)
        try:
            meta = await _cut(store, order, group, unswept=unswept)
        except BaseException:
            store.close()
            raise
    try:
        volume.adopt_made(group, store, meta)
    except BaseException:  # it is on the disk, whole: the next start finds it
        store.close()
        raise
    node.took_in(volume)


def _require_fit(meta: SegmentMeta, scl: int, order: ForkOrder, group: int) -> None:
    """Raises StaleSegmentError, OutOfRangeError or NotCompleteError for a parent that cannot be forked here."""
    if meta.epochs.installed_epoch < order.epoch:
        raise StaleSegmentError(
            f"stale: group {group} carries the history of epoch {meta.epochs.installed_epoch} here, and may have what"
            f" epoch {order.epoch} has annulled"
        )
    if order.lsn < meta.floor_lsn:
        raise OutOfRangeError(f"LSN {order.lsn} cannot be forked: history begins at {meta.floor_lsn} here")
    if scl < order.tails[group]:
        raise NotCompleteError(f"incomplete: group {group} reaches {scl} here, {order.tails[group]} is to be forked")


async def _cut(store: SegmentStore, order: ForkOrder, group: int, *, unswept: bool) -> SegmentMeta:
    """Takes from a checkpoint all that lies above the fork's origin, durably, and makes it the fork's."""
    found = Segment(order.volume, group, store, SegmentMeta.unpack(store.get(META_KEY) or b""), VdlBox())
    _require_fit(found.meta, found.scl, order, group)
    layers = tuple(layer for layer in found.meta.layers if layer.end_lsn <= order.lsn)
    meta = replace(
        found.meta, epochs=order.epochs, vdl=order.lsn, layers=layers, lineage=order.lineage, unswept=unswept
    )
    changes = store.batch()
    changes.delete_range("log", lsn_key(order.lsn + 1), lsn_key(LSN_MAX))
    changes.delete_range("tables", lsn_key(meta.coalesced_lsn + 1), lsn_key(LSN_MAX))
    for key, _ in store.scan("default", CUT_PREFIX, CUT_PREFIX + b"\xff" * 17):
        if CUT_KEY.unpack_from(key, len(CUT_PREFIX))[1] > meta.coalesced_lsn:
            changes.delete("default", key)
    changes.put("default", META_KEY, meta.pack())
    changes.write_synced()
    if store.flushed_lsn() > meta.coalesced_lsn:
        await store.mark_back(meta.coalesced_lsn)
    cut = Segment(order.volume, group, store, meta, VdlBox())
    if cut.scl != order.tails[group]:
        raise StorageError(
            f"group {group} of {order.parent.hex()} ends at {cut.scl} below LSN {order.lsn} here, and not at"
            f" {order.tails[group]} as whoever forks it says"
        )
    return meta
