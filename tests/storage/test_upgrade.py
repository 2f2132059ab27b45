"""Segments stored when page versions and log shared a database open as they were left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from aurora_ray.storage.disk.keys import LOG_FAMILIES, MARK_KEY, MARK_VALUE, guarded, lsn_key, page_key
from aurora_ray.storage.disk.store import SegmentStore

PAGES = {page_key(1, page, 7): b"%d" % page * 900 for page in range(3000)}
LOG = {lsn_key(lsn): b"batch %d" % lsn for lsn in range(7)}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What the old layout was."""
    path = tmp_path / "0"
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    families = (*LOG_FAMILIES, "pages")
    db = Rdict(str(path), options, column_families={name: Options(raw_mode=True) for name in families})
    handles = {name: db.get_column_family(name) for name in families}
    for key, value in PAGES.items():
        handles["pages"][key] = value
    for key, value in LOG.items():
        handles["log"][key] = value
    handles["marks"][MARK_KEY] = guarded(MARK_KEY, MARK_VALUE.pack(7))
    for handle in handles.values():
        handle.flush(True)
        handle.close()
    handles.clear()
    db.close()
    return path


def opened(path: Path) -> SegmentStore:
    return SegmentStore(path, write_buffer_bytes=1 << 20)


def check(store: SegmentStore) -> None:
    assert dict(store.scan("pages", b"")) == PAGES
    assert dict(store.scan("log", b"")) == LOG
    assert store.flushed_lsn() == 7


@pytest.mark.allowed_logs("database of their own")
def test_an_old_directory_opens_with_everything_that_was_in_it(old: Path) -> None:
    for _ in range(2):
        store = opened(old)
        check(store)
        store.close()
    assert "pages" not in Rdict.list_cf(str(old))


@pytest.mark.allowed_logs("database of their own")
def test_an_upgrade_that_was_cut_short_begins_anew(old: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(old, elsewhere)
    store = opened(elsewhere)
    changes = store.page_batch()
    changes.put("pages", page_key(9, 9, 9), b"of the first try")
    changes.write_without_log()
    store.close()
    shutil.copytree(elsewhere / "pages", old / "pages")
    store = opened(old)
    check(store)
    store.close()
