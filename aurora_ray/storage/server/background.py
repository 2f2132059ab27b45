"""The background of a node: coalescing and garbage collection, one segment after the other, and a look at the disk.

The copies of a group get the same log at the same time. So that they do not all coalesce at the same time while commits
come in, when none of them would be quick, each node lets a different part of a layer pile up first: they take turns.

A segment's turn is one layer, then garbage: however fast its redo comes in, the next segment is not kept waiting. Among
commits a turn takes ten times as long as its work (see `pacing.py`), so segments with a pause have a lane of their own.

A segment that has heard nothing for long, and in whose last turn there was nothing to do, has a turn now and then only:
a node may hold those of many volumes that nobody uses.

Merging has the CPU that nobody else wants. Where that is little, layers wait for it: as log, a page that changes again
and again takes the room of its changes, as layers that of an image each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import weakref
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import ConfigurationError, UnknownVolumeError
from aurora_ray.rpc.process import give_memory_back
from aurora_ray.storage.disk.damage import DamagedError
from aurora_ray.storage.disk.rocks import ReadFailedError, WriteFailedError
from aurora_ray.storage.pacing import Pacer
from aurora_ray.storage.pages.coalesce import GaveWayError, coalesce
from aurora_ray.storage.pages.folding import fold_next
from aurora_ray.storage.pages.garbage import collect, live_read_points, new_floor
from aurora_ray.storage.pages.idle import note_folded, settle, thorough_compaction_due
from aurora_ray.storage.pages.sweeping import sweep
from aurora_ray.storage.supervised import supervised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aurora_ray.storage.disk.damage import SegmentKey
    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.node.volume import NodeVolume
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

_DISK_CHECK_S: Final = 1.0
_DISK_MEASURE_S: Final = 10.0
_RETRY_S: Final = 5.0
_TRIM_EVERY_S: Final = 30.0
_ANOMALIES_LOGGED: Final = 3  # a layer
_CALM_FROM_S: Final = 30.0  # since an append
_CALM_EVERY_S: Final = 2.0
_WORK: Final = ("layers", "floors_raised", "folded_bytes", "swept_versions", "compactions")


async def _again_and_again(step: Callable[[], Awaitable[float]]) -> None:
    """`step` says after how many seconds it wants to be called again."""
    while True:
        pause_s = await step()
        await asyncio.sleep(pause_s)


class Background:
    """Runs until cancelled. A failure on one segment is logged and counted and does not stop the others."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._config = node.config
        self._measured_s = -_DISK_MEASURE_S
        self._fold_from_s = 0.0
        self._settled: weakref.WeakKeyDictionary[Segment, tuple[int, int]] = weakref.WeakKeyDictionary()
        self._settled_since_trim = False
        self._trimmed_s = -_TRIM_EVERY_S
        self._compaction: asyncio.Task[None] | None = None
        self._passes = 0
        self._trouble = ""  # of the last look at the directory
        # When there was nothing to do for them.
        self._calm: weakref.WeakKeyDictionary[Segment, float] = weakref.WeakKeyDictionary()
        self._resting: dict[SegmentKey, float] = {}  # segments that failed, and when to try again

    async def run(self) -> None:
        """The loops."""
        try:
            async with asyncio.TaskGroup() as lanes:
                for name, step in (
                    ("disk", self._look_after_disk),
                    ("lane-idle", functools.partial(self._lane, busy=False)),
                    ("lane-busy", functools.partial(self._lane, busy=True)),
                ):
                    work = functools.partial(_again_and_again, step)
                    lanes.create_task(supervised(name, work, self._node.counters), name=f"storage-{name}")
        finally:
            if self._compaction is not None:
                self._compaction.cancel()

    async def _look_after_disk(self) -> float:
        self._check()
        now_s = time.monotonic()
        await self._look_after_memory(now_s)
        if now_s - self._measured_s >= _DISK_MEASURE_S:
            self._measured_s = now_s
            await self._node.measure_disk()
            with contextlib.suppress(FileNotFoundError):  # the directory is gone: the next look sees to it
                await self._node.tend_graveyard()
        return _DISK_CHECK_S

    async def _look_after_memory(self, now_s: float) -> None:
        """What segments freed when their commits paused leaves the process, at a time when nobody commits anything."""
        busy = any(segment.is_busy for segment in self._node.segments.values())
        if self._settled_since_trim and not busy and now_s - self._trimmed_s >= _TRIM_EVERY_S:
            self._settled_since_trim, self._trimmed_s = False, now_s
            await asyncio.to_thread(give_memory_back)
            self._node.counters["memory_trims"] += 1

    async def _lane(self, *, busy: bool) -> float:
        """A turn of each segment to which commits come in, or of each of the others."""
        pacer = Pacer()
        merged = False
        held = [(v, s) for v in self._node.volumes.values() for s in v.segments.values()]
        self._passes += 1
        first = self._passes % max(1, len(held))  # another one each time: what the rates allow falls to all alike
        for volume, segment in (*held[first:], *held[:first]):
            if segment.is_busy == busy and not self._is_calm(segment):
                done = self._done
                merged |= await self._tend(volume, segment)
                if self._done == done:
                    self._calm[segment] = time.monotonic()
            if pacer.due:
                await pacer.rest()
        return 0.0 if merged else self._config.background_interval_s

    @property
    def _done(self) -> int:
        """What turns have done so far, in no unit."""
        return sum(self._node.counters[name] for name in _WORK)

    def _is_calm(self, segment: Segment) -> bool:
        """Whether there will be nothing to do for it so soon."""
        now_s = time.monotonic()
        heard = now_s - segment.last_append_s < _CALM_FROM_S
        return not heard and now_s - self._calm.get(segment, -_CALM_EVERY_S) < _CALM_EVERY_S

    def _check(self) -> None:
        """What fails is tried again by the next look; the same failure again is counted only."""
        failed = []
        for look in (self._node.check_files, self._node.check_disk):
            try:
                look()
            except (OSError, ConfigurationError) as error:
                failed.append(str(error))
        self._node.counters["background_errors"] += len(failed)
        trouble = "; ".join(failed)
        if trouble not in ("", self._trouble):
            _log.warning("node %s: its directory cannot be looked after: %s", self._config.node_id, trouble)
        self._trouble = trouble

    async def _tend(self, volume: NodeVolume, segment: Segment) -> bool:
        """The segment's turn; whether a layer was made."""
        key = (segment.volume, segment.group)
        if self._resting and self._resting.get(key, 0.0) > time.monotonic():
            return False
        self._resting.pop(key, None)
        if segment.background.locked():
            return False  # a copy or a repair waits for peers perhaps: the others shall not
        merged = False
        try:
            async with segment.background:
                if not segment.closed and self._layer_due(segment):
                    if segment.meta.unswept:
                        self._node.counters["swept_versions"] += await sweep(segment)
                    merged = await self.coalesce_once(segment)
                if not segment.closed:
                    await self.collect_once(volume, segment)
                if not segment.closed and not merged and not segment.shares_most:  # first things first
                    await self.fold_once(segment)
                if not segment.closed:
                    await self.reclaim_once(segment)
        except GaveWayError:
            self._node.counters["layers_that_gave_way"] += 1
            return True  # tried again at once, behind whoever waited
        except (DamagedError, WriteFailedError, ReadFailedError) as error:
            self._resting[key] = time.monotonic() + _RETRY_S
            self._node.note_failure(error)
        except Exception as error:  # RocksDB's errors have no common class
            if segment.closed:
                return False  # dropped or replaced in the middle
            self._resting[key] = time.monotonic() + _RETRY_S
            self._node.counters["background_errors"] += 1
            _log.exception("volume %s group %d: background work failed: %s", volume.name, segment.group, error)
        return merged

    def _layer_due(self, segment: Segment) -> bool:
        config = self._config
        if self._compaction is not None and not self._compaction.done() and segment.store.compaction_behind:
            return False
        share = 1 + self._turn if segment.is_busy else 1
        if segment.tail_bytes >= config.layer_bytes * share:
            # Beyond a gap or the VDL nothing can be done: the bytes there must not wake us again and again.
            return min(segment.scl, segment.vdl) > segment.meta.coalesced_lsn
        idle = time.monotonic() - segment.last_append_s >= config.idle_s
        return idle and segment.tail_bytes >= config.idle_layer_bytes

    @property
    def _turn(self) -> float:
        """This node's among those it knows, in [0, 1)."""
        nodes = sorted({self._config.node_id, *self._node.peers})
        return nodes.index(self._config.node_id) / len(nodes)

    async def coalesce_once(self, segment: Segment) -> bool:
        """One layer; whether there was one."""
        anomalies: list[str] = []
        done = await coalesce(segment, self._config.layer_bytes, anomalies)
        if done:
            self._node.counters["layers"] += 1
            segment.store.mind_garbage()
        self._node.counters["table_anomalies"] += len(anomalies)
        for anomaly in anomalies[:_ANOMALIES_LOGGED]:
            _log.error(
                "volume %s: the log holds a change no file system would make (the layer has %d): %s",
                segment.volume.hex(), len(anomalies), anomaly,
            )  # fmt: skip
        return done

    async def collect_once(self, volume: NodeVolume, segment: Segment) -> None:
        """Raises the floor as far as retention and read points allow, and further as the disk fills up."""
        config, now_s = self._config, self._node.clock()
        if now_s - self._node.started_s < config.lease_s_max:
            return  # readers that held leases before a restart get the time to renew them
        kept = segment.meta.retention
        limit_lsn = min([segment.vdl, *live_read_points(volume.read_points, now_s)])
        floor_lsn = new_floor(
            segment.meta.layers,
            floor_lsn=segment.meta.floor_lsn,
            limit_lsn=limit_lsn,
            tail_bytes=segment.tail_bytes,
            oldest_us=(now_s - (kept.seconds or config.retention_s)) * 1e6,
            retention_bytes=self._node.space().history_bytes(
                kept.log_bytes or config.retention_bytes, config.retention_bytes
            ),
        )
        if floor_lsn > segment.meta.floor_lsn:
            # The other half of this pair is `NodeVolume.hold`'s, which grants no lease below the floor.
            assert floor_lsn <= limit_lsn, "what somebody may still read is kept"  # noqa: S101
            self._node.counters["floors_raised"] += 1
        await collect(segment, floor_lsn)

    async def fold_once(self, segment: Segment) -> None:
        """Folds a range of pages if there is a cold one and the node's rate allows."""
        now_s = time.monotonic()
        if now_s >= self._fold_from_s:
            nbytes = await fold_next(segment)
            self._node.counters["folded_bytes"] += nbytes
            self._fold_from_s = now_s + nbytes / self._config.fold_bytes_per_s

    async def reclaim_once(self, segment: Segment) -> None:
        """Has cleared versions leave the disk if that pays, and settles what is idle."""
        idle_s = time.monotonic() - segment.last_append_s
        thorough = False
        # Not all copies at the same time: reopening the log takes a moment.
        if idle_s >= self._config.idle_s * (1 + 4 * self._turn) and not self._layer_due(segment):
            state = segment.meta.floor_lsn, segment.highest_lsn
            if self._settled.get(segment) != state:
                self._settled[segment] = state
                await settle(segment)
                self._settled_since_trim = True
            await note_folded(segment)
            thorough = thorough_compaction_due(segment)
        if (thorough or segment.store.compaction_due) and (self._compaction is None or self._compaction.done()):
            self._compaction = asyncio.create_task(self._compact(segment, thorough=thorough))

    async def _compact(self, segment: Segment, *, thorough: bool) -> None:
        """One at a time, beside the turns: it changes no content, and takes long where much is stored."""
        try:
            if self._node.has_room_for(segment.store.page_bytes):
                await segment.store.compact_pages(thorough=thorough)
                self._node.counters["compactions"] += 1
        except UnknownVolumeError:
            pass  # dropped or replaced in the middle
        except Exception as error:  # RocksDB's errors have no common class
            self._node.counters["background_errors"] += 1
            _log.warning("volume %s group %d was not compacted: %s", segment.volume.hex(), segment.group, error)
            await asyncio.sleep(_RETRY_S)
