"""What a storage node holds: its volumes, peers and counters. No RPC in here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from rocksdict import Cache, WriteBufferManager

from aurora_ray.errors import (
    AuroraError,
    ConfigurationError,
    MalformedError,
    StorageError,
    UnknownVolumeError,
    UsageError,
)
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.sizes import PAGE_BYTES_ALLOWED
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.damage import DamageBook, DamagedError, is_corruption, says_full, says_unreadable
from aurora_ray.storage.disk.datadir import CHECKPOINTS
from aurora_ray.storage.disk.graveyard import Graveyard
from aurora_ray.storage.disk.rocks import ReadFailedError, WriteFailedError
from aurora_ray.storage.disk.space import Space, SpaceState, space_of
from aurora_ray.storage.disk.store import NodeMemory, lower_background_priority
from aurora_ray.storage.node.volume import NodeVolume
from aurora_ray.storage.pacing import Openings, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aurora_ray.storage.config import StorageConfig
    from aurora_ray.storage.disk.damage import SegmentKey
    from aurora_ray.storage.segment.segment import Segment

_log = logging.getLogger(__name__)

READ_FAILURES_MAX: Final = 3  # of one segment, within ...
READ_FAILURES_WITHIN_S: Final = 600.0
_FILES_REMOVED: Final = "its files were removed"
REOPEN_FOR_S: Final = 60.0  # a segment that its disk does not give back; then it is lost


def free_disk_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of the directory `path`. Raises OSError if there is none."""
    stat = os.statvfs(os.path.join(path, ""))  # a file in its place is none
    return stat.f_bavail * stat.f_frsize


class Node:
    """The state behind one storage server. `clock` gives seconds since 1970, `free_bytes` the room on a path's disk."""

    def __init__(
        self,
        config: StorageConfig,
        clock: Callable[[], float],
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        self.config, self.clock = config, clock
        self.started_s = clock()
        self.counters: Counter[str] = Counter()
        self.damage = DamageBook(self.counters)
        self.graveyard = Graveyard(config, clock, self.counters)
        self.volumes: dict[bytes, NodeVolume] = {}
        self.segments: dict[tuple[bytes, int], Segment] = {}  # the hot path's index
        self.peers: dict[str, str] = {}  # node id -> address
        self.openings, self._traffic = Openings(), Traffic()
        self.disk_full = False
        self.forking = asyncio.Lock()  # held while a fork is made
        self.forks: set[asyncio.Task[None]] = set()  # being made
        self.append_port = 0  # set by the server
        self.reclaim: Callable[[], None] = lambda: None  # makes sure that the directory is still this node's
        self._to_reopen: dict[SegmentKey, Segment] = {}  # closed by a failed write, not open again yet
        self._read_failures: dict[SegmentKey, deque[float]] = {}  # when, in seconds since 1970
        self._closed_since_s: dict[SegmentKey, float] = {}  # ... of those to reopen
        self.disk_bytes = 0
        self._free_bytes = free_bytes
        self._memory = NodeMemory(
            Cache(config.block_cache_bytes), WriteBufferManager(config.write_buffers_bytes, allow_stall=False)
        )
        lower_background_priority()
        self._volumes_dir = config.data_dir / "volumes"

    def open(self) -> None:
        """Opens all that is on disk. Raises ConfigurationError if the machine does not let us (a full disk)."""
        effects.make_directory(self._volumes_dir)
        effects.remove_tree(self.config.data_dir / CHECKPOINTS)
        self.graveyard.open()
        for path in sorted(self._volumes_dir.iterdir()):
            if path.name.startswith("dropped-"):  # by a node from before there was a graveyard; it may be half gone
                effects.remove_tree(path)
                continue
            volume = self._volume_at(uuid.UUID(path.name).bytes)
            try:
                volume.open_all()
            except AuroraError:
                raise
            except Exception as error:  # RocksDB's errors have no common class
                raise ConfigurationError(f"what is stored in {path} cannot be opened: {error}") from error
            if volume.segments or volume.lost:
                self.volumes[volume.volume] = volume
                self.index(volume)
        self.peers = dict(json.loads(self._read("peers.json") or "{}"))
        self.check_disk()

    def close(self) -> None:
        """Closes every volume."""
        for volume in self.volumes.values():
            volume.close()
        self.volumes.clear()
        self.segments.clear()

    def volume(self, volume: bytes) -> NodeVolume:
        """Raises UnknownVolumeError."""
        found = self.volumes.get(volume)
        if found is None:
            raise UnknownVolumeError(f"no volume {volume.hex()} on node {self.config.node_id}")
        return found

    def create_segments(
        self,
        volume: bytes,
        page_size: int,
        groups: Sequence[int],
        members: Sequence[str],
        lineage: Lineage = ROOT,
    ) -> None:
        """Creates what is missing. Raises UsageError, MalformedError, or ConfigurationError if the data directory is
        gone and cannot be made anew. A copy of a fork is empty, too: its peers that were forked fill it.
        """
        if len(volume) != 16 or not groups:
            raise UsageError("a volume is named by 16 bytes and has at least one group")
        lineage.checked(volume)
        if page_size not in PAGE_BYTES_ALLOWED:
            raise UsageError(f"a page of {page_size} bytes: one of {PAGE_BYTES_ALLOWED} is needed")
        self.reclaim()  # before anything is written to a directory that is not ours any more
        held = self.volume_to_be(volume)
        for group in groups:
            held.create(group, page_size, members, lineage)
        self.volumes[volume] = held
        self.index(held)

    def volume_to_be(self, volume: bytes) -> NodeVolume:
        """The volume, or one that is to get its first segment, with a directory to make it in."""
        held = self.volumes.get(volume)
        if held is None:
            held = self._volume_at(volume)
            effects.make_directory(held.path)
        return held

    def took_in(self, held: NodeVolume) -> None:
        """A volume has got a segment, perhaps its first."""
        self.volumes[held.volume] = held
        self.index(held)

    def drop_groups(self, volume: bytes, groups: Sequence[int], reason: str) -> str:
        """Moves some segments of a volume to the graveyard; unknown ones are fine. As `drop_volume`."""
        held = self.volumes.get(volume)
        if held is None:
            return ""
        if not {*held.segments, *held.lost}.difference(groups):
            return self.drop_volume(volume, reason)
        for group in groups:
            self.segments.pop((volume, group), None)
            try:
                held.drop(group, reason)
            except OSError as error:
                raise StorageError(
                    f"group {group} of volume {volume.hex()} could not be moved to the graveyard: {error}"
                ) from error
            finally:
                self.index(held)
        return ""

    def drop_volume(self, volume: bytes, reason: str) -> str:
        """Moves a volume to the graveyard; the grave's name. Empty, and nothing is kept, for one that is not here or
        that nothing was ever written to. Raises StorageError; then it is here as before.
        """
        held = self.volumes.get(volume)
        if held is None:
            return ""
        groups = (*held.segments, *held.lost)
        unwritten = held.is_empty
        self._forget(held)
        try:
            if unwritten:
                self.graveyard.destroy(held.path)
                return ""
            return self.graveyard.bury(held.path, "volume", volume, groups, reason)
        except OSError as error:
            if held.path.exists():
                self._open_volume(volume)
            raise StorageError(f"volume {volume.hex()} could not be moved to the graveyard: {error}") from error

    def _forget(self, held: NodeVolume) -> None:
        del self.volumes[held.volume]
        for group in (*held.segments, *held.lost):
            self.segments.pop((held.volume, group), None)
            self.damage.forget((held.volume, group))
            self._read_failures.pop((held.volume, group), None)
        held.close()

    def _open_volume(self, volume: bytes) -> None:
        """Opens what is on disk of a volume. Raises StorageError, or what RocksDB has to say; then nothing is open."""
        held = self._volume_at(volume)
        try:
            held.open_all()
        except BaseException:
            held.close()
            raise
        if not (held.segments or held.lost):
            raise StorageError(f"there is no segment in {held.path}")
        self.volumes[volume] = held
        self.index(held)

    def restore_volume(self, volume: bytes, name: str) -> str:
        """Brings a volume back from the graveyard, the newest grave's or the one named; its name.

        Raises UnknownVolumeError, UsageError if the volume is here, StorageError if it cannot be opened; then it is in
        the graveyard still.
        """
        path = self._volume_at(volume).path
        if volume in self.volumes or (path.exists() and any(path.iterdir())):
            raise UsageError(f"volume {volume.hex()} is on node {self.config.node_id}: there is nothing to restore")
        grave = self.graveyard.find_volume(volume, name)
        self.graveyard.exhume(grave, path)
        try:
            self._open_volume(volume)
        except Exception as error:  # RocksDB's errors have no common class
            self.graveyard.bury(path, "volume", volume, grave.groups, grave.reason)
            raise StorageError(f"volume {volume.hex()} could not be brought back: {error}") from error
        self.counters["restored_volumes"] += 1
        return grave.name

    async def tend_graveyard(self) -> None:
        """Removes what has been kept for long enough, or takes more room than it may. Raises OSError."""
        self.graveyard.forget_removed()
        stat = os.statvfs(self.config.data_dir)
        due = self.graveyard.due(self._free_bytes(self.config.data_dir), stat.f_blocks * stat.f_frsize)
        await self.graveyard.purge(due)

    def index(self, volume: NodeVolume) -> None:
        """Shows the hot path the segments of a volume."""
        for group, segment in volume.segments.items():
            self.segments[volume.volume, group] = segment

    def set_peers(self, addresses: dict[str, str]) -> None:
        """Remembers where the other nodes are, across restarts too.

        Raises UsageError for addresses that are none, and if nobody is named at all: a node that knew nobody could
        mend nothing. If only the node itself is named, what it knows stays.
        """
        for node_id, address in addresses.items():
            host, _, port = address.rpartition(":")
            if not (node_id and host and port.isdigit() and 0 < int(port) <= 0xFFFF):
                raise UsageError(f"{address[:80]!r} of node {node_id[:64]!r} is not an address: host:port is needed")
        if not addresses:
            raise UsageError("no addresses are given: name the nodes that hold segments with this one")
        peers = {node_id: address for node_id, address in addresses.items() if node_id != self.config.node_id}
        if peers and peers != self.peers:
            self.peers = peers
            try:
                self._write("peers.json", json.dumps(peers))
            except OSError as error:
                _log.warning("node %s: a restart will not know its peers: %s", self.config.node_id, error)

    def remembered_port(self) -> int:
        """The port used last time; 0 if none."""
        return int(self._read("port") or 0)

    def remember_port(self, port: int) -> None:
        """For the next start."""
        self._write("port", str(port))

    def check_disk(self) -> None:
        """Notices a full disk, and one that has room again."""
        full = self._free_bytes(self.config.data_dir) < self.config.disk_reserve_bytes
        if not full and self._to_reopen:
            self._reopen()
            full = bool(self._to_reopen)
        if full != self.disk_full:
            _log.warning("node %s: the disk is %s", self.config.node_id, "full" if full else "no longer full")
        self.disk_full = full

    def space(self) -> Space:
        """Room on the disk, now."""
        try:
            free_bytes = self._free_bytes(self.config.data_dir)
        except OSError:
            return Space(SpaceState.GONE, 0, self.config.disk_reserve_bytes)
        return space_of(free_bytes, self.config.disk_reserve_bytes, refuses=self.disk_full)

    def has_room_for(self, nbytes: int) -> bool:
        """Whether so much may be written in the background, for a while, without taking the room that appends need."""
        return self._free_bytes(self.config.data_dir) > nbytes + self.config.disk_reserve_bytes

    def check_files(self) -> None:
        """Notices segments whose files were taken away: they are lost, and come back from the peers.

        What is acknowledged until then stands on files without a name, so it counts as one copy that was lost.
        """
        for segment in list(self.segments.values()):
            if not segment.closed and not segment.store.has_files:
                self.lose(segment, _FILES_REMOVED)
        self.reclaim()

    def lose(self, segment: Segment, why: str) -> None:
        """A segment cannot be relied on any more: it is closed, and comes back from the peers."""
        volume = self.volumes.get(segment.volume)
        if volume is not None and volume.segments.get(segment.group) is segment:  # not dropped or replaced since
            self.segments.pop((segment.volume, segment.group), None)
            try:
                volume.lose(segment.group, why)
            except OSError as error:  # it is lost all the same
                _log.warning("volume %s group %d: not noted on disk: %s", volume.name, segment.group, error)

    async def measure_disk(self) -> None:
        """Updates `disk_bytes`."""
        self.disk_bytes = await asyncio.to_thread(effects.tree_bytes, self.config.data_dir)

    def note_failure(self, error: Exception) -> None:
        """Sees to what an error says of our own files: damage is repaired, a failed write undone."""
        if isinstance(error, DamagedError):
            self.damage.report(error)
        elif isinstance(error, WriteFailedError | ReadFailedError) and error.segment in self.segments:
            self.reopen_after_error([self.segments[error.segment]], error)

    def reopen_after_error(self, segments: Sequence[Segment], error: Exception) -> None:
        """After a failure of RocksDB: what is on disk is the truth, so the segments are opened from it again.

        With a full disk that may fail as well; then it is tried again at each look at the disk. What cannot be written
        because its files are damaged would fail again and again, as would what its disk does not give back
        (READ_FAILURES_MAX; when it is opened, for REOPEN_FOR_S): it is lost, and comes back from the peers.
        """
        what = "read" if isinstance(error, ReadFailedError) else "write"
        _log.error("node %s: a %s failed and its segments are reopened: %s", self.config.node_id, what, error)
        self.counters["reopened_segments"] += len(segments)
        if is_corruption(error) or (isinstance(error, ReadFailedError) and self._fails_again(error)):
            for segment in segments:
                self.lose(segment, str(error))
            return
        if says_full(error):
            self.disk_full = True  # until the next look at the disk; other failures are this segment's own
        for segment in segments:
            segment.close()
            self._to_reopen[segment.volume, segment.group] = segment
        self._reopen()

    def _fails_again(self, error: ReadFailedError) -> bool:
        """Whether this was one failure to read too many."""
        now_s = self.clock()
        failures = self._read_failures.setdefault(error.segment, deque(maxlen=READ_FAILURES_MAX))
        failures.append(now_s)
        return len(failures) == READ_FAILURES_MAX and now_s - failures[0] < READ_FAILURES_WITHIN_S

    def _reopen(self) -> None:
        for key, segment in list(self._to_reopen.items()):
            volume = self.volumes.get(segment.volume)
            if volume is not None and volume.segments.get(segment.group) is segment:  # not dropped or replaced since
                if not segment.store.has_files:  # opening would make an empty one
                    self.lose(segment, _FILES_REMOVED)
                    self._forget_reopening(key)
                    continue
                try:
                    volume.reopen(segment)
                except Exception as error:  # RocksDB's errors have no common class
                    since_s = self._closed_since_s.setdefault(key, self.clock())
                    hopeless = says_unreadable(error) and self.clock() - since_s >= REOPEN_FOR_S
                    if hopeless or is_corruption(error) or isinstance(error, MalformedError | DamagedError):
                        self.lose(segment, str(error))
                    else:
                        _log.info("node %s: group %d cannot be opened yet: %s", self.config.node_id, key[1], error)
                        continue
                self.index(volume)
            self._forget_reopening(key)

    def _forget_reopening(self, key: SegmentKey) -> None:
        del self._to_reopen[key]
        self._closed_since_s.pop(key, None)

    def _volume_at(self, volume: bytes) -> NodeVolume:
        return NodeVolume(
            volume,
            self._volumes_dir / str(uuid.UUID(bytes=volume)),
            self.config,
            self._memory,
            openings=self.openings,
            traffic=self._traffic,
            damage=self.damage,
            graveyard=self.graveyard,
        )

    def _read(self, name: str) -> str | None:
        path = self.config.data_dir / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        effects.write_file(self.config.data_dir / name, text.encode())
