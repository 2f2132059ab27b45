"""Pictures of a storage node's directory after each of its effects on the disk: what a power cut there would leave.

All effects of a node pass through few places: the functions of `storage/disk/effects.py`, and the writes, syncs and
flushes of its RocksDBs. Each is followed by a picture, a copy of the whole directory. What was written and not synced
is in one picture and missing in a second one, as either may come true. RocksDB orders what it does inside
one call itself.
"""

from __future__ import annotations

import contextlib
import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurora_ray.storage.disk import effects, rocks, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Facts:
    """What the node has told somebody so far, and may thus never take back."""

    acked_lsn: int = 0
    promised_epoch: int = 0
    installed_epoch: int = 0
    annulled_lsns: set[int] = field(default_factory=set)  # of batches that a history which is installed annuls
    exists: bool = False  # the volume: created, and not yet told to be dropped
    may_be_lost: bool = False  # the segment was damaged before all this
    may_exist: bool = True


@dataclass
class Picture:
    """A directory as a power cut left it, the effect that it follows, and what had been told by then."""

    path: Path
    effect: str
    facts: Facts


class Camera:
    """Takes the pictures of one node's `directory`; those of a sequence are in `pictures` when it has ended."""

    def __init__(self, directory: Path, album: Path) -> None:
        self.facts = Facts()
        self.pictures: list[Picture] = []
        self._directory, self._album = directory, album
        self._synced: dict[Path, bytes] = {}  # files of write-ahead logs, as of their last sync

    @contextlib.contextmanager
    def running(self, monkeypatch: Any, node: Any) -> Iterator[Camera]:
        """While this lasts, each effect is followed by a picture; `node` has stores that are open already."""
        with monkeypatch.context() as patched:
            self._watch_files(patched)
            self._watch_databases(patched)
            for segment in node.segments.values():
                self._watch_store(segment.store)
            self._note_synced()
            yield self

    # ---- effects on files

    def _watch_files(self, patched: Any) -> None:
        for name in ("make_directory", "rename", "write_file", "remove_file", "remove_tree"):
            patched.setattr(effects, name, self._watched_file_effect(name, getattr(effects, name)))

    def _watched_file_effect(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def effect(path: Path, *args: Any) -> Any:
            if name == "write_file":
                with contextlib.suppress(FileNotFoundError):
                    path.with_suffix(".new").write_bytes(args[0][: len(args[0]) // 2])
                    self._take(f"half of {name} {path.name}", path)
            if name == "remove_tree" and path.is_dir():
                files = sorted(each for each in path.rglob("*") if each.is_file())
                for each in files[::2]:
                    each.unlink()
                if files:
                    self._take(f"half of {name} {path.name}", path)
            before = path.exists()
            answer = real(path, *args)
            if before or path.exists():
                self._take(f"{name} {path.name}", path)
            return answer

        return effect

    # ---- effects of RocksDB

    def _watch_databases(self, patched: Any) -> None:
        real_batch, real_init, camera = rocks.Database.batch, rocks.Database.__init__, self

        def init(database: Any, path: Path, *args: Any) -> None:
            real_init(database, path, *args)
            camera._after("open", path, synced=True)

        def batch(database: Any) -> Any:
            made = real_batch(database)
            made.path = database.path
            return made

        patched.setattr(rocks.Database, "__init__", init)
        patched.setattr(rocks.Database, "batch", batch)
        for name in ("write", "write_synced"):
            patched.setattr(rocks.Batch, name, self._watched_write(name, getattr(rocks.Batch, name)))
        real_flush = rocks.Database.flush

        async def flush(database: Any, *families: str) -> None:
            for family in families or tuple(database.families):
                await real_flush(database, family)
                self._after(f"flush {family}", database.path, synced=True)

        patched.setattr(rocks.Database, "flush", flush)
        real_drop = rocks.Database.drop

        def drop(database: Any, family: str) -> None:
            real_drop(database, family)
            self._after(f"drop {family}", database.path, synced=True)

        patched.setattr(rocks.Database, "drop", drop)
        real_store = store.SegmentStore.__init__

        def store_init(segment_store: Any, path: Path, **kwargs: Any) -> None:
            real_store(segment_store, path, **kwargs)
            self._watch_store(segment_store)

        patched.setattr(store.SegmentStore, "__init__", store_init)

    def _watch_store(self, segment_store: Any) -> None:
        put, sync, path = segment_store.put_log, segment_store.sync, segment_store.path

        def put_log(*args: Any) -> None:
            put(*args)
            self._after("put", path, synced=False)

        def synced(*args: Any) -> None:
            sync(*args)
            self._after("sync", path, synced=True)

        segment_store.put_log, segment_store.sync = put_log, synced

    def _watched_write(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(batch: Any) -> None:
            real(batch)
            self._after(name, batch.path, synced=name == "write_synced")

        return write

    def _after(self, effect: str, path: Path, *, synced: bool) -> None:
        if not path.is_relative_to(self._directory):
            return
        if synced:
            self._note_synced()
        self._take(effect, path)
        if not synced:
            kept = self.pictures[-1].path
            self._take(f"{effect}, lost", path)
            lost = self.pictures[-1].path
            for file in kept.rglob("*.log"):
                place = file.relative_to(kept)
                (lost / place).write_bytes(self._synced.get(place, b""))

    def _note_synced(self) -> None:
        self._synced = {file.relative_to(self._directory): file.read_bytes() for file in self._directory.rglob("*.log")}

    def _take(self, effect: str, path: Path) -> None:
        if not path.is_relative_to(self._directory):
            return
        picture = self._album / f"{len(self.pictures):03}" / self._directory.name
        _copy(self._directory, picture)
        self.pictures.append(Picture(picture, effect, deepcopy(self.facts)))


def _copy(source: Path, target: Path) -> None:
    """A copy of a directory in which RocksDB may remove files meanwhile. Tables never change: a link is enough."""

    def copy(one: str, other: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if one.endswith((".sst", ".blob")):
                Path(other).hardlink_to(one)
            else:
                shutil.copyfile(one, other)

    shutil.copytree(source, target, copy_function=copy)
