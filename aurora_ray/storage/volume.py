"""The segments that one node holds of one volume."""

from __future__ import annotations

import os
import shutil
import uuid
from typing import TYPE_CHECKING

from aurora_ray.errors import MalformedError, UnknownVolumeError
from aurora_ray.storage.keys import META_KEY
from aurora_ray.storage.layers import LayerCache
from aurora_ray.storage.meta import SegmentMeta
from aurora_ray.storage.segment import Segment, VdlBox
from aurora_ray.storage.store import SegmentStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rocksdict import Cache

    from aurora_ray.storage.config import StorageConfig

INCOMING, READY, OLD = ".incoming", ".ready", ".old"  # suffixes of a segment's directory while a copy replaces it


class NodeVolume:
    """Opens, creates and holds segments; directory `<volumes>/<uuid>/<group>`."""

    def __init__(self, volume: bytes, path: Path, config: StorageConfig, cache: Cache) -> None:
        self.volume, self.path = volume, path
        self._config, self._cache = config, cache
        self.box = VdlBox()
        self.segments: dict[int, Segment] = {}
        self.read_points: dict[str, tuple[int, float]] = {}  # holder -> (lsn, end of its lease on the node's clock)

    @property
    def name(self) -> str:
        """The volume's UUID in its usual form."""
        return str(uuid.UUID(bytes=self.volume))

    @property
    def page_size(self) -> int:
        """Of every segment."""
        return next(iter(self.segments.values())).meta.page_size

    def segment(self, group: int) -> Segment:
        """The segment of `group`. Raises UnknownVolumeError."""
        segment = self.segments.get(group)
        if segment is None:
            raise UnknownVolumeError(f"no segment of group {group} of volume {self.name} on this node")
        return segment

    def open_all(self) -> None:
        """Opens what is on disk, finishing a replacement that a crash cut short."""
        finish_replacements(self.path)
        for path in sorted(self.path.iterdir()):
            if path.name.isdigit():
                store = self.open_store(path)
                meta = store.get(META_KEY)
                if meta is None:  # a crash came between creating the directory and writing to it
                    store.close()
                    shutil.rmtree(path)
                    continue
                self.adopt(int(path.name), store, SegmentMeta.unpack(meta))

    def create(self, group: int, page_size: int, members: Sequence[str]) -> Segment:
        """A new, empty segment; one that exists is returned as it is. A new one inherits its siblings' epochs."""
        existing = self.segments.get(group)
        if existing is not None:
            if existing.meta.page_size != page_size:
                raise MalformedError(
                    f"volume {self.name} has pages of {existing.meta.page_size} bytes, not {page_size}"
                )
            return existing
        meta = SegmentMeta(page_size, tuple(members))
        sibling = max(self.segments.values(), key=lambda s: s.meta.epochs.installed_epoch, default=None)
        if sibling is not None:
            meta.epochs = sibling.meta.epochs
            meta.vdl = sibling.vdl
        segment = self.adopt(group, self.open_store(self.path / str(group)), meta)
        segment.save_meta().write_synced()
        sync_directory(self.path)
        return segment

    def open_store(self, path: Path) -> SegmentStore:
        """The RocksDB directory at `path`."""
        return SegmentStore(path, write_buffer_bytes=self._config.write_buffer_bytes, cache=self._cache)

    def adopt(self, group: int, store: SegmentStore, meta: SegmentMeta) -> Segment:
        """Makes an open store the segment of `group`."""
        segment = Segment(self.volume, group, store, meta, self.box)
        segment.layers = LayerCache(segment, self._config.index_bytes)
        self.segments[group] = segment
        return segment

    def close(self) -> None:
        """Closes every segment."""
        for segment in self.segments.values():
            segment.close()
        self.segments.clear()


def finish_replacements(path: Path) -> None:
    """Completes or undoes the replacement of segments by copies after a crash; see `copying.py`."""
    for ready in path.glob("*" + READY):
        swap_directories(path / ready.name.removesuffix(READY))
    for leftover in (*path.glob("*" + INCOMING), *path.glob("*" + OLD)):
        shutil.rmtree(leftover)


def swap_directories(path: Path) -> None:
    """Puts `<path>.ready` in the place of `path`; can be repeated after a crash at any point."""
    old = path.with_name(path.name + OLD)
    if path.exists():
        if old.exists():
            shutil.rmtree(old)
        path.rename(old)
    path.with_name(path.name + READY).rename(path)
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Makes names created or moved in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
