"""Each module of the package has a test: one that imports it or starts it, or one of the module that it is a part of.

That costs nothing, and shows a module that was added without a test. What it cannot show is how much of it runs.
"""

import ast
from collections.abc import Iterable

from tests.house.source import ROOT, imports, is_generated, package_modules, parse

PACKAGE = "aurora_ray"
# Parts of parts: the tests of each.
EXERCISED_BY = {
    "storage.pages.copying": "tests/storage/test_copy.py",
    "telemetry.serving": "tests/telemetry/test_metrics.py",
    "telemetry.propagation": "tests/telemetry/test_tracing.py",
    "volume.write.progress": "tests/volume/test_membership.py",
    "volume.write.streams": "tests/volume/test_slow_node.py",
}


def _modules() -> dict[str, set[str]]:
    """All that hold code of ours, each with the dotted names that it imports, wherever in it."""
    return {
        module: {name for _, name in imports(path, module)} | _modules_named(name for _, name in imports(path, module))
        for path, module in package_modules()
        if path.name != "__init__.py" and not is_generated(path)
    }


def _modules_named(names: Iterable[str]) -> set[str]:
    """`a.b.c` may be the name `c` of the module `a.b`."""
    return {name.rpartition(".")[0] for name in names}


def _named_by_tests() -> set[str]:
    """What tests import, or start as a program (`"-m", "aurora_ray.storage"`)."""
    named: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names = [name for _, name in imports(path, ".".join(path.relative_to(ROOT).with_suffix("").parts))]
        named |= {*names} | _modules_named(names)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{PACKAGE}."):
                named |= {node.value, f"{node.value}.__main__"}
    return named


def test_every_module_has_a_test() -> None:
    modules, named = _modules(), _named_by_tests()
    direct = {module for module in modules if module in named}
    parts = {imported for module in direct for imported in modules[module]}
    untested = {module.removeprefix(f"{PACKAGE}.") for module in modules.keys() - direct - parts}
    assert untested == EXERCISED_BY.keys(), "write a test that imports it; the table is for parts of parts"
    assert all((ROOT / test).is_file() for test in EXERCISED_BY.values())
