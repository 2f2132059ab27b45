"""What a node was told to drop, or put aside when something better took its place, kept for a while.

    <data_dir>/graveyard/<name>/
        manifest.json   what, when, why, until when
        content         the directory as it was: of a volume or a segment; of a tail a file of batches, each behind its
                        length (u32, little-endian)

A burial is one rename into a directory whose manifest is durable already, so a crash leaves what is buried in one place
or the other, whole. A volume stays for `graveyard_s` and can be brought back until then: its copy is then like one of a
node that was away. Segments that copies have replaced and tails that a recovery annulled are for people who look for
what went wrong; they stay as far as `graveyard_bytes`, `graveyard_disk_share` and GRAVES_MAX allow, the newest longest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import UNDECODABLE, UnknownVolumeError, UsageError
from aurora_ray.storage.disk import effects
from aurora_ray.storage.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from aurora_ray.storage.config import StorageConfig

_log = logging.getLogger(__name__)

GRAVEYARD: Final = "graveyard"  # the directory's name
GRAVES_MAX: Final = 256  # of segments and tails
REASON_CHARS_MAX: Final = 1000
_MANIFEST, _CONTENT = "manifest.json", "content"
_GONE: Final = ".gone"  # suffix of a grave that is being removed
_KINDS: Final = {"volume": pb.GRAVE_VOLUME, "segment": pb.GRAVE_SEGMENT, "tail": pb.GRAVE_TAIL}


@dataclass(frozen=True)
class Grave:
    """One thing that is kept. `kind`: "volume", "segment", "tail", or "unknown" if its manifest cannot be read."""

    name: str
    kind: str
    volume: bytes
    groups: tuple[int, ...]
    nbytes: int
    since_s: float  # since 1970, as the next
    until_s: float  # 0: when space is wanted
    reason: str

    @property
    def makes_room(self) -> bool:
        """Whether it goes when space is wanted."""
        return self.kind in ("segment", "tail")

    def message(self) -> pb.Grave:
        """For ListGraveyard."""
        return pb.Grave(
            name=self.name,
            kind=_KINDS.get(self.kind, pb.GRAVE_UNKNOWN),
            volume=self.volume,
            groups=self.groups,
            bytes=self.nbytes,
            since_ms=int(self.since_s * 1000),
            until_ms=int(self.until_s * 1000),
            reason=self.reason,
        )


class Graveyard:
    """The graves of one node. Burying is synchronous and short: renames and small files. All of it raises OSError."""

    def __init__(self, config: StorageConfig, clock: Callable[[], float], counters: Counter[str]) -> None:
        self._path = config.data_dir / GRAVEYARD
        self._config, self._clock, self._counters = config, clock, counters
        self._graves: dict[str, Grave] = {}

    def open(self) -> None:
        """Finds what is there; ends burials and removals that a crash cut short."""
        for path in sorted(self._path.iterdir()) if self._path.exists() else []:
            if path.name.endswith(_GONE) or not (path / _CONTENT).exists():
                effects.remove_tree(path)  # what was to be buried is still where it was
            else:
                self._graves[path.name] = self._read(path)

    @property
    def graves(self) -> list[Grave]:
        """The oldest first."""
        return sorted(self._graves.values(), key=lambda grave: (grave.since_s, grave.name))

    # ---- burying

    def bury(self, path: Path, kind: str, volume: bytes, groups: Iterable[int], reason: str) -> str:
        """Moves the directory `path` ("volume" or "segment", closed) here; the grave's name."""
        grave = self._new(kind, volume, groups, effects.tree_bytes(path), reason)
        effects.make_directory(self._path / grave.name)
        self._write_manifest(grave)
        effects.rename(path, self._path / grave.name / _CONTENT)
        return self._added(grave)

    def bury_tail(self, volume: bytes, group: int, batches: Sequence[bytes], reason: str) -> str:
        """Keeps batches that are about to be deleted; the grave's name."""
        content = b"".join(len(batch).to_bytes(4, "little") + batch for batch in batches)
        grave = self._new("tail", volume, [group], len(content), reason)
        effects.make_directory(self._path / grave.name)
        effects.write_file(self._path / grave.name / _CONTENT, content)
        self._write_manifest(grave)
        return self._added(grave)

    def destroy(self, path: Path) -> None:
        """Removes a directory that is known to hold nothing; after a crash in the middle nobody takes it for whole."""
        effects.make_directory(self._path)
        doomed = self._path / f"{uuid.uuid4().hex}{_GONE}"
        effects.rename(path, doomed)
        effects.remove_tree(doomed)

    def _new(self, kind: str, volume: bytes, groups: Iterable[int], nbytes: int, reason: str) -> Grave:
        now_s = self._clock()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now_s))}-{kind}-{uuid.uuid4().hex[:8]}"
        until_s = now_s + self._config.graveyard_s if kind == "volume" else 0.0
        return Grave(name, kind, volume, tuple(sorted(groups)), nbytes, now_s, until_s, reason[:REASON_CHARS_MAX])

    def _write_manifest(self, grave: Grave) -> None:
        said = {
            "kind": grave.kind,
            "volume": grave.volume.hex(),
            "groups": grave.groups,
            "bytes": grave.nbytes,
            "since_s": grave.since_s,
            "until_s": grave.until_s,
            "reason": grave.reason,
        }
        effects.write_file(self._path / grave.name / _MANIFEST, json.dumps(said, indent=1).encode())

    def _read(self, path: Path) -> Grave:
        try:
            said = json.loads((path / _MANIFEST).read_bytes())
            return Grave(
                path.name,
                str(said["kind"]),
                bytes.fromhex(said["volume"]),
                tuple(int(group) for group in said["groups"]),
                int(said["bytes"]),
                float(said["since_s"]),
                float(said["until_s"]),
                str(said["reason"]),
            )
        except (OSError, *UNDECODABLE) as error:
            since_s = path.stat().st_mtime
            until_s = since_s + self._config.graveyard_s
            why = f"its manifest cannot be read: {error}"
            return Grave(path.name, "unknown", b"", (), effects.tree_bytes(path), since_s, until_s, why)

    def _added(self, grave: Grave) -> str:
        self._graves[grave.name] = grave
        self._counters[f"buried_{grave.kind}s"] += 1
        _log.info("a %s was moved to the graveyard as %s: %s", grave.kind, grave.name, grave.reason)
        return grave.name

    # ---- bringing back

    def find_volume(self, volume: bytes, name: str = "") -> Grave:
        """The newest grave of a volume, or the one named. Raises UnknownVolumeError."""
        found = [grave for grave in self.graves if grave.kind == "volume" and grave.volume == volume]
        found = [grave for grave in found if name in ("", grave.name)]
        if not found:
            raise UnknownVolumeError(f"no grave{' ' + name if name else ''} of volume {volume.hex()} on this node")
        return found[-1]

    def exhume(self, grave: Grave, target: Path) -> None:
        """Moves a grave's directory to `target`, where nothing is (or an empty directory). Raises UnknownVolumeError if
        somebody has removed it.
        """
        self.forget_removed()
        if grave.name not in self._graves:
            raise UnknownVolumeError(f"grave {grave.name} of volume {grave.volume.hex()} was removed from the disk")
        effects.rename(self._path / grave.name / _CONTENT, target)
        del self._graves[grave.name]
        effects.remove_tree(self._path / grave.name)

    # ---- removing

    def forget_removed(self) -> None:
        """Lists no grave any more that somebody has removed from the disk."""
        try:
            there = set(os.listdir(self._path))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        for name in self._graves.keys() - there:
            del self._graves[name]
            _log.warning("grave %s is not in %s any more", name, self._path)

    def due(self, free_bytes: int, disk_bytes: int) -> list[str]:
        """Names of graves to remove now, given the free and the whole size of the disk."""
        now_s, config = self._clock(), self._config
        over = [grave.name for grave in self.graves if not grave.makes_room and grave.until_s <= now_s]
        budget = min(config.graveyard_bytes, int(config.graveyard_disk_share * disk_bytes))
        if free_bytes < 2 * config.disk_reserve_bytes:
            budget = 0
        kept_bytes = kept = 0
        for grave in reversed(self.graves):
            if not grave.makes_room:
                continue
            if kept == GRAVES_MAX or kept_bytes + grave.nbytes > budget:
                over.append(grave.name)
            else:
                kept_bytes, kept = kept_bytes + grave.nbytes, kept + 1
        return over

    async def purge(self, names: Iterable[str]) -> int:
        """Removes graves for good; how many bytes. Raises UsageError for a name that is not there, nothing done."""
        self.forget_removed()
        named = list(dict.fromkeys(names))
        unknown = [name for name in named if name not in self._graves]
        if unknown:
            raise UsageError(f"there is no grave {unknown[0][:80]!r} on this node: list the graveyard")
        nbytes = 0
        for name in named:
            doomed = self._path / f"{name}{_GONE}"
            effects.rename(self._path / name, doomed)
            nbytes += self._graves.pop(name).nbytes
            self._counters["purged_graves"] += 1
            await asyncio.to_thread(effects.remove_tree, doomed)
        return nbytes
