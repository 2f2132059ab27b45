"""Segments as they were stored before page versions had a database of their own: one database held every family.

Such a directory is brought up to date when it is opened. The old family goes last, so a crash in between begins anew.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from rocksdict import Rdict

from aurora_ray.storage.disk import effects
from aurora_ray.storage.disk.keys import LOG_FAMILIES, MARK_KEY, PAGE_FAMILIES
from aurora_ray.storage.disk.rocks import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rocksdict import Options

    from aurora_ray.storage.disk.damage import SegmentKey

_log = logging.getLogger(__name__)

_STEP_BYTES: Final = 1 << 20
PAGES, MARKS = PAGE_FAMILIES


def separate_pages(
    path: Path, pages_path: Path, options: Callable[[], Options], families: Mapping[str, Options], owner: SegmentKey
) -> None:
    """Moves page versions from the database at `path`, if they are there, to a new one at `pages_path`.

    Raises what RocksDB raises; then the old ones are all still there.
    """
    if not (path / "CURRENT").exists() or PAGES not in Rdict.list_cf(str(path)):
        return
    _log.warning("%s: page versions get a database of their own; this is done once", path)
    effects.remove_tree(pages_path)  # copied from here, not in full: else the old family would be gone
    old = Database(path, options(), {name: families[name] for name in (*LOG_FAMILIES, PAGES)}, owner)
    try:
        new = Database(pages_path, options(), {name: families[name] for name in PAGE_FAMILIES}, owner)
        try:
            _copy(old, new)
        finally:
            new.close()
        old.drop(PAGES)
    finally:
        old.close()


def _copy(old: Database, new: Database) -> None:
    changes = new.batch()
    for key, value in old.scan(PAGES, b""):
        changes.put(PAGES, key, value)
        if changes.nbytes >= _STEP_BYTES:
            changes.write_without_log()
            changes = new.batch()
    mark = old.get("marks", MARK_KEY)
    if mark is not None:
        changes.put(MARKS, MARK_KEY, mark)
    changes.write_without_log()
    for family in PAGE_FAMILIES:
        new.families[family].flush(True)
