"""What is measured: each module of a package compiled with its probes, once for all processes of a run."""

import ast
import marshal
import os
from pathlib import Path
from typing import Final, NamedTuple

from tests.coverage.probes import Block, blocks_of, with_probes
from tests.house.source import is_generated

VARIABLE: Final = "AURORA_TEST_COVERAGE"  # names the directory, for all processes of the run
PLAN: Final = "plan"
HITS_FILE: Final = "hits"
HOOK: Final = Path(__file__).parent / "hook"


class Module(NamedTuple):
    """A module that is measured: its file, the number of its first block, and whether it is a package."""

    path: str
    first: int
    is_package: bool


def prepare(directory: Path, package: Path) -> None:
    """Write what the hook needs; what was found in an earlier run stays, so that a second one adds to it."""
    if (directory / HITS_FILE).exists():
        return
    (directory / "code").mkdir(parents=True, exist_ok=True)
    plan: dict[str, Module] = {}
    count = 0
    for path in sorted(package.rglob("*.py")):
        if is_generated(path):
            continue
        tree, blocks = with_probes(path.read_text(encoding="utf-8"), str(path), count)
        name = _dotted(path, package)
        code = compile(tree, str(path), "exec", dont_inherit=True)
        (directory / "code" / name).write_bytes(marshal.dumps(code))
        plan[name] = Module(str(path), count, path.name == "__init__.py")
        count += blocks
    (directory / PLAN).write_bytes(marshal.dumps({name: tuple(module) for name, module in plan.items()}))
    (directory / HITS_FILE).write_bytes(bytes(count))
    for path in (directory, directory / "code", directory / HITS_FILE):
        path.chmod(0o777 if path.is_dir() else 0o666)  # a test may run ours as another user


def environment(directory: Path) -> dict[str, str]:
    """For a command whose processes shall be measured."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, VARIABLE: str(directory), "PYTHONPATH": os.pathsep.join([str(HOOK), *others])}


def found(directory: Path) -> dict[str, tuple[str, list[tuple[Block, bool]]]]:
    """Of each module: its file, and its blocks with whether each ran."""
    plan: dict[str, tuple[str, int, bool]] = marshal.loads((directory / PLAN).read_bytes())  # noqa: S302 - our own
    hits = (directory / HITS_FILE).read_bytes()
    modules = {}
    for name, (path, first, _) in plan.items():
        blocks = blocks_of(ast.parse(Path(path).read_text(encoding="utf-8")))
        ran = hits[first : first + len(blocks)]
        modules[name] = (path, [(block, bool(hit)) for block, hit in zip(blocks, ran, strict=True)])
    return modules


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
