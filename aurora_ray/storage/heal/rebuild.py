"""Putting a segment together from its peers: for a node that is new, fell behind what the log covers, or was damaged.

All peers that are sound and current take part, each with a different range of the content at one time. What is taken:

    pages as of F     F is the highest floor among the peers: the oldest LSN that all of them can still show
    the table as of F (group 0)
    the log above F   up to where the most advanced peer is complete

So the new copy answers for every LSN from F on, and how the peers store things does not matter. Each page carries a
CRC, each batch its own. A lease on F keeps the peers from collecting it meanwhile. `filling.py` does the copying.

The copy is built in `<group>.incoming`. What the old copy alone has (log the peers lack, a higher promise) is carried
over; then `<group>.incoming` becomes `<group>.ready`, which is the point of no return, and takes the place of
`<group>`. A crash before that point leaves the old segment, one after it is finished at the next start (`volume.py`).
Appends go on meanwhile: the last carrying over and the swap happen in one go, without giving way to anything.

**What a lost copy may have promised.** A copy whose files were damaged may have forgotten promises, and log that it
acknowledged. Whatever a quorum promised, and whatever is durable, three of the five others have as well, and any three
answers show it. Therefore a damaged copy is rebuilt only from three answers or more, and before it answers anybody
again it has the promise that it may have made and all log that any of them has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, StorageError
from aurora_ray.log.batch import decode_header, verify
from aurora_ray.log.segment_rules import SegmentEpochs, doubtful
from aurora_ray.log.sizes import read_quorum, write_quorum
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.damage import DamagedError
from aurora_ray.storage.disk.keys import LSN_MAX, META_KEY, lsn_key
from aurora_ray.storage.disk.rocks import held_open
from aurora_ray.storage.heal.filling import Copy, Plan, belongs, make_plan
from aurora_ray.storage.node.progress import CopyProgress
from aurora_ray.storage.node.volume import INCOMING, READY
from aurora_ray.storage.segment.meta import AS_CONFIGURED, SegmentMeta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from aurora_ray.storage.disk.rocks import Batch
    from aurora_ray.storage.disk.store import SegmentStore
    from aurora_ray.storage.heal.peers import Peer, Peers
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.node.volume import NodeVolume
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

_LEASE_S: Final = 30.0
_RENEW_LEAST_S: Final = 0.2
_CARRY_BYTES_AT_ONCE: Final = 1 << 20


def forgotten_promise(answers: Sequence[Peer], copies: int) -> int:
    """The highest epoch that a copy which remembers nothing may have promised as one of a quorum.

    Of a write quorum's promises, all but our own and those of peers that do not answer show in the answers.
    """
    promised = sorted((peer.state.promised_epoch for peer in answers), reverse=True)
    seen_at_least = max(1, len(promised) - (copies - write_quorum(copies)))
    return promised[seen_at_least - 1]


async def rebuild(node: Node, peers: Peers, volume: NodeVolume, group: int, *, damaged: bool) -> bool:
    """Replaces this node's segment of `group`, or makes the one that was lost; whether that was possible now.

    The caller holds the segment's `repair`, if there is a segment. Without damage, nothing is done unless peers have
    more.
    """
    answers = await peers.ask(volume.volume, group)
    plan = make_plan(answers)
    segment = volume.segments.get(group)
    if plan is None:
        return False
    if damaged:
        copies = len(plan.epochs.membership.members) or len(answers) + 1
        if len(answers) < read_quorum(copies):
            return False
        if segment is None:
            plan = plan.promising(forgotten_promise(answers, copies))
    if not damaged and segment is not None and plan.end_lsn <= segment.scl:
        return False
    progress = CopyProgress(time.monotonic(), sources=tuple(peer.node_id for peer in plan.sources))
    volume.copies[group] = progress
    path = volume.path / str(group)
    incoming = path.with_name(path.name + INCOMING)
    try:
        effects.remove_tree(incoming)
        with contextlib.closing(volume.open_store(incoming)) as store:
            async with _leases(node, plan, volume.volume, group):
                await Copy(plan, volume.volume, group, store, progress).run()
            await store.flush_all()
            await store.flush_pages(plan.floor_lsn)
            meta = SegmentMeta(
                plan.page_size,
                plan.epochs,
                plan.vdl,
                plan.floor_lsn,
                lineage=plan.lineage,
                retention=segment.meta.retention if segment is not None else AS_CONFIGURED,
            )
            await _install(_Place(node, volume, path), segment, store, meta)
    except (StorageError, MalformedError) as error:
        _log.info("volume %s group %d: a copy from peers failed: %s", volume.name, group, error)
        return False
    except Exception as error:  # RocksDB's errors have no common class
        _log.exception("volume %s group %d: a copy from peers failed: %s", volume.name, group, error)
        return False
    finally:
        progress.ended_s = time.monotonic()
        with contextlib.suppress(OSError):  # the next copy, or the next start, removes it
            effects.remove_tree(incoming)
    node.damage.forget((volume.volume, group))
    node.counters["copied_segments"] += 1
    node.counters["copied_bytes"] += progress.bytes_copied
    return True


@contextlib.asynccontextmanager
async def _leases(node: Node, plan: Plan, volume: bytes, group: int) -> AsyncIterator[None]:
    """Keeps the peers from collecting what is being copied."""
    holder = f"copy of {group} by {node.config.node_id}"

    async def renew() -> float:
        """For how long the peers keep it; one that does not will not deliver, and others take its parts."""
        asked = (
            peer.client.set_read_point(volume, holder, plan.floor_lsn, _LEASE_S, timeout_s=_LEASE_S / 3)
            for peer in plan.sources
        )
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return min([_LEASE_S, *(answer for answer in answers if isinstance(answer, float))])

    async def keep(granted_s: float) -> None:
        while True:
            await asyncio.sleep(max(_RENEW_LEAST_S, granted_s / 3))
            granted_s = await renew()

    granted_s = await renew()
    keeper = asyncio.create_task(keep(granted_s), name="storage-copy-leases")
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


@dataclass(frozen=True)
class _Place:
    """Where the copy goes."""

    node: Node
    volume: NodeVolume
    path: Path

    def take(self) -> Segment:
        """Swaps the directories and opens what is now there. Raises StorageError, or what RocksDB has to say."""
        path, ready = self.path, self.path.with_name(self.path.name + READY)
        if held_open(path):  # what holds it may remove files by their names, and the new ones have the same
            raise StorageError(f"{path} is still held open")
        if ready.exists():
            self.volume.put_aside(ready, "a copy that did not take its place")
        effects.rename(path.with_name(path.name + INCOMING), ready)
        self.volume.take_ready(path)
        fresh = self.volume.open_segment(path)
        self.node.index(self.volume)
        return fresh


async def _install(place: _Place, segment: Segment | None, store: SegmentStore, meta: SegmentMeta) -> None:
    """Puts the filled store in the old segment's place. Raises StorageError if that is gone."""
    if segment is None:
        if int(place.path.name) not in place.volume.lost:
            raise StorageError("the segment was dropped meanwhile")
        _save(store, meta)
        store.close()
        place.take()
        place.volume.found(int(place.path.name))
        return
    carried_lsn = await _carry_log(segment, store, meta.epochs, meta.floor_lsn)
    async with segment.background:
        if segment.closed:
            raise StorageError("the segment was dropped or reopened meanwhile")
        _merge(segment, store, meta, carried_lsn)
        store.close()
        segment.close()
        try:
            fresh = place.take()
        except Exception as error:  # RocksDB's errors have no common class
            place.node.lose(segment, f"its copy could not take its place: {error}")
            raise
        fresh.learn_vdl(segment.vdl)


async def _carry_log(segment: Segment, store: SegmentStore, plan: SegmentEpochs, floor_lsn: int) -> int:
    """Copies the bulk of the log that came in meanwhile; up to which flush end."""
    at_lsn, done = floor_lsn, False
    while not done:
        changes = store.batch()
        epochs = _merged(segment.meta.epochs, plan)
        done = True
        for lsn, batch in _readable_log(segment, at_lsn):
            if changes.nbytes >= _CARRY_BYTES_AT_ONCE:
                done = False
                break
            _put_if_true(changes, epochs, segment, batch)
            at_lsn = lsn
        changes.write()
        await asyncio.sleep(0)
    await store.flush_all()
    return at_lsn


def _merge(segment: Segment, store: SegmentStore, meta: SegmentMeta, carried_lsn: int) -> None:
    """Brings the promises and the last of the log that only the old copy has into the new one, durably."""
    received, received_vdl = meta.epochs, meta.vdl
    meta = replace(meta, epochs=_merged(segment.meta.epochs, received), vdl=max(segment.vdl, meta.vdl))
    changes = store.batch()
    for _, batch in _readable_log(segment, carried_lsn):
        _put_if_true(changes, meta.epochs, segment, batch)
    if meta.epochs.installed_epoch != received.installed_epoch:  # what was received is judged by the newer history
        for lsn, batch in store.log_entries(meta.floor_lsn, LSN_MAX):
            header = decode_header(batch)
            unknown = doubtful(meta.epochs.truncations, received.installed_epoch, received_vdl, lsn)
            if unknown or not belongs(meta.epochs, header.epoch, header.flush_end):
                changes.delete("log", lsn_key(lsn))
    changes.put("default", META_KEY, meta.pack())
    changes.write_synced()


def _merged(ours: SegmentEpochs, theirs: SegmentEpochs) -> SegmentEpochs:
    """The higher promise, and the newer history and membership."""
    promised = ours if ours.promised_epoch >= theirs.promised_epoch else theirs
    installed = max((theirs, ours), key=lambda epochs: (epochs.installed_epoch, epochs.membership.number))
    return replace(installed, promised_epoch=promised.promised_epoch, owner=promised.owner)


def _put_if_true(changes: Batch, epochs: SegmentEpochs, segment: Segment, batch: bytes) -> None:
    header, held_epoch = decode_header(batch), segment.meta.epochs.installed_epoch
    unknown = doubtful(epochs.truncations, held_epoch, segment.vdl, header.flush_end)
    if belongs(epochs, header.epoch, header.flush_end) and not unknown:
        changes.put("log", lsn_key(header.flush_end), batch)


def _readable_log(segment: Segment, after_lsn: int) -> Iterable[tuple[int, bytes]]:
    """Sound batches of a segment that may be damaged: what cannot be read is left to the peers."""
    entries = segment.store.log_entries(after_lsn, LSN_MAX)
    while True:
        try:
            lsn, batch = next(entries)
        except (StopIteration, DamagedError):
            return
        with contextlib.suppress(MalformedError):
            verify(batch)
            yield lsn, batch


def _save(store: SegmentStore, meta: SegmentMeta) -> None:
    changes = store.batch()
    changes.put("default", META_KEY, meta.pack())
    changes.write_synced()
