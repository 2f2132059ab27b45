"""The segments that one node holds of one volume."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, NotCompleteError, UnknownVolumeError
from aurora_ray.log.segment_rules import Membership, SegmentEpochs
from aurora_ray.storage.damage import STORE, DamagedError, is_corruption
from aurora_ray.storage.keys import META_KEY
from aurora_ray.storage.layers import LayerCache
from aurora_ray.storage.meta import SegmentMeta
from aurora_ray.storage.segment import Segment, VdlBox
from aurora_ray.storage.store import SegmentStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rocksdict import Cache

    from aurora_ray.storage.config import StorageConfig
    from aurora_ray.storage.damage import DamageBook
    from aurora_ray.storage.filling import CopyProgress

INCOMING, READY, OLD = ".incoming", ".ready", ".old"  # suffixes of a segment's directory while a copy replaces it
LOST: Final = ".lost"  # ... and of one that could not be opened, kept until a copy is in its place
MADE: Final = ".made"  # an empty file beside the directory: more than a beginning was there once


class NodeVolume:
    """Opens, creates and holds segments; directory `<volumes>/<uuid>/<group>`.

    A segment whose files are too damaged to open, or were taken away, is *lost*: the node does not have it, takes no
    part in any quorum of it, and gets it back from its peers (`rebuild.py`).
    """

    def __init__(self, volume: bytes, path: Path, config: StorageConfig, cache: Cache, damage: DamageBook) -> None:
        self.volume, self.path = volume, path
        self._config, self._cache, self._damage = config, cache, damage
        self.box = VdlBox()
        self.segments: dict[int, Segment] = {}
        self.lost: set[int] = set()
        self.copies: dict[int, CopyProgress] = {}  # the last copy of each group from peers
        self.read_points: dict[str, tuple[int, float]] = {}  # holder -> (lsn, end of its lease on the node's clock)

    @property
    def name(self) -> str:
        """The volume's UUID in its usual form."""
        return str(uuid.UUID(bytes=self.volume))

    @property
    def page_size(self) -> int:
        """Of every segment; 0 if all are lost."""
        return next((segment.meta.page_size for segment in self.segments.values()), 0)

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
                self._open(path)
        left = {int(path.stem) for suffix in (LOST, MADE) for path in self.path.glob("*" + suffix)}
        for group in sorted(left):
            if group in self.segments:
                self.found(group)
            elif group not in self.lost:
                self._lose(self.path / str(group), MalformedError("it could not be opened, or is gone"))

    def _open(self, path: Path) -> None:
        try:
            self.open_segment(path)
        except UnknownVolumeError:
            shutil.rmtree(path)  # a crash came between creating it and writing to it
        except Exception as error:  # RocksDB's errors have no common class
            if not (isinstance(error, MalformedError | DamagedError) or is_corruption(error)):
                raise
            self._lose(path, error)

    def open_segment(self, path: Path) -> Segment:
        """The segment in a directory. Raises UnknownVolumeError if nothing was ever written there, DamagedError,
        MalformedError, or whatever RocksDB has to say; then nothing is open.
        """
        store = self.open_store(path)
        try:
            segment = self.adopt(int(path.name), store, _read_meta(store))
        except BaseException:
            store.close()
            raise
        self._note_made(segment.group)
        return segment

    def _note_made(self, group: int) -> None:
        """From now on, an empty directory is one that lost what was in it."""
        path = self.path / f"{group}{MADE}"
        if not path.exists():
            path.touch()
            sync_directory(self.path)

    def _lose(self, path: Path, error: Exception) -> None:
        group, lost = int(path.name), path.with_name(path.name + LOST)
        if path.exists():
            shutil.rmtree(lost, ignore_errors=True)
            path.rename(lost)
        lost.mkdir(parents=True, exist_ok=True)  # so that it is known to be lost after a restart as well
        sync_directory(self.path)
        self.lost.add(group)
        self._damage.report(DamagedError((self.volume, group), STORE, str(error)))

    def lose(self, group: int, why: str) -> None:
        """An open segment has nothing to stand on any more."""
        segment = self.segments.pop(group)
        segment.close()
        self._lose(segment.store.path, MalformedError(why))

    def create(self, group: int, page_size: int, members: Sequence[str]) -> Segment:
        """A new, empty segment; one that exists is returned as it is. A new one inherits its siblings' epochs."""
        if group in self.lost:
            raise NotCompleteError(f"incomplete: group {group} of volume {self.name} was lost here and is being copied")
        existing = self.segments.get(group)
        if existing is not None:
            if existing.meta.page_size != page_size:
                raise MalformedError(
                    f"volume {self.name} has pages of {existing.meta.page_size} bytes, not {page_size}"
                )
            return existing
        meta = empty_meta(page_size, members, self.segments.values())
        segment = self.adopt(group, self.open_store(self.path / str(group)), meta)
        segment.save_meta().write_synced()
        self._note_made(group)
        return segment

    def open_store(self, path: Path) -> SegmentStore:
        """The RocksDB directory at `path`."""
        return SegmentStore(path, write_buffer_bytes=self._config.write_buffer_bytes, cache=self._cache)

    def adopt(self, group: int, store: SegmentStore, meta: SegmentMeta) -> Segment:
        """Makes an open store the segment of `group`."""
        segment = Segment(self.volume, group, store, meta, self.box, report=self._damage.report)
        segment.layers = LayerCache(segment, self._config.index_bytes)
        self.segments[group] = segment
        return segment

    def reopen(self, segment: Segment) -> None:
        """Opens a closed segment from what is on disk. Raises whatever prevents it; then nothing has changed."""
        self.open_segment(segment.store.path)

    def found(self, group: int) -> None:
        """A lost segment is back."""
        self.lost.discard(group)
        shutil.rmtree(self.path / f"{group}{LOST}", ignore_errors=True)

    def drop(self, group: int) -> None:
        """Deletes a segment; an unknown one is fine."""
        (self.path / f"{group}{MADE}").unlink(missing_ok=True)
        segment = self.segments.pop(group, None)
        if segment is not None:
            segment.close()
            shutil.rmtree(segment.store.path)
        self.copies.pop(group, None)
        self.found(group)
        self._damage.forget((self.volume, group))

    def close(self) -> None:
        """Closes every segment."""
        for segment in self.segments.values():
            segment.close()
        self.segments.clear()


def _read_meta(store: SegmentStore) -> SegmentMeta:
    packed, flushed_lsn = store.get(META_KEY), store.flushed_lsn()
    if packed is None and not store.path.with_name(store.path.name + MADE).exists():
        raise UnknownVolumeError(f"{store.path} is empty")
    meta = SegmentMeta.unpack(packed or b"")
    if flushed_lsn < meta.coalesced_lsn:
        raise MalformedError(f"pages are there up to {flushed_lsn} only, not {meta.coalesced_lsn}")
    return meta


def empty_meta(page_size: int, members: Sequence[str], siblings: Iterable[Segment]) -> SegmentMeta:
    """Of a new segment; it inherits the epochs of the volume's others on this node."""
    membership = Membership(0, tuple(members))
    meta = SegmentMeta(page_size, SegmentEpochs(membership=membership))
    sibling = max(siblings, key=lambda segment: segment.meta.epochs.installed_epoch, default=None)
    if sibling is not None:
        meta.epochs = replace(sibling.meta.epochs, membership=membership)
        meta.vdl = sibling.vdl
    return meta


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
