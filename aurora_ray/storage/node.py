"""What a storage node holds: its volumes, peers and counters. No RPC in here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from typing import TYPE_CHECKING

from rocksdict import Cache

from aurora_ray.errors import AuroraError, ConfigurationError, MalformedError, UnknownVolumeError, UsageError
from aurora_ray.log.layout import PAGE_BYTES_MAX
from aurora_ray.storage.damage import DamageBook, DamagedError, is_corruption
from aurora_ray.storage.rocks import WriteFailedError
from aurora_ray.storage.volume import NodeVolume, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aurora_ray.storage.config import StorageConfig
    from aurora_ray.storage.damage import SegmentKey
    from aurora_ray.storage.segment import Segment

_log = logging.getLogger(__name__)


def free_disk_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of `path`."""
    stat = os.statvfs(path)
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
        self.volumes: dict[bytes, NodeVolume] = {}
        self.segments: dict[tuple[bytes, int], Segment] = {}  # the hot path's index
        self.peers: dict[str, str] = {}  # node id -> address
        self.disk_full = False
        self.append_port = 0  # set by the server
        self.reclaim: Callable[[], None] = lambda: None  # makes sure that the directory is still this node's
        self._to_reopen: dict[SegmentKey, Segment] = {}  # closed by a failed write, not open again yet
        self.disk_bytes = 0
        self._free_bytes = free_bytes
        self._cache = Cache(config.block_cache_bytes)
        self._volumes_dir = config.data_dir / "volumes"

    def open(self) -> None:
        """Opens all that is on disk. Raises ConfigurationError if the machine does not let us (a full disk)."""
        self._volumes_dir.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._volumes_dir.iterdir()):
            if path.name.startswith("dropped-"):
                shutil.rmtree(path)
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

    def create_segments(self, volume: bytes, page_size: int, groups: Sequence[int], members: Sequence[str]) -> None:
        """Creates what is missing. Raises UsageError or MalformedError."""
        if len(volume) != 16 or not groups:
            raise UsageError("a volume is named by 16 bytes and has at least one group")
        if not 512 <= page_size <= PAGE_BYTES_MAX or page_size & (page_size - 1):
            raise UsageError(f"a page of {page_size} bytes: a power of two from 512 to {PAGE_BYTES_MAX} is needed")
        held = self.volumes.get(volume)
        if held is None:
            held = self._volume_at(volume)
            held.path.mkdir(parents=True, exist_ok=True)
            sync_directory(self._volumes_dir)
        for group in groups:
            held.create(group, page_size, members)
        self.volumes[volume] = held
        self.index(held)

    def drop_groups(self, volume: bytes, groups: Sequence[int]) -> None:
        """Deletes some segments of a volume; unknown ones are fine."""
        held = self.volumes.get(volume)
        if held is None:
            return
        for group in groups:
            self.segments.pop((volume, group), None)
            held.drop(group)
        if not held.segments and not held.lost:
            self.drop_volume(volume)

    def drop_volume(self, volume: bytes) -> None:
        """Forgets a volume and deletes its segments; unknown ones are fine."""
        held = self.volumes.pop(volume, None)
        if held is None:
            return
        for group in (*held.segments, *held.lost):
            self.segments.pop((volume, group), None)
            self.damage.forget((volume, group))
        held.close()
        doomed = held.path.with_name(f"dropped-{held.path.name}")
        held.path.rename(doomed)
        sync_directory(self._volumes_dir)
        shutil.rmtree(doomed)

    def index(self, volume: NodeVolume) -> None:
        """Shows the hot path the segments of a volume."""
        for group, segment in volume.segments.items():
            self.segments[volume.volume, group] = segment

    def set_peers(self, addresses: dict[str, str]) -> None:
        """Remembers where the other nodes are, across restarts too."""
        self.peers = {node_id: a for node_id, a in addresses.items() if node_id != self.config.node_id}
        self._write("peers.json", json.dumps(self.peers))

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

    def check_files(self) -> None:
        """Notices segments whose files were taken away: they are lost, and come back from the peers.

        What is acknowledged until then stands on files without a name, so it counts as one copy that was lost.
        """
        gone = [key for key, segment in self.segments.items() if not segment.closed and not segment.store.has_files]
        for key in gone:
            self.lose(self.segments[key], "its files were removed")
        if gone:
            self.reclaim()

    def lose(self, segment: Segment, why: str) -> None:
        """A segment cannot be relied on any more: it is closed, and comes back from the peers."""
        volume = self.volumes.get(segment.volume)
        if volume is not None and volume.segments.get(segment.group) is segment:  # not dropped or replaced since
            self.segments.pop((segment.volume, segment.group), None)
            volume.lose(segment.group, why)

    async def measure_disk(self) -> None:
        """Updates `disk_bytes`."""
        self.disk_bytes = await asyncio.to_thread(_tree_bytes, self.config.data_dir)

    def note_failure(self, error: Exception) -> None:
        """Sees to what an error says of our own files: damage is repaired, a failed write undone."""
        if isinstance(error, DamagedError):
            self.damage.report(error)
        elif isinstance(error, WriteFailedError) and error.segment in self.segments:
            self.reopen_after_error([self.segments[error.segment]], error)

    def reopen_after_error(self, segments: Sequence[Segment], error: Exception) -> None:
        """After a failed write: what is on disk is the truth, so the segments are opened from it again.

        With a full disk that may fail as well; then it is tried again at each look at the disk. What cannot be written
        because its files are damaged would fail again and again: it is lost, and comes back from the peers.
        """
        _log.error("node %s: a write failed and its segments are reopened: %s", self.config.node_id, error)
        if is_corruption(error):
            for segment in segments:
                self.lose(segment, str(error))
            return
        self.disk_full = True  # until the next look at the disk
        for segment in segments:
            segment.close()
            self._to_reopen[segment.volume, segment.group] = segment
        self._reopen()

    def _reopen(self) -> None:
        for key, segment in list(self._to_reopen.items()):
            volume = self.volumes.get(segment.volume)
            if volume is not None and volume.segments.get(segment.group) is segment:  # not dropped or replaced since
                try:
                    volume.reopen(segment)
                except Exception as error:  # RocksDB's errors have no common class
                    if is_corruption(error) or isinstance(error, MalformedError | DamagedError):
                        self.lose(segment, str(error))
                    else:
                        _log.info("node %s: group %d cannot be opened yet: %s", self.config.node_id, key[1], error)
                        continue
                self.index(volume)
            del self._to_reopen[key]

    def _volume_at(self, volume: bytes) -> NodeVolume:
        return NodeVolume(
            volume, self._volumes_dir / str(uuid.UUID(bytes=volume)), self.config, self._cache, self.damage
        )

    def _read(self, name: str) -> str | None:
        path = self.config.data_dir / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        path = self.config.data_dir / name
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(path)


def _tree_bytes(path: Path) -> int:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # RocksDB deletes files while we look
    return total
