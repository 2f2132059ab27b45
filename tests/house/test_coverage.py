"""What is measured of the tests' reach: code that nothing runs shows, whatever ends the process that ran the rest."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.coverage.plan import environment, prepare
from tests.coverage.probes import blocks_of, with_probes
from tests.coverage.report import Reach, complaints, lines, reached
from tests.house.source import package_modules, parse

PART = '''"""A module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import decimal


class Shape(Protocol):
    def area(self) -> decimal.Decimal: ...


class Counter:
    def up(self, by: int) -> int:
        """Counts."""
        if by < 0:
            by = 0
        else:
            by = by * 2
        try:
            by = int(by)
        except ValueError:
            by = 1
            by = 2
        return by

    async def never(self) -> None:
        with open("x"):
            return None


def ended() -> None:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A directory for what a package `thing` is found to run."""
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(PART)
    (package / "lonely.py").write_text("def alone() -> None:\n    print()\n")
    (package / "shapes.py").write_text("from typing import Protocol\n\n\nclass Shape(Protocol):\n    width: int\n")
    prepare(tmp_path / "found", package)
    return tmp_path / "found"


def _run(measured: Path, code: str) -> int:
    env = environment(measured)
    env["PYTHONPATH"] += os.pathsep + str(measured.parent)
    return subprocess.run([sys.executable, "-c", code], env=env, check=False, timeout=60).returncode


def _reach(measured: Path) -> dict[str, Reach]:
    return {module.name: module for module in reached(measured)}


def test_code_that_nothing_runs_is_reported(measured: Path) -> None:
    assert _run(measured, "import thing.part; assert thing.part.Counter().up(3) == 6") == 0
    part = _reach(measured)["thing.part"]
    assert part.never_called == [("Counter.never", 29), ("ended", 34)]
    # `by = 0`, the handler's two, `never`'s two, `ended`'s two, and what is for types only
    assert (part.ran, part.statements) == (14, 21)
    report = list(lines(reached(measured), 80))
    assert " 66.7 %  thing.part (14 of 21 statements)" in report
    assert "never called: thing.part:29 Counter.never" in report


def test_a_module_that_nothing_imports_is_a_complaint(measured: Path) -> None:
    assert _run(measured, "import thing.part") == 0
    assert "no test runs thing.lonely" in complaints(reached(measured), 1)
    assert _run(measured, "import thing.lonely") == 0, "what is found later is added"
    assert complaints(reached(measured), 1) == [], "and protocols that only types name have nothing to run"


def test_less_than_the_floor_is_a_complaint(measured: Path) -> None:
    assert _run(measured, "import thing.part, thing.lonely") == 0
    [complaint] = complaints(reached(measured), 99.9)
    assert "the floor is 99.9 %" in complaint


def test_what_a_killed_process_ran_counts(measured: Path) -> None:
    assert _run(measured, "from thing.part import ended; ended()") == -signal.SIGKILL
    assert ("ended", 34) not in _reach(measured)["thing.part"].never_called


def test_processes_that_a_process_starts_are_measured_too(measured: Path) -> None:
    inner = "from thing.part import Counter; Counter().up(-1)"
    assert _run(measured, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)") == 0
    assert "Counter.up" not in dict(_reach(measured)["thing.part"].never_called)


def test_a_module_that_runs_as_main_is_measured_too(measured: Path) -> None:
    """`python -m` takes the code from the loader and executes it in a module of its own."""
    env = environment(measured)
    env["PYTHONPATH"] += os.pathsep + str(measured.parent)
    subprocess.run([sys.executable, "-m", "thing.part"], env=env, check=True, timeout=60)
    assert _reach(measured)["thing.part"].ran > 0


def test_a_second_preparation_keeps_what_was_found(measured: Path) -> None:
    assert _run(measured, "import thing.part") == 0
    prepare(measured, measured.parent / "thing")
    assert _reach(measured)["thing.part"].ran > 0


def test_probes_change_nothing_but_the_store() -> None:
    """Docstrings, imports from __future__ and line numbers stay what they are: tracebacks and `help` tell the truth."""
    tree, blocks = with_probes(PART, "part.py", 7)
    assert blocks == len(blocks_of(ast.parse(PART)))
    hits = dict.fromkeys(range(7), 0)
    space: dict[str, object] = {"__hits__": hits, "__name__": "part"}
    exec(compile(tree, "part.py", "exec"), space)  # noqa: S102
    counter = space["Counter"]
    assert isinstance(counter, type)
    assert space["__doc__"] == "A module."
    assert vars(counter)["up"].__doc__ == "Counts."
    assert vars(counter)["up"].__code__.co_firstlineno == 16
    assert {number for number, hit in hits.items() if hit} == {7}, "the module's own block ran, nothing else"


def test_every_module_of_the_package_can_be_measured() -> None:
    """Whatever syntax it uses: each statement is in exactly one block, but what is for types or never runs."""
    for path, _ in package_modules():
        tree = parse(path)
        counted = sum(block.statements for block in blocks_of(tree))
        assert counted <= sum(isinstance(node, ast.stmt) for node in ast.walk(tree)), path
        with_probes(path.read_text(encoding="utf-8"), str(path), 0)
