"""Which files of a volume are segments of the WAL, as the records of the volume's log tell it. Pure.

A segment's name has three numbers of eight hexadecimal digits: timeline, and the segment's number in two parts. A file
is made under a temporary name and renamed; or a segment that is not needed any more becomes a later one by a rename
(wal_recycle), and then it still has its old content. The first segment of a timeline is a copy, and behind the place
where the timeline begins, it may have anything: PostgreSQL looks at pages' addresses.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import decode
from aurora_ray.log.sizes import NO_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record

DIRECTORY: Final = b"pg_wal/"
_SEGMENT: Final = re.compile(rb"pg_wal/([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_OTHER = tuple[int, int, int, int, int]  # type, LSN, file, offset, length: see log.pages.scan


@dataclass(slots=True)
class WalFile:
    """A file in the directory of the WAL. `start`: its first byte's position in the WAL; None: it is no segment.

    `stale`: pages that are not of its own may hold something else than zeros: it was another segment before, or was
    written to before it was one, or nobody saw how it was made.
    """

    file_id: int
    name: bytes
    start: int | None = None
    timeline: int = 0
    stale: bool = False
    extents: array[int] = field(default_factory=lambda: array("I"))


class WalFiles:
    """The files of the WAL as of the last record that was applied."""

    def __init__(self, table: FileTable, segment_bytes: int) -> None:
        self.timeline = 0  # the newest of which there has been a segment; whether it counts is not said here
        self._segment_bytes = segment_bytes
        self._files: dict[int, WalFile] = {}
        self._by_place: dict[tuple[int, int], WalFile] = {}  # (timeline, start)
        for entry in table.entries():
            names = [path for path in entry.paths if path.startswith(DIRECTORY)]
            if names and entry.file_id:
                file = self._files[entry.file_id] = WalFile(entry.file_id, b"", extents=array("I", entry.extents))
                self._name(file, names[-1])
                file.stale = True

    def __contains__(self, file_id: int) -> bool:
        return file_id in self._files

    def segment(self, file_id: int) -> WalFile | None:
        """The segment that this file is, if it is one."""
        file = self._files.get(file_id)
        return file if file is not None and file.start is not None else None

    def unseen(self, file_id: int) -> None:
        """Something was written to this file, and nobody keeps it."""
        if file_id in self._files:
            self._files[file_id].stale = True

    def at(self, position: int, timelines: Iterable[int]) -> WalFile | None:
        """The segment with this position of the WAL: of these timelines the first one that has it."""
        start = position - position % self._segment_bytes
        found = (self._by_place.get((timeline, start)) for timeline in timelines)
        return next((file for file in found if file is not None), None)

    def goes_on_behind(self, position: int, timelines: Iterable[int]) -> bool:
        """Whether there are segments behind the one with this position."""
        wanted = set(timelines)
        return any(timeline in wanted and start > position for timeline, start in self._by_place)

    def named(self, name: bytes) -> WalFile | None:
        """The file of this name."""
        return next((file for file in self._files.values() if file.name == name), None)

    def apply(self, batch: bytes, others: Iterable[_OTHER]) -> None:
        """The records of a batch of group 0 that change names and places; see log.pages.scan. Raises MalformedError."""
        for kind, _, file_id, offset, length in others:
            action = _ACTIONS.get(kind)
            if action is not None and (file_id in self._files or kind in _NAMING):
                action(self, decode(batch, offset, length))

    def _name(self, file: WalFile, name: bytes) -> None:
        was_segment = file.start is not None
        self._leave(file)
        file.name, file.start = name, None
        match = _SEGMENT.fullmatch(name)
        if match is None:
            return
        timeline, high, low = (int(part, 16) for part in match.groups())
        number = high * ((1 << 32) // self._segment_bytes) + low
        file.start, file.timeline = number * self._segment_bytes, timeline
        file.stale = file.stale or was_segment
        self.timeline = max(self.timeline, timeline)
        self._by_place[timeline, file.start] = file

    def _leave(self, file: WalFile) -> None:
        if file.start is not None and self._by_place.get((file.timeline, file.start)) is file:
            del self._by_place[file.timeline, file.start]

    def _create(self, record: Record) -> None:
        if record.body.startswith(DIRECTORY):
            file = self._files[record.file_id] = WalFile(record.file_id, b"")
            self._name(file, record.body)

    def _rename(self, record: Record) -> None:
        file = self._files.get(record.file_id)
        _, _, to = record.body.partition(b"\0")
        if file is not None and to.startswith(DIRECTORY):
            self._name(file, to)
        elif file is not None:
            self._drop(record)

    def _unlink(self, record: Record) -> None:
        file = self._files.get(record.file_id)
        if file is not None and file.name == record.body:
            self._drop(record)

    def _drop(self, record: Record) -> None:
        file = self._files.pop(record.file_id, None)
        if file is not None:
            self._leave(file)

    def _extent(self, record: Record) -> None:
        file = self._files[record.file_id]
        missing = record.page + 1 - len(file.extents)
        if missing > 0:
            file.extents.extend([NO_GROUP] * missing)
        file.extents[record.page] = int.from_bytes(record.body[:4], "little")


# A file can be linked to its name and lose the other one.
_ACTIONS: Final[dict[int, Callable[[WalFiles, Record], None]]] = {
    RecordType.CREATE: WalFiles._create,
    RecordType.RENAME: WalFiles._rename,
    RecordType.LINK: WalFiles._rename,
    RecordType.UNLINK: WalFiles._unlink,
    RecordType.DROP: WalFiles._drop,
    RecordType.EXTENT: WalFiles._extent,
}
_NAMING: Final = frozenset({RecordType.CREATE})
