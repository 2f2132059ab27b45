"""The segments that one node holds of one volume."""

from __future__ import annotations

import logging
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import MalformedError, NotCompleteError, OutOfRangeError, UnknownVolumeError, UsageError
from aurora_ray.log.lineage import ROOT, Lineage
from aurora_ray.log.segment_rules import Membership, SegmentEpochs
from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.damage import STORE, DamagedError, is_corruption, says_unreadable
from aurora_ray.storage.disk.keys import META_KEY
from aurora_ray.storage.disk.store import SegmentStore
from aurora_ray.storage.segment.layers import LayerCache
from aurora_ray.storage.segment.meta import AS_CONFIGURED, Retention, SegmentMeta
from aurora_ray.storage.segment.segment import Segment, VdlBox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from aurora_ray.storage.config import StorageConfig
    from aurora_ray.storage.disk.damage import DamageBook
    from aurora_ray.storage.disk.graveyard import Graveyard
    from aurora_ray.storage.disk.store import NodeMemory
    from aurora_ray.storage.node.progress import CopyProgress
    from aurora_ray.storage.pacing import Openings, Traffic

_log = logging.getLogger(__name__)

INCOMING, READY, OLD = ".incoming", ".ready", ".old"  # suffixes of a segment's directory while a copy replaces it
LOST: Final = ".lost"  # ... and of one that could not be opened, kept until a copy is in its place
UNREADABLE: Final = ".unreadable"  # a file beside it: how many starts in a row its disk did not give it back
UNREADABLE_STARTS: Final = 3  # then it is lost; until then the node does not start, as it may be all the disk
HOLDERS_MAX: Final = 1_000  # of read points: readers of a volume, and those that died lately
FORKING: Final = ".forking"  # an empty file beside the directory: it is a parent's still, or in part
MADE: Final = ".made"  # an empty file beside the directory: more than a beginning was there once


class NodeVolume:
    """Opens, creates and holds segments; directory `<volumes>/<uuid>/<group>`.

    A segment whose files are too damaged to open, or were taken away, is *lost*: the node does not have it, takes no
    part in any quorum of it, and gets it back from its peers (`rebuild.py`).
    """

    def __init__(
        self,
        volume: bytes,
        path: Path,
        config: StorageConfig,
        memory: NodeMemory,
        *,
        openings: Openings,
        traffic: Traffic,
        damage: DamageBook,
        graveyard: Graveyard,
    ) -> None:
        self.volume, self.path = volume, path
        self._config, self._memory, self._damage, self._graveyard = config, memory, damage, graveyard
        self._openings, self._traffic = openings, traffic
        self._closed = False
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

    @property
    def lineage(self) -> Lineage:
        """Of every segment; as of a volume without a parent if all are lost."""
        return next((segment.meta.lineage for segment in self.segments.values()), ROOT)

    @property
    def retention(self) -> Retention:
        """The least that any segment goes by."""
        return min((segment.meta.retention for segment in self.segments.values()), default=AS_CONFIGURED)

    @property
    def is_empty(self) -> bool:
        """Whether it is known that nothing was ever written to what is here."""
        return not self.lost and all(self._never_written(segment) for segment in self.segments.values())

    def _never_written(self, segment: Segment) -> bool:
        damaged = self._damage.items((self.volume, segment.group))
        return not (segment.closed or segment.highest_lsn or damaged)

    def hold(self, holder: str, lsn: int, until_s: float) -> None:
        """Keeps what a reader at `lsn` needs until its lease ends, or lets go of it if that is not in the future.

        Raises OutOfRangeError if it is gone already, UsageError for one holder too many.
        """
        if holder not in self.read_points and len(self.read_points) >= HOLDERS_MAX:
            raise UsageError(f"{HOLDERS_MAX} holders of read points are enough: end some leases first")
        floor_lsn = max((segment.meta.floor_lsn for segment in self.segments.values()), default=0)
        if lsn < floor_lsn:
            raise OutOfRangeError(f"LSN {lsn} cannot be held: history begins at {floor_lsn} here")
        self.read_points[holder] = (lsn, until_s)

    def segment(self, group: int) -> Segment:
        """The segment of `group`. Raises UnknownVolumeError."""
        segment = self.segments.get(group)
        if segment is None:
            raise UnknownVolumeError(f"no segment of group {group} of volume {self.name} on this node")
        return segment

    def open_all(self) -> None:
        """Opens what is on disk, finishing a replacement that a crash cut short."""
        finish_replacements(self.path, self._put_replaced_aside)
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
        except UnknownVolumeError:  # a crash came between creating it and writing to it
            self.put_aside(path, "nothing says what it is: it was being made when the node ended")
        except Exception as error:  # RocksDB's errors have no common class
            damaged = isinstance(error, MalformedError | DamagedError) or is_corruption(error)
            if not damaged and not self._unreadable_again(path, error):
                raise
            self._lose(path, error)
        else:
            self._note_unreadable(path, 0)

    def _unreadable_again(self, path: Path, error: Exception) -> bool:
        """Whether this was one start too many at which the disk did not give the segment back."""
        if not says_unreadable(error):
            return False
        noted = path.with_name(path.name + UNREADABLE)
        starts = 1 + (int(noted.read_text() or 0) if noted.exists() else 0)
        self._note_unreadable(path, starts % UNREADABLE_STARTS)
        return starts == UNREADABLE_STARTS

    def _note_unreadable(self, path: Path, starts: int) -> None:
        noted = path.with_name(path.name + UNREADABLE)
        if starts:
            effects.write_file(noted, b"%d" % starts)
        elif noted.exists():
            effects.remove_file(noted)

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
            effects.write_file(path, b"")

    def put_aside(self, path: Path, reason: str) -> None:
        """Moves the directory of a closed segment to the graveyard."""
        self._graveyard.bury(path, "segment", self.volume, [int(path.name.partition(".")[0])], reason)

    def _put_replaced_aside(self, path: Path) -> None:
        """A copy is in its place. If the graveyard has no room, it goes."""
        try:
            self.put_aside(path, "a copy from peers has taken its place")
        except OSError as error:
            _log.warning("%s cannot be moved to the graveyard and is removed: %s", path, error)
            effects.remove_tree(path)

    def _lose(self, path: Path, error: Exception) -> None:
        group, lost = int(path.name), path.with_name(path.name + LOST)
        self.lost.add(group)  # first: it serves no more, whatever the disk says
        self._damage.report(DamagedError((self.volume, group), STORE, str(error)))
        if path.exists():
            if lost.exists():
                self._put_replaced_aside(lost)
            effects.rename(path, lost)
        effects.make_directory(lost)  # so that it is known to be lost after a restart as well

    def lose(self, group: int, why: str) -> None:
        """An open segment has nothing to stand on any more."""
        segment = self.segments.pop(group)
        segment.close()
        self._lose(segment.store.path, MalformedError(why))

    def create(self, group: int, page_size: int, members: Sequence[str], lineage: Lineage = ROOT) -> Segment:
        """A new, empty segment; one that exists is returned as it is. A new one inherits its siblings' epochs."""
        if group in self.lost:
            raise NotCompleteError(f"incomplete: group {group} of volume {self.name} was lost here and is being copied")
        existing = self.segments.get(group)
        if existing is not None:
            if existing.meta.page_size != page_size:
                raise MalformedError(
                    f"volume {self.name} has pages of {existing.meta.page_size} bytes, not {page_size}"
                )
            if existing.meta.lineage != lineage:
                raise MalformedError(f"volume {self.name} has the lineage {existing.meta.lineage}, not {lineage}")
            return existing
        meta = empty_meta(page_size, members, self.segments.values(), lineage)
        store = self.open_store(self.path / str(group))
        try:
            changes = store.batch()
            changes.put("default", META_KEY, meta.pack())
            changes.write_synced()
            return self.adopt_made(group, store, meta)
        except BaseException:
            store.close()
            raise

    @asynccontextmanager
    async def forking(self, group: int) -> AsyncIterator[Path]:
        """Where the segment of `group` is to be made, of which there is none: what is there is nobody's until the block
        has ended, and goes if it fails. Raises NotCompleteError if there was one that is being brought back.
        """
        path = self.path / str(group)
        if path.exists() or group in self.lost:
            raise NotCompleteError(f"incomplete: group {group} of volume {self.name} is here and does not open yet")
        note = path.with_name(path.name + FORKING)
        effects.write_file(note, b"")
        try:
            yield path
        except BaseException:
            _remove_unmade(note)
            raise
        effects.remove_file(note)

    def adopt_made(self, group: int, store: SegmentStore, meta: SegmentMeta) -> Segment:
        """As `adopt`, of a segment that was made just now."""
        self._note_made(group)
        return self.adopt(group, store, meta)

    def open_store(self, path: Path) -> SegmentStore:
        """The RocksDB directory at `path`. Raises UnknownVolumeError if the volume was dropped."""
        if self._closed:
            raise UnknownVolumeError(f"volume {self.name} was dropped on this node")
        return SegmentStore(path, write_buffer_bytes=self._config.write_buffer_bytes, memory=self._memory)

    def adopt(self, group: int, store: SegmentStore, meta: SegmentMeta) -> Segment:
        """Makes an open store the segment of `group`."""
        report, keep = self._damage.report, self._keep_tail
        segment = Segment(
            self.volume,
            group,
            store,
            meta,
            self.box,
            openings=self._openings,
            traffic=self._traffic,
            report=report,
            keep=keep,
        )
        segment.layers = LayerCache(segment, self._config.index_bytes)
        self.segments[group] = segment
        return segment

    def _keep_tail(self, segment: Segment, batches: list[bytes]) -> None:
        reason = f"annulled by a recovery; the end of the group's log was {segment.highest_lsn}"
        try:
            self._graveyard.bury_tail(self.volume, segment.group, batches, reason)
        except OSError as error:  # a recovery does not wait for what nobody was told is durable
            _log.warning("volume %s: an annulled tail could not be kept: %s", self.name, error)

    def reopen(self, segment: Segment) -> None:
        """Opens a closed segment from what is on disk. Raises whatever prevents it; then nothing has changed."""
        self.open_segment(segment.store.path)

    def take_ready(self, path: Path) -> None:
        """Puts `<path>.ready` in the place of `path`, durably."""
        swap_directories(path, self._put_replaced_aside)

    def found(self, group: int) -> None:
        """A lost segment is back."""
        self.lost.discard(group)
        lost = self.path / f"{group}{LOST}"
        if lost.exists():
            self._put_replaced_aside(lost)

    def drop(self, group: int, reason: str) -> None:
        """Moves a segment to the graveyard; an unknown one is fine. One that was never written to is removed."""
        effects.remove_file(self.path / f"{group}{MADE}")
        segment = self.segments.pop(group, None)
        if segment is not None:
            unwritten = self._never_written(segment)
            segment.close()
            if unwritten:
                self._graveyard.destroy(segment.store.path)
            else:
                self.put_aside(segment.store.path, reason)
        self.copies.pop(group, None)
        self.lost.discard(group)
        lost = self.path / f"{group}{LOST}"
        if lost.exists():
            self.put_aside(lost, reason)
        self._damage.forget((self.volume, group))

    def close(self) -> None:
        """Closes every segment; nothing can be opened here any more."""
        self._closed = True
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


def empty_meta(
    page_size: int, members: Sequence[str], siblings: Iterable[Segment], lineage: Lineage = ROOT
) -> SegmentMeta:
    """Of a new segment; it inherits the epochs of the volume's others on this node."""
    membership = Membership(0, tuple(members))
    sibling = max(siblings, key=lambda segment: segment.meta.epochs.installed_epoch, default=None)
    if sibling is None:
        epochs, vdl = SegmentEpochs(membership=membership), 0
    else:
        epochs, vdl = replace(sibling.meta.epochs, membership=membership), sibling.vdl
    return SegmentMeta(page_size, epochs, vdl, lineage=lineage)


def _remove_unmade(note: Path) -> None:
    """Removes what was to become a fork's segment, and then the note that says so."""
    effects.remove_tree(note.with_suffix(""))
    effects.remove_file(note)


def finish_replacements(path: Path, put_aside: Callable[[Path], None]) -> None:
    """Completes or undoes, after a crash, the replacement of segments by copies (see `rebuild.py`) and forks."""
    for note in path.glob("*" + FORKING):
        _remove_unmade(note)
    for ready in path.glob("*" + READY):
        swap_directories(path / ready.name.removesuffix(READY), put_aside)
    for incoming in path.glob("*" + INCOMING):
        effects.remove_tree(incoming)  # part of what peers have
    for old in path.glob("*" + OLD):
        put_aside(old)


def swap_directories(path: Path, put_aside: Callable[[Path], None]) -> None:
    """Puts `<path>.ready` in the place of `path`; can be repeated after a crash at any point."""
    old = path.with_name(path.name + OLD)
    if path.exists():
        if old.exists():
            put_aside(old)
        effects.rename(path, old)
    effects.rename(path.with_name(path.name + READY), path)
    if old.exists():
        put_aside(old)
