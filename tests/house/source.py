"""The project's own files, as the house rules see them: found once, parsed once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "aurora_ray"
# What is ours: everything else at the top (environments, build output, caches) is not in the repository.
_OURS = ("aurora_ray", "benchmarks", "deploy", "proto", "regions", "tests", ".ci")
_TEXT_SUFFIXES = (".py", ".c", ".h", ".toml", ".md", ".proto", ".yaml", ".yml", ".service", ".sh", "")


def is_generated(path: Path) -> bool:
    """What protoc writes is not held to the rules for what people write."""
    return path.name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"))


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """Our files with one of these suffixes (default: all text files), generated ones left out."""
    wanted = suffixes or _TEXT_SUFFIXES
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for top in _OURS:
        found += [path for path in (ROOT / top).rglob("*") if path.is_file() and "out" not in path.parts]
    return tuple(sorted(path for path in found if path.suffix in wanted and not _skipped(path)))


def _skipped(path: Path) -> bool:
    return is_generated(path) or "__pycache__" in path.parts or path.name == ".git"  # a work tree's is a file


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | int) -> str:
    """`file:line`, relative to the project."""
    line = node if isinstance(node, int) else getattr(node, "lineno", 1)
    return f"{path.relative_to(ROOT)}:{line}"


def package_modules() -> Iterator[tuple[Path, str]]:
    """Each Python file of the package, with its dotted name."""
    for path in files(".py"):
        if PACKAGE in path.parents:
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, module: str) -> Iterator[tuple[ast.stmt, str]]:
    """Every import in the file, wherever it stands, as (statement, dotted name of what is imported)."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + (1 if is_package else 0)
                base = ".".join([*parents[:keep], *([base] if base else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


def qualified_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a name or a dotted name: (node, "time.sleep")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
            if name.replace(".", "").replace("_", "").isalnum():
                yield node, name
