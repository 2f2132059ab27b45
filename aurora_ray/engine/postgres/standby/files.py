"""The files with which users configure a server, as they change in its volume: PostgreSQL does not replicate them.

A file counts as changed by a flush that makes it, renames another one to it (ALTER SYSTEM, editors) or writes to it.
Pure.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.postgres.configuration import AUTO, HBA
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import decode
from aurora_ray.log.sizes import NO_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record

NAMES: Final = (AUTO.encode(), HBA.encode(), b"postgresql.conf", b"pg_ident.conf")
FILE_PAGES_MAX: Final = 128  # a larger one is not taken over
_DECODED: Final = frozenset({RecordType.CREATE, RecordType.RENAME, RecordType.LINK, RecordType.EXTENT})


@dataclass(slots=True)
class ConfigFile:
    """A file in the data directory itself, and where its pages lie."""

    file_id: int
    name: bytes
    extents: array[int] = field(default_factory=lambda: array("I"))


class ConfigFiles:
    """Files in the data directory itself (not below it), since any of them may be renamed to one that counts."""

    def __init__(self, table: FileTable) -> None:
        self._files: dict[int, ConfigFile] = {}
        for entry in table.entries():
            top = [path for path in entry.paths if path and b"/" not in path]
            if entry.file_id and top:
                self._files[entry.file_id] = ConfigFile(entry.file_id, top[0], array("I", entry.extents))

    def apply(self, batch: bytes, others: Iterable[tuple[int, int, int, int, int]]) -> set[int]:
        """The records of a batch of group 0; ids of files that became ones that count. See log.pages.scan."""
        named: set[int] = set()
        for kind, _, file_id, offset, length in others:
            if kind == RecordType.DROP:
                self._files.pop(file_id, None)
            elif kind in _DECODED and (file_id in self._files or kind == RecordType.CREATE):
                named |= self._one(decode(batch, offset, length))
        return named

    def _one(self, record: Record) -> set[int]:
        file = self._files.get(record.file_id)
        if record.type is RecordType.EXTENT:
            assert file is not None, "others were left out"  # noqa: S101
            missing = record.page + 1 - len(file.extents)
            if missing > 0:
                file.extents.extend([NO_GROUP] * missing)
            file.extents[record.page] = int.from_bytes(record.body[:4], "little")
            return set()
        name = record.body.rpartition(b"\0")[2]
        if b"/" in name:
            self._files.pop(record.file_id, None)
            return set()
        if file is None:
            file = self._files[record.file_id] = ConfigFile(record.file_id, name)
        file.name = name
        return {file.file_id} if name in NAMES else set()

    def __contains__(self, file_id: int) -> bool:
        file = self._files.get(file_id)
        return file is not None and file.name in NAMES

    def of(self, file_id: int) -> ConfigFile | None:
        """The file, if it counts."""
        return self._files[file_id] if file_id in self else None
