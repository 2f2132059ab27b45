"""From a private mount to one that writes its volume, while the engine runs: what the volume is told, and in which
order.

A mount without a writer is what the volume was at one LSN, with what the engine has changed since. To become the
volume's own as of a later LSN, it is compared with the table of files of then. All of that happens while the region's
lock is held, so no process makes, renames or writes anything in between:

- a file that the engine has not touched, and one that is the volume's by the rules, becomes what the volume has, or
  goes if it has none;
- any other one keeps its length and the pages that the engine has written, which the volume lacks from then on (they
  are *owed*), and takes everything else from the volume;
- files, directories and links that are here and not there, or there and not here, are told as they are here.

Whether a mixture of the two is right is for the engine to say: `Rules`. The file that decides that (`first`) is the
first that the volume hears of. Nothing goes out before all has been told to the ring; what cannot be exchanged is
refused before anything has changed."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import EngineError
from aurora_ray.interposer import native
from aurora_ray.log.filetable import Entry, FileKind
from aurora_ray.log.layout import RecordType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from aurora_ray.interposer.region import Region
    from aurora_ray.log.filetable import FileTable

_MODE: Final = 0o7777
_RECORD: Final = 64  # bytes of a record without a name, at most


class ExchangeRefusedError(EngineError):
    """This mount cannot become the volume's own; it is as it was."""


class Guard(NamedTuple):
    """The first page of a file, as the volume gets it; and bytes of it, up to 64, that must be the same here, and
    that stay as they are until the volume lacks nothing."""

    path: bytes
    first: int
    end: int
    page: bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """What an engine says of its files, by patterns (fnmatch, on paths relative to the mount). `of_volume`: files that
    are as the volume has them, whatever is here. `removes`: what the engine removes by itself, so that the volume
    loses it if it is not here; a file besides, that only the volume has, is made here. `floor`: what was last changed
    up to there, by LSNs of the private log, the volume has, whatever the volume's page is. `reads`: path, first page
    and number of pages of what is read first, and brought at once. `same`: of files that are the volume's, the number
    of their first pages that are the same there, where the engine has written them here."""

    first: Guard
    of_volume: Sequence[str] = ()
    removes: Sequence[str] = ("*",)
    floor: int = 0
    reads: Sequence[tuple[bytes, int, int]] = ()
    same: Mapping[bytes, int] = field(default_factory=dict)


class Found(NamedTuple):
    """Something that lies in the mount. `slot`: of a regular file that the region knows."""

    mode: int
    target: bytes = b""
    slot: int = -1
    file_id: int = 0
    size: int = 0
    touched: bool = False


@dataclass(slots=True)
class Plan:
    """What makes the volume and the mount one. Paths are relative to the mount."""

    becomes: list[tuple[int, Entry, bool]] = field(default_factory=list)  # slot, the volume's file, whether it is ours
    modes: list[tuple[bytes, int]] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)  # the volume has them, and they are made here
    extra: list[tuple[bytes, Found]] = field(default_factory=list)  # files that the volume gets
    forgotten: list[Entry] = field(default_factory=list)  # files that the volume loses
    unlinked: list[bytes] = field(default_factory=list)  # symbolic links that it loses
    linked: list[tuple[bytes, bytes]] = field(default_factory=list)  # and that it gets: path, target
    removed: list[bytes] = field(default_factory=list)  # directories that it loses, the deepest first
    made: list[tuple[bytes, int]] = field(default_factory=list)  # and that it gets, parents first
    discarded: list[tuple[bytes, int]] = field(default_factory=list)  # files that go here, as the volume has none

    def log_bytes(self, groups: int) -> int:
        """What it takes in the ring at most; `groups`: of the volume."""
        names = [path for path, _ in (*self.extra, *self.linked, *self.made, *self.modes)]
        names += [*self.unlinked, *self.removed, *(entry.paths[0] for entry in self.forgotten)]
        sizes = len(self.becomes) + len(self.extra)
        return (
            sum(map(len, names))
            + sum(len(target) for _, target in self.linked)
            + _RECORD * (2 * len(names) + (sizes + len(self.forgotten)) * (1 + groups))
        )


def look(region: Region, root: Path) -> dict[bytes, Found]:
    """All that is logged below `root`, by path. The lock is held. Raises ExchangeRefusedError."""
    found: dict[bytes, Found] = {}
    top = os.fsencode(root)
    stack = [b""]
    while stack:
        below = stack.pop()
        with os.scandir(os.path.join(top, below)) as entries:
            for entry in entries:
                path = os.path.join(below, entry.name)
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(state.st_mode):
                    stack.append(path)
                if region.is_volatile(path):
                    continue
                if stat.S_ISDIR(state.st_mode):
                    found[path] = Found(stat.S_IMODE(state.st_mode) & _MODE)
                elif stat.S_ISLNK(state.st_mode):
                    found[path] = Found(0, os.readlink(os.path.join(top, path)))
                elif stat.S_ISREG(state.st_mode):
                    found[path] = _file(region, path, state)
    return found


def _file(region: Region, path: bytes, state: os.stat_result) -> Found:
    slot = region.find_slot(state.st_ino)
    if slot is None or state.st_nlink != 1:
        raise ExchangeRefusedError(f"{os.fsdecode(path)} has several names, or is none of the volume's")
    view = region.slot(slot)
    return Found(stat.S_IMODE(state.st_mode) & _MODE, b"", slot, view.file_id, view.size, bool(view.last_lsn))


def difference(
    here: Mapping[bytes, Found],
    table: FileTable,
    rules: Rules,
    mounted_ids: int,
    is_volatile: Callable[[bytes], bool],
) -> Plan:
    """What is to be done. `mounted_ids`: ids below that are of files that were mounted. Raises ExchangeRefusedError."""
    plan = Plan()
    is_volumes, removes = any_of(rules.of_volume), any_of(rules.removes)
    named = ((path, entry) for entry in table.entries() for path in entry.paths)
    there = {path: entry for path, entry in named if path and not is_volatile(path)}
    for entry in table.entries():
        if entry.kind is FileKind.FILE and len(entry.paths) > 1:
            raise ExchangeRefusedError(f"{os.fsdecode(entry.paths[0])} has several names in the volume")
    for path in sorted(here):
        _here(
            plan,
            path,
            here[path],
            there.get(path),
            volumes=is_volumes(path),
            mounted_ids=mounted_ids,
        )
    for path in sorted(there.keys() - here.keys(), reverse=True):
        entry = there[path]
        if entry.kind is not FileKind.FILE and not removes(path):
            raise ExchangeRefusedError(f"{os.fsdecode(path)} is in the volume, and not here")
        if entry.kind is FileKind.DIRECTORY:
            plan.removed.append(path)
        elif entry.kind is FileKind.SYMLINK:
            plan.unlinked.append(path)
        elif not removes(path) or (is_volumes(path) and (os.path.dirname(path) in here or b"/" not in path)):
            plan.missing.append(entry)
        else:
            plan.forgotten.append(entry)
    kept = {os.path.dirname(entry.paths[0]) for entry in plan.missing}
    if kept & set(plan.removed):
        raise ExchangeRefusedError("the volume has files in directories that are not here")
    return plan


def any_of(patterns: Sequence[str]) -> Callable[[bytes], bool]:
    """Whether a path matches one of these patterns (fnmatch)."""
    match = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)").match
    return lambda path: match(os.fsdecode(path)) is not None


def _here(plan: Plan, path: bytes, found: Found, entry: Entry | None, *, volumes: bool, mounted_ids: int) -> None:
    kind = FileKind.FILE if found.slot >= 0 else FileKind.SYMLINK if found.target else FileKind.DIRECTORY
    if entry is not None and entry.kind is not kind:
        raise ExchangeRefusedError(f"{os.fsdecode(path)} is a {kind.value} here and a {entry.kind.value} in the volume")
    if kind is FileKind.DIRECTORY:
        if entry is None:
            plan.made.append((path, found.mode))
        return
    if kind is FileKind.SYMLINK:
        if entry is None or entry.target != found.target:
            plan.linked.append((path, found.target))
        if entry is not None and entry.target != found.target:
            plan.unlinked.append(path)
        return
    moved = found.file_id < mounted_ids and (entry is None or entry.file_id != found.file_id)
    if entry is not None and (volumes or not found.touched):
        plan.becomes.append((found.slot, entry, False))
    elif volumes or not found.touched:  # whoever removed or renamed it in the volume did it since the mount
        plan.discarded.append((path, found.slot))
    elif moved:
        raise ExchangeRefusedError(f"{os.fsdecode(path)} holds pages of another file of the volume")
    elif entry is None:
        plan.extra.append((path, found))
    else:
        plan.becomes.append((found.slot, entry, True))
        if entry.mode != found.mode:
            plan.modes.append((path, found.mode))


class Exchange:
    """Carries out a plan, while the lock is held: `lsn` is where the volume ends."""

    def __init__(self, region: Region, root: Path, lsn: int, rules: Rules) -> None:
        self._region, self._root, self._lsn, self._rules = region, os.fsencode(root), lsn, rules
        self._guard_slot = -1
        self.owed_pages = 0
        self.extents: dict[int, array[int]] = {}  # by slot: where the files lie
        self.slots: dict[int, bytes] = {}  # of files that were made here
        self.paths: dict[bytes, int] = {}  # slots of all files

    def run(self, plan: Plan, table: FileTable, free: Mapping[int, int], guard_slot: int) -> None:
        """Raises OSError; then the mount is neither the one nor the other."""
        self._guard_slot = guard_slot
        region = self._region
        missing = [(entry, self._make(entry)) for entry in plan.missing]
        for path, slot in plan.discarded:
            region.discard(slot)
            os.unlink(os.path.join(self._root, path))
        region.rebase(self._lsn, table.next_file_id)
        for group, extents in free.items():
            region.add_group(group, extents)
        for slot, entry, ours in plan.becomes:
            self._become(slot, entry, ours=ours)
        for entry, ino in missing:
            slot = region.mount_held(ino, entry.file_id, entry.size, len(entry.extents))
            self.extents[slot], self.slots[slot] = entry.extents, entry.paths[0]
        first = self._rules.first
        if error := region.guard(guard_slot, first.first, first.end, first.page):
            raise OSError(error, f"it cannot be logged: {os.strerror(error)}", os.fsdecode(first.path))
        self._tell(plan)
        for slot, entry, ours in plan.becomes:
            if ours:
                region.log_length(slot, entry.size)

    def _tell(self, plan: Plan) -> None:
        region = self._region
        for path in plan.unlinked:
            region.log_name(RecordType.UNLINK, path)
        for entry in plan.forgotten:
            region.log_name(RecordType.UNLINK, entry.paths[0], file_id=entry.file_id)
            region.log_drop(entry.file_id, dict.fromkeys(entry.extents))
        for path in plan.removed:
            region.log_name(RecordType.RMDIR, path)
        for path, mode in plan.made:
            region.log_name(RecordType.MKDIR, path, mode=mode)
        for path, target in plan.linked:
            region.log_name(RecordType.SYMLINK, target, path)
        for path, found in plan.extra:
            entry = Entry(FileKind.FILE, (path,), found.mode, region.new_file_id())
            region.log_name(RecordType.CREATE, path, file_id=entry.file_id, mode=found.mode)
            self._become(found.slot, entry, ours=True)
            region.log_length(found.slot, 0)
        for path, mode in plan.modes:
            region.log_name(RecordType.CHMOD, path, mode=mode)

    def _become(self, slot: int, entry: Entry, *, ours: bool) -> None:
        floor = self._rules.floor if slot != self._guard_slot else 0  # that one is never as the volume has it
        same = 0 if ours else next((self._rules.same[path] for path in entry.paths if path in self._rules.same), 0)
        becomes = native.Becomes(
            file_id=entry.file_id, size=entry.size, lsn=self._lsn, floor=floor, same=same, ours=int(ours)
        )
        if not ours:
            self._resize(slot, entry)
        self.owed_pages += self._region.become(slot, becomes, entry.extents)
        self.extents[slot] = entry.extents

    def _resize(self, slot: int, entry: Entry) -> None:
        if self._region.slot(slot).size != entry.size:
            os.truncate(os.path.join(self._root, entry.paths[0]), entry.size)

    def _make(self, entry: Entry) -> int:
        path = os.path.join(self._root, entry.paths[0])
        above = os.stat(os.path.dirname(path))
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, entry.mode)
            if (above.st_uid, above.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, above.st_uid, above.st_gid)
            os.ftruncate(fd, entry.size)
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)
