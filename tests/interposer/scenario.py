"""What a test does on a recorder's mount, and how it judges: the local tree and the log's tree must be the same."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.interposer.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def recorder_at(root: Path) -> Iterator[Recorder]:
    it = Recorder(root)
    try:
        yield it
    finally:
        it.close()


def python(recorder: Recorder, code: str) -> str:
    """Runs a program under the interposer; returns what it printed."""
    return run(recorder, [sys.executable, "-c", code])


def shell(recorder: Recorder, script: str, program: str = "sh") -> str:
    return run(recorder, [program, "-ec", script])


def run(recorder: Recorder, arguments: list[str]) -> str:
    output = recorder.mount.parent / "output"
    with output.open("wb") as out:
        recorder.serve(recorder.spawn(arguments, stdout=out))
    return output.read_text()


def evict_all(recorder: Recorder) -> int:
    """Makes absent what can be absent; returns the pages that became so."""
    before = recorder.evicted_pages
    for _ in range(40):
        recorder.turn()
        recorder.evict_some()
    return recorder.evicted_pages - before


def local_tree(recorder: Recorder) -> dict[str, bytes | None]:
    """What the local files say, without the volatile ones."""
    return {
        name: path.read_bytes() if path.is_file() else None
        for path in recorder.mount.rglob("*")
        if not (name := str(path.relative_to(recorder.mount))).startswith(("tmp/", "scratch"))
        and (path.is_symlink() or path.is_file() or path.is_dir())
    }


def assert_same(recorder: Recorder) -> None:
    """Symbolic links are compared as what they lead to, so only links to directories are left out."""
    logged = recorder.replay.snapshot()
    local = local_tree(recorder)
    links = {str(p.relative_to(recorder.mount)) for p in recorder.mount.rglob("*") if p.is_symlink()}
    assert set(local) == set(logged)
    different = [name for name in local if name not in links and local[name] != logged[name]]
    assert different == []
    for name, entry in ((name, recorder.replay.table.lookup(name.encode())) for name in logged):
        assert entry is not None
        if name not in links:
            assert entry.mode == (recorder.mount / name).stat().st_mode & 0o7777, name
