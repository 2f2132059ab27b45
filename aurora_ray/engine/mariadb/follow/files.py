"""Which files of a volume are binary logs, as the records of the volume's log tell it. Pure."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.mariadb.settings import BINLOG_NAME
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import decode
from aurora_ray.log.sizes import NO_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record

_NAME: Final = re.compile(rb"(?:\./)?" + BINLOG_NAME.encode() + rb"\.(\d{6,})")
_OTHER = tuple[int, int, int, int, int]  # type, LSN, file, offset, length: see log.pages.scan


@dataclass(slots=True)
class BinlogFile:
    """One of them; `number` is in its name."""

    file_id: int
    number: int
    extents: array[int] = field(default_factory=lambda: array("I"))

    @property
    def name(self) -> str:
        """As servers call it."""
        return f"{BINLOG_NAME}.{self.number:06d}"


class BinlogFiles:
    """The binary logs as of the last record that was applied. `restarted`: there was a file again with a number that
    another one had."""

    def __init__(self, table: FileTable) -> None:
        self._files: dict[int, BinlogFile] = {}
        self._by_number: dict[int, BinlogFile] = {}
        self._newest = 0
        self.restarted = False
        for entry in table.entries():
            number = next(filter(None, map(_number, entry.paths)), 0)
            if number and entry.file_id:
                self._add(BinlogFile(entry.file_id, number, array("I", entry.extents)))

    def __contains__(self, file_id: int) -> bool:
        return file_id in self._files

    @property
    def newest(self) -> BinlogFile | None:
        """The one with the highest number; None if there is none."""
        return self._by_number.get(self._newest)

    def numbered(self, number: int) -> BinlogFile | None:
        """The one with that number."""
        return self._by_number.get(number)

    def apply(self, batch: bytes, others: Iterable[_OTHER]) -> None:
        """The records of a batch of group 0 that change names and places; see log.pages.scan. Raises MalformedError."""
        for kind, _, file_id, offset, length in others:
            if kind == RecordType.CREATE:
                record = decode(batch, offset, length)
                if number := _number(record.body):
                    self.restarted |= number <= self._newest
                    self._add(BinlogFile(file_id, number))
            elif kind == RecordType.EXTENT and file_id in self._files:
                self._extent(decode(batch, offset, length))
            elif kind == RecordType.DROP and file_id in self._files:
                file = self._files.pop(file_id)
                if self._by_number.get(file.number) is file:
                    del self._by_number[file.number]

    def _add(self, file: BinlogFile) -> None:
        self._files[file.file_id] = self._by_number[file.number] = file
        self._newest = max(self._newest, file.number)

    def _extent(self, record: Record) -> None:
        extents = self._files[record.file_id].extents
        missing = record.page + 1 - len(extents)
        if missing > 0:
            extents.extend([NO_GROUP] * missing)
        extents[record.page] = int.from_bytes(record.body[:4], "little")


def _number(path: bytes) -> int:
    match = _NAME.fullmatch(path)
    return int(match[1]) if match else 0
