"""A storage node in the simulator: the real append path, recovery and gossip logic over a store in memory.

Only the shell is simulated: RPC, disk, timers. What decides is `aurora_ray.storage` itself (Appender, Segment, epochs,
gossip's adopt_history and store_fetched). Background work (coalescing, collection, copying segments) is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from aurora_ray.storage import epochs, gossip
from aurora_ray.storage.append import Appender
from aurora_ray.storage.keys import META_KEY
from aurora_ray.storage.meta import SegmentMeta
from aurora_ray.storage.segment import Segment, VdlBox
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.sim.store import MemoryStore, PowerLoss

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence

FETCH_BATCHES_MAX = 4  # a chunk; small, so that histories can change between chunks


class SimNode:
    """One node with its copies of some groups."""

    def __init__(self, name: str, volume: bytes, groups: Iterable[int], rng: random.Random) -> None:
        self.name = name
        self.alive = True
        self.disk_full = False
        self.counters: Counter[str] = Counter()
        self.volume = volume
        self.stores = {group: MemoryStore() for group in groups}
        self.segments: dict[tuple[bytes, int], Segment] = {}
        self._rng = rng
        self._appender = Appender(self)  # type: ignore[arg-type]
        for store in self.stores.values():
            meta = store.batch()
            meta.put("default", META_KEY, SegmentMeta(8192).pack())
            meta.write_synced()
        self.boot()

    @property
    def by_group(self) -> dict[int, Segment]:
        return {group: segment for (_, group), segment in self.segments.items()}

    def reopen_after_error(self, *_: object) -> None:
        raise AssertionError("the store in memory does not fail")

    # ---- life and death

    def boot(self) -> None:
        """Opens what the disk holds."""
        box = VdlBox()
        for group, store in self.stores.items():
            meta = SegmentMeta.unpack(store.get(META_KEY) or b"")
            self.segments[self.volume, group] = Segment(self.volume, group, store, meta, box)  # type: ignore[arg-type]
        self.alive = True

    def crash(self) -> None:
        """Power fails."""
        self.alive = False
        self.segments.clear()
        for store in self.stores.values():
            store.lose_power(self._rng)

    def guarded(self, action: Callable[[], Any], *, crash: bool) -> Any:
        """Runs one handler; with `crash`, power fails in the middle of its first sync of some group."""
        if crash:
            self._rng.choice(list(self.stores.values())).fuse = self._rng
        try:
            return action()
        except PowerLoss:
            self.crash()
            return None
        finally:
            for store in self.stores.values():
                store.fuse = None

    # ---- handlers

    def append(self, message: bytes) -> int:
        return self._appender.store(message)

    def seal(self, epoch: int, owner: bytes) -> pb.SealReply:
        return epochs.seal(self._volume_view(), pb.SealRequest(volume=self.volume, epoch=epoch, owner=owner))

    def truncate(self, request: pb.TruncateRequest) -> pb.TruncateReply:
        return epochs.truncate(self._volume_view(), request)

    def state(self) -> list[pb.SegmentState]:
        return [epochs.segment_state(segment) for segment in self.by_group.values()]

    def adopt(self, state: pb.SegmentState) -> tuple[int, int] | None:
        """Takes in a peer's state; what to fetch then, as (after, up to)."""
        segment = self.by_group[state.group]
        gossip.adopt_history(segment, state)
        return (segment.scl, state.scl) if state.scl > segment.scl else None

    def log_after(self, group: int, after_lsn: int, up_to_lsn: int) -> list[bytes]:
        return list(self.by_group[group].store.log_batches(after_lsn, up_to_lsn))[:FETCH_BATCHES_MAX]

    def store_fetched(self, group: int, batches: Sequence[bytes]) -> None:
        gossip.store_fetched(self.by_group[group], batches)

    def _volume_view(self) -> Any:
        return _VolumeView(self.by_group)


class _VolumeView:
    """What `epochs` looks at of a NodeVolume."""

    def __init__(self, segments: dict[int, Segment]) -> None:
        self.segments = segments
