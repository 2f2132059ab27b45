"""The blocks of a module, and the module with a store at the head of each."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

HITS = "__hits__"  # the name of the mapped file in a module that is measured
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Block(NamedTuple):
    """Statements that run as a whole; `name` is the function's that it stands in, "" at the top of a module."""

    name: str
    line: int
    statements: int
    is_function: bool = False


def blocks_of(tree: ast.Module) -> list[Block]:
    """The blocks of a module, in the order of their numbers."""
    return [block for block, _ in _walk(tree)]


def with_probes(source: str, filename: str, first: int) -> tuple[ast.Module, int]:
    """The module with a store into `HITS` at the head of each block, from number `first` on; how many it has."""
    tree = ast.parse(source, filename)
    found = [body for _, body in _walk(tree)]
    for number, body in enumerate(found, first):
        place = next((place for place, statement in enumerate(body) if not _stands_first(statement)), len(body))
        probe = ast.parse(f"{HITS}[{number}] = 1").body[0]
        at = body[min(place, len(body) - 1)] if body else ast.Pass(lineno=1, col_offset=0)
        for node in ast.walk(probe):
            if isinstance(node, ast.stmt | ast.expr):
                ast.copy_location(node, at)
        body.insert(place, probe)
    return tree, len(found)


def _stands_first(statement: ast.stmt) -> bool:
    """Docstrings, and imports from __future__."""
    return _is_text(statement) or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or `...`."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _walk(tree: ast.Module) -> Iterator[tuple[Block, list[ast.stmt]]]:
    yield from _block(tree.body, "", 1)


def _block(
    body: list[ast.stmt], name: str, line: int, *, is_function: bool = False
) -> Iterator[tuple[Block, list[ast.stmt]]]:
    inner: list[tuple[list[ast.stmt], str, int, bool]] = []
    statements = sum(1 for statement in _together(body, name, inner) if not _is_text(statement))
    yield Block(name, line, statements, is_function), body
    for its_body, its_name, its_line, function in inner:
        yield from _block(its_body, its_name, its_line, is_function=function)


def _together(
    body: list[ast.stmt], name: str, inner: list[tuple[list[ast.stmt], str, int, bool]]
) -> Iterator[ast.stmt]:
    """The statements that run when the block does; bodies that may or may not are added to `inner`."""
    for statement in body:
        yield statement
        if isinstance(statement, _FUNCTIONS):
            if not _only_declared(statement):
                inner.append((statement.body, _joined(name, statement.name), statement.lineno, True))
        elif isinstance(statement, ast.ClassDef):
            yield from _together(statement.body, _joined(name, statement.name), inner)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        elif isinstance(statement, ast.With | ast.AsyncWith):
            yield from _together(statement.body, name, inner)
        elif isinstance(statement, ast.Try | ast.TryStar):
            yield from _together(statement.body, name, inner)
            yield from _together(statement.finalbody, name, inner)
            inner += [(handler.body, name, handler.lineno, False) for handler in statement.handlers]
            inner += [(statement.orelse, name, statement.orelse[0].lineno, False)] if statement.orelse else []
        elif isinstance(statement, ast.Match):
            inner += [(case.body, name, case.body[0].lineno, False) for case in statement.cases]
        elif isinstance(statement, ast.If | ast.For | ast.AsyncFor | ast.While):
            branches = (branch for branch in (statement.body, statement.orelse) if branch)
            inner += [(branch, name, branch[0].lineno, False) for branch in branches]


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def _only_declared(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """One of a protocol, or abstract: it never runs."""
    return all(_is_text(statement) for statement in function.body) or any(
        "abstractmethod" in ast.unparse(decorator) or "overload" in ast.unparse(decorator)
        for decorator in function.decorator_list
    )
