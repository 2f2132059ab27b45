"""The foundation: the tree at any LSN is exactly what the log's prefix says, whenever the program was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interposer.model import PAGE_BYTES, Operations
from tests.interposer.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    it = Recorder(tmp_path, evict=True)
    yield it
    it.close()


def run(recorder: Recorder, journal: Path, seed: int, count: int, kill_after: int | None) -> list[tuple[int, int]]:
    journal.touch()
    child = recorder.python("tests.interposer.workload", str(seed), str(count), str(journal))
    recorder.serve(child, kill_after_records=kill_after)
    lines = [line.split() for line in journal.read_text().splitlines()]
    return [(int(number), int(lsn)) for number, lsn in lines]


def check_between(
    state: dict[str, bytes | None], before: dict[str, bytes | None], after: dict[str, bytes | None]
) -> None:
    """Amid an operation each name and each page is as it was or will be (or zeros, in a file that has just grown)."""
    assert set(state) <= set(before) | set(after)
    for path, found in state.items():
        choices = [tree[path] or b"" for tree in (before, after) if path in tree]
        content = found or b""
        for at in range(0, len(content), PAGE_BYTES):
            page = content[at : at + PAGE_BYTES]
            allowed = [choice[at : at + PAGE_BYTES].ljust(len(page), b"\0") for choice in choices]
            assert any(page == choice[: len(page)] for choice in [*allowed, bytes(PAGE_BYTES)]), (path, at)


@pytest.mark.parametrize("seed", range(6))
def test_the_tree_at_any_lsn_is_the_models_prefix(recorder: Recorder, tmp_path: Path, seed: int) -> None:
    kill_after = None if seed == 0 else 200 + 150 * seed
    journal = run(recorder, tmp_path / "journal", seed, 500, kill_after)
    assert len(journal) > 50
    assert recorder.evicted_pages > 0 or kill_after is not None

    lsns = sorted({record.lsn for record in recorder.records} | {lsn for _, lsn in journal})
    ends = {lsn: number for number, lsn in journal}
    operations, before, after, done = Operations(seed), {}, {}, -1
    for lsn, state in recorder.states(lsns):
        if lsn in ends:
            while done < ends[lsn]:
                operations.next()
                done += 1
            before = operations.tree.snapshot()
            assert state == before, f"after operation {done}, at LSN {lsn}"
        elif lsn > max(ends, default=0):
            break
        else:
            after = _next_state(seed, min(number for end, number in ends.items() if end > lsn))
            check_between(state, before, after)


_states: dict[tuple[int, int], dict[str, bytes | None]] = {}


def _next_state(seed: int, number: int) -> dict[str, bytes | None]:
    """The model's tree after operation `number`, kept for the next question."""
    if (seed, number) not in _states:
        _states.clear()
        operations = Operations(seed)
        for _ in range(number + 1):
            operations.next()
        _states[seed, number] = operations.tree.snapshot()
    return _states[seed, number]


def test_local_tree_and_log_agree_at_the_end(recorder: Recorder, tmp_path: Path) -> None:
    recorder.evict = False
    run(recorder, tmp_path / "journal", 99, 300, None)
    local = {
        str(path.relative_to(recorder.mount)): path.read_bytes() if path.is_file() else None
        for path in recorder.mount.rglob("*")
    }
    assert local == recorder.replay.snapshot()
