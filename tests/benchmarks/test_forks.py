"""Of the benchmark of forks, what can be judged without a fleet: how a disk is counted, and what is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.forks import Figures, disk, sentences
from benchmarks.other_results import other_section
from benchmarks.said import Said


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(os.urandom(10_000))
    alone = disk(tmp_path)
    os.link(tmp_path / "a" / "one", tmp_path / "two")
    both = disk(tmp_path)
    assert alone.nbytes == both.nbytes >= 10_000
    assert (alone.shared, both.shared) == (0, 1)
    (tmp_path / "three").write_bytes(os.urandom(10_000))
    assert disk(tmp_path).nbytes >= both.nbytes + 10_000


def test_what_is_said() -> None:
    figures = Figures()
    for seconds in (1.0, 3.0, 2.0):
        figures.note(20, "clone", seconds)
    figures.fork[20] = {"bytes": 2e6, "files_shared": 12}
    figures.depth[5] = {"amplification": 1.25, "seconds": 1.0, "rows": 10}
    figures.space += [(1.0, 1_000_000), (2.0, 3_000_000)]
    told = "\n".join(sentences(figures))
    assert "2.00 s (1.00 to 3.00)" in told
    assert "2.0 MB written on six nodes, 12 files shared" in told
    assert "after 5 forks: nodes read 1.25 bytes" in told
    assert told.count("A clone that is written to") == 2


def test_what_a_benchmark_said_stands_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say = Said("fork")
    say("20 MB, clone: 1.00 s")
    say.save(tmp_path / "fork.json", depth={"5": 1.25})
    values = json.loads((tmp_path / "fork.json").read_text())
    lines = other_section(values, tmp_path / "fork.json", tmp_path, tmp_path)
    assert lines[0] == "## fork"
    assert "- 20 MB, clone: 1.00 s" in lines
    assert "20 MB, clone: 1.00 s" in capsys.readouterr().out
