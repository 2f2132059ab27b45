"""No engine is known by name outside of `engine/`: identifiers, strings and imports are looked at, prose is not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.source import PACKAGE, imports, package_modules, parse, where

ENGINES = re.compile(r"postgres|psycopg|psql|libpq|pg_|pgbench|mysql|maria|innodb", re.IGNORECASE)
ENGINE_ROOMS = ("aurora_ray.engine.postgres", "aurora_ray.engine.mariadb")
ROOMS = ("cli", "compute", "control", "endpoint", "interposer", "log", "mount", "ray", "rpc", "storage", "volume")
# What may name one, and why.
ALLOWED = {
    "cli/main.py": "what the command is, in its help",
    "cli/bench.py": "pgbench's load, and the suites beside stock PostgreSQL",
}


def names(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What code says: identifiers, and strings that are no docstrings."""
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and node not in prose:
            yield node, node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        for field in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, field, None), str):
                yield node, value


def offences(path: Path, module: str) -> list[str]:
    found = [(node, name) for node, name in names(parse(path)) if ENGINES.search(name)]
    found += [(node, name) for node, name in imports(path, module) if name.startswith(ENGINE_ROOMS)]
    return [f"{where(path, getattr(node, 'lineno', 1))}: {name.strip()[:60]!r}" for node, name in found]


def looked_at() -> Iterator[tuple[Path, str, str]]:
    for path, module in package_modules():
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] in ROOMS:
            yield path, module, str(relative)


def test_no_engine_is_known_by_name_outside_of_its_room() -> None:
    wrong = [each for path, module, name in looked_at() if name not in ALLOWED for each in offences(path, module)]
    assert not wrong, "ask engine/registry.py, or put it into the engine's adapter:\n" + "\n".join(wrong)


def test_what_is_allowed_is_needed() -> None:
    needed = {name for path, module, name in looked_at() if offences(path, module)}
    assert needed == ALLOWED.keys()


def test_an_offence_would_be_seen() -> None:
    tree = ast.parse('"""PostgreSQL is prose."""\nport = find("mysqld")\nimport psycopg\nx.pg_thing = 1\n')
    assert {name for _, name in names(tree) if ENGINES.search(name)} == {"mysqld", "psycopg", "pg_thing"}
