"""State is written by `aurora_ray/durable.py` alone: whole, synced, private.

Whatever else opens a file for writing, or renames one, stands in the table with the reason why it may. To add a line is
to say that a power cut at any point of it loses nothing that anybody relies on.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.source import PACKAGE, package_modules, parse, where

LOG = "a log, appended to"
LOCK = "a lock, without content"
MADE = "in a tree that is synced before it gets its name"
NODES = "a storage node's own, under tests that cut the power after each of its effects"
MAY_WRITE = {
    ("durable.py", "fdopen"): "the helper itself",
    ("durable.py", "os.open"): "the helper itself",
    ("durable.py", "rename"): "the helper itself",
    ("durable.py", "replace"): "the helper itself",
    ("compute/process.py", "touch"): LOG,
    ("compute/cgroup.py", "write_text"): "words to the kernel: its files of a control group",
    ("control/report/events.py", "os.open"): LOG,
    ("control/report/usage.py", "os.open"): LOG,
    ("ray/fleet.py", "open"): "/dev/null",
    ("ray/data_dir.py", "os.open"): LOCK,
    ("ray/local.py", "open"): LOG,
    ("engine/server.py", "touch"): LOG,
    ("engine/prepared.py", "open"): LOCK,
    ("engine/postgres/image.py", "write_text"): MADE,
    ("engine/mariadb/image.py", "open"): MADE,
    ("engine/mariadb/image.py", "rename"): MADE,
    ("engine/mariadb/image.py", "write_text"): MADE,
    ("engine/process.py", "open"): LOG,
    ("storage/disk/datadir.py", "os.open"): LOCK,
    ("storage/disk/effects.py", "open"): NODES,
    ("storage/disk/effects.py", "os.open"): NODES,
    ("storage/disk/effects.py", "rename"): NODES,
    ("telemetry/spanfile.py", "os.open"): LOG,
    ("telemetry/spanfile.py", "replace"): LOG,
    ("mount/discarding.py", "rename"): "a mount that is thrown away",
    ("mount/localtree.py", "rename"): "a mount, which is a cache",
    ("mount/exchange.py", "os.open"): "a mount, which is a cache",
}


def test_nothing_else_writes_files() -> None:
    wrong = [
        f"{where(path, node)}: {what} writes past aurora_ray/durable.py"
        for path, node, what in _writes()
        if (str(path.relative_to(PACKAGE)), what) not in MAY_WRITE
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_says_nothing_that_is_not_so() -> None:
    found = {(str(path.relative_to(PACKAGE)), what) for path, _, what in _writes()}
    assert MAY_WRITE.keys() <= found


def _writes() -> Iterator[tuple[Path, ast.Call, str]]:
    for path, _ in package_modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call):
                what = _writes_by(node)
                if what:
                    yield path, node, what


def _writes_by(call: ast.Call) -> str:
    """How this call makes, changes or renames a file; empty if it does not."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    on_os = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "os"
    if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "effects":
        return ""  # storage/disk/effects.py stands in the table itself
    if name in ("write_text", "write_bytes", "touch", "rename", "renames"):
        return name
    if name == "replace" and (on_os or len(call.args) == 1) and not call.keywords:  # str.replace takes two
        return name
    if (name in ("open", "fdopen") and not on_os) or name == "fdopen":
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return name if any(isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in modes) else ""
    if name == "open" and on_os:
        flags = {each.attr for argument in call.args for each in ast.walk(argument) if isinstance(each, ast.Attribute)}
        return "os.open" if "O_CREAT" in flags else ""
    return ""
