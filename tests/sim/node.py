"""A storage node in the simulator: the real append path, recovery and gossip logic over a store in memory.

Only the shell is simulated: RPC, disk, timers. What decides is `aurora_ray.storage` itself (Appender, Segment, epochs,
gossip's adopt_history and store_fetched). Background work (coalescing, collection, copying segments) is left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aurora_ray.errors import OutOfRangeError
from aurora_ray.storage.config import StorageConfig
from aurora_ray.storage.disk.keys import META_KEY
from aurora_ray.storage.heal import gossip
from aurora_ray.storage.node import epochs
from aurora_ray.storage.node.volume import empty_meta
from aurora_ray.storage.pages.garbage import live_read_points
from aurora_ray.storage.segment.meta import SegmentMeta
from aurora_ray.storage.segment.segment import Segment, VdlBox
from aurora_ray.storage.server import subscribe
from aurora_ray.storage.server.append import Appender
from aurora_ray.storage.v1 import storage_pb2 as pb
from tests.sim.store import MemoryStore, PowerLoss

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

FETCH_BATCHES_MAX = 4  # a chunk; small, so that histories can change between chunks
LEASE_S: Final = 0.6  # of followers


class SimNode:
    """One node with its copies of some groups."""

    def __init__(self, name: str, volume: bytes, members: Mapping[int, Sequence[str]], rng: random.Random) -> None:
        """Holds the groups of which it is a member."""
        self.name = name
        self.alive = True
        self.config = StorageConfig(node_id=name, az="a", data_dir=Path("/nowhere"))
        self.disk_full = False
        self.counters: Counter[str] = Counter()
        self.volume = volume
        self.stores: dict[int, MemoryStore] = {}
        self.box = VdlBox()
        self.segments: dict[tuple[bytes, int], Segment] = {}
        self.floors: dict[int, int] = {}  # of the log that followers may still ask for; nothing is deleted here
        self.read_points: dict[str, tuple[int, float]] = {}
        self._booted_s: float | None = None  # known from the first look for garbage on
        self._rng = rng
        self._appender = Appender(self)  # type: ignore[arg-type]
        for group, nodes in members.items():
            if name in nodes:
                self.create_copy(group, nodes)

    @property
    def by_group(self) -> dict[int, Segment]:
        return {group: segment for (_, group), segment in self.segments.items()}

    def check_disk(self) -> None:
        """It is never full here."""

    def reopen_after_error(self, *_: object) -> None:
        raise AssertionError("the store in memory does not fail")

    # ---- life and death

    def boot(self) -> None:
        """Opens what the disk holds."""
        self.box = VdlBox()
        self._booted_s = None
        self.stores = {group: store for group, store in self.stores.items() if store.get(META_KEY) is not None}
        for group, store in self.stores.items():
            self._open(group, store, SegmentMeta.unpack(store.get(META_KEY) or b""))
        self.alive = True

    def _open(self, group: int, store: MemoryStore, meta: SegmentMeta) -> Segment:
        segment = Segment(self.volume, group, store, meta, self.box)  # type: ignore[arg-type]
        self.segments[self.volume, group] = segment
        return segment

    def crash(self) -> None:
        """Power fails."""
        self.alive = False
        self.segments.clear()
        self.read_points.clear()
        for store in self.stores.values():
            store.lose_power(self._rng)

    def guarded(self, action: Callable[[], Any], *, crash: bool) -> Any:
        """Runs one handler; with `crash`, power fails in the middle of its first sync of some group."""
        if crash:
            for store in self._rng.sample(list(self.stores.values()), min(1, len(self.stores))):
                store.fuse = self._rng
        try:
            return action()
        except PowerLoss:
            self.crash()
            return None
        finally:
            for store in self.stores.values():
                store.fuse = None

    # ---- handlers

    def create_copy(self, group: int, members: Sequence[str]) -> None:
        """An empty copy, unless there is one."""
        if group in self.stores:
            return
        meta = empty_meta(8192, members, self.by_group.values())
        self.stores[group] = MemoryStore()
        self._open(group, self.stores[group], meta).commit()

    def append(self, message: bytes) -> int:
        return self._appender.store(message).lsn

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
        return (segment.scl, state.scl) if gossip.has_more(segment, state) else None

    def log_after(self, group: int, after_lsn: int, up_to_lsn: int) -> list[bytes]:
        return list(self.by_group[group].store.log_batches(after_lsn, up_to_lsn))[:FETCH_BATCHES_MAX]

    def store_fetched(self, group: int, batches: Sequence[bytes], peer_epoch: int) -> None:
        gossip.store_fetched(self.by_group[group], batches, peer_epoch)

    def durable_log(self, group: int, after_lsn: int) -> list[bytes]:
        """What a subscriber is given. Raises OutOfRangeError."""
        if after_lsn < self.floors.get(group, 0):
            raise OutOfRangeError(f"the log behind {after_lsn} is gone")
        return list(subscribe.durable_log(self.by_group[group], after_lsn))[:FETCH_BATCHES_MAX]

    def hold(self, holder: str, lsn: int, until_s: float) -> bool:
        """A reader's lease: granted unless what it needs is gone. See NodeVolume.hold."""
        if lsn < max((self.floors.get(group, 0) for group in self.by_group), default=0):
            return False
        self.read_points[holder] = (lsn, until_s)
        return True

    def collect(self, now_s: float) -> None:
        """Lets go of all log that is durable and that nobody holds; who held some before a restart gets time to renew
        that, as with a real node."""
        self._booted_s = now_s if self._booted_s is None else self._booted_s
        if now_s - self._booted_s < LEASE_S:
            return
        held = live_read_points(self.read_points, now_s)
        for group, segment in self.by_group.items():
            self.floors[group] = max(self.floors.get(group, 0), min([segment.scl, segment.vdl, *held]))

    def _volume_view(self) -> Any:
        return _VolumeView(self.by_group)


class _VolumeView:
    """What `epochs` looks at of a NodeVolume."""

    def __init__(self, segments: dict[int, Segment]) -> None:
        self.segments = segments
