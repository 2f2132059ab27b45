"""What stands in for a volume in these tests: records applied to a plain directory."""

from collections.abc import Iterable
from pathlib import Path

from aurora_ray.engine.account import EngineAccount
from aurora_ray.log.filetable import FileKind, FileTable
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import Record, apply_page

PAGE_BYTES = 8192


def build_tree(
    records: Iterable[Record], root: Path, account: EngineAccount | None = None, page_bytes: int = PAGE_BYTES
) -> FileTable:
    """Builds the tree that `records` describe below `root`, owned by `account`."""
    table = FileTable()
    pages: dict[int, dict[int, bytearray]] = {}
    for lsn, record in enumerate(records, 1):
        if record.type is RecordType.PAGE:
            page = pages.setdefault(record.file_id, {}).setdefault(record.page, bytearray(page_bytes))
            apply_page(record, page)
        else:
            table.apply(
                Record(record.type, record.flags, lsn, record.file_id, 0, record.page, record.body, record.count)
            )
    for entry in table.entries():
        path = root / entry.paths[0].decode()
        if entry.kind is FileKind.DIRECTORY:
            path.mkdir()
        elif entry.kind is FileKind.SYMLINK:
            path.symlink_to(entry.target.decode())
            continue
        else:
            with path.open("wb") as file:
                for number, page in sorted(pages.get(entry.file_id, {}).items()):
                    file.seek(number * page_bytes)
                    file.write(page)
                file.truncate(entry.size)
        if account is None:
            path.chmod(entry.mode)
        else:
            account.own(path, entry.mode)
    return table
