"""Small rules that keep the sources readable and portable. Ruff checks most of the style; these it cannot."""

import ast
import re
from pathlib import Path

from tests.house.source import PACKAGE, ROOT, files, imports, package_modules, parse, qualified_calls, where

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# A path that exists on one person's machine only. Written in pieces, so that this file passes its own test.
MACHINE_PATH = re.compile(
    r"(?<![\w.~}$)/*-])/(?:" + "|".join(("home", "root", "work", "tmp", "Users", "mnt")) + r")/\w"
)
SLEEPERS = (ROOT / "tests/support/polling.py",)


def test_files_are_short() -> None:
    long = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(".py", ".c", ".h", ".proto")}
    wrong = [f"{where(path, 1)}: {lines} lines" for path, lines in long.items() if lines > FILE_LINES_MAX]
    assert not wrong, f"more than {FILE_LINES_MAX} lines; one idea a file:\n" + "\n".join(wrong)


def test_functions_fit_a_screen() -> None:
    wrong = []
    for path in files(".py"):
        functions = [n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        lengths = {node: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
        wrong += [
            f"{where(path, node)}: {node.name} has {lines} lines"
            for node, lines in lengths.items()
            if lines > FUNCTION_LINES_MAX
        ]
    assert not wrong, f"functions of more than {FUNCTION_LINES_MAX} lines:\n" + "\n".join(wrong)


def test_what_is_public_is_documented() -> None:
    wrong = []
    for path, module in package_modules():
        tree = parse(path)
        if ast.get_docstring(tree) is None:
            wrong.append(f"{where(path, 1)}: module {module}")
        definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        public = [node for node in definitions if not node.name.startswith("_")]
        wrong += [f"{where(path, node)}: {node.name}" for node in public if ast.get_docstring(node) is None]
    assert not wrong, "no docstring:\n" + "\n".join(wrong)


def test_no_paths_of_one_machine() -> None:
    wrong = []
    for path in files():
        if path.name == "LICENSE":
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        wrong += [
            f"{where(path, number)}: {line.strip()[:100]}"
            for number, line in enumerate(lines, start=1)
            if MACHINE_PATH.search(line)
        ]
    assert not wrong, "absolute paths that exist on some machines only:\n" + "\n".join(wrong)


def test_no_prints() -> None:
    wrong = [
        where(path, node)
        for path in files(".py")
        if PACKAGE in path.parents or ROOT / "tests" in path.parents
        for node, name in qualified_calls(parse(path))
        if name in ("print", "pprint.pprint", "traceback.print_exc")
    ]
    assert not wrong, "use a logger (or the cli's console):\n" + "\n".join(wrong)


def test_tests_do_not_sleep() -> None:
    """`asyncio.sleep(0)` yields and is fine; any other wait is for something, and polls for it with a deadline."""
    wrong = [
        where(path, node)
        for path in files(".py")
        if ROOT / "tests" in path.parents and path not in SLEEPERS
        for node, name in qualified_calls(parse(path))
        if name in ("time.sleep", "sleep") or (name == "asyncio.sleep" and not _is_zero(node))
        if not _explained(path, node)
    ]
    assert not wrong, "use tests.support.polling, or say `# not synchronisation: <why>` on the line:\n" + "\n".join(
        wrong
    )


def test_no_compressor_is_shared_by_threads() -> None:
    """zstandard's end the process when two threads use one at once."""
    wrong = [
        where(path, node)
        for path, module in package_modules()
        if module != "aurora_ray.log.compression"
        for node, name in qualified_calls(parse(path))
        if name in ("zstandard.ZstdCompressor", "zstandard.ZstdDecompressor")
        if not _within_a_call(path, node)
    ]
    assert not wrong, "use aurora_ray.log.compression:\n" + "\n".join(wrong)


def _within_a_call(path: Path, node: ast.AST) -> bool:
    functions = [each for each in ast.walk(parse(path)) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(node is inner for function in functions for inner in ast.walk(function))


def test_kinds_of_instance_are_never_compared() -> None:
    """Who compares them forgets the kind that comes next: `compute/role.py` says what each is, `match` asks for all."""
    wrong = [
        where(path, node)
        for path, module in package_modules()
        if module != "aurora_ray.compute.role"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Compare)
        if any(map(_names_a_kind, (node.left, *node.comparators))) or _KIND_IN_A_REPORT.search(ast.unparse(node))
    ]
    assert not wrong, "ask for a trait:\n" + "\n".join(wrong)


def _names_a_kind(side: ast.expr) -> bool:
    """`Role.WRITER`, or a tuple with one."""
    if isinstance(side, ast.Tuple | ast.List | ast.Set):
        return any(map(_names_a_kind, side.elts))
    return isinstance(side, ast.Attribute) and isinstance(side.value, ast.Name) and side.value.id == "Role"


_KIND_IN_A_REPORT = re.compile(r"\['role'\] (==|!=) '(writer|reader|static|backup|replica|replicator)'")


# Who tries what no client would ask, or what the client itself rests on.
_OWN_STUBS = {"aurora_ray/rpc/node_client.py", "tests/storage/harness.py", "tests/chaos/test_bad_requests.py"}


def test_storage_nodes_have_one_client() -> None:
    """A second one would be a second owner of deadlines, of the secret, of traces, and of what errors mean."""
    own = {
        str(path.relative_to(ROOT))
        for path in files(".py")
        if any(name.endswith(".StorageNodeStub") for _, name in imports(path, ""))
    }
    assert own == _OWN_STUBS, "use aurora_ray.rpc.node_client.NodeClient"


def test_a_storage_node_changes_its_disk_in_one_place() -> None:
    """Whatever else would rename, make or remove something, no test of crash points would cut the power after it."""
    changing = {"rename", "replace", "unlink", "mkdir", "rmdir", "touch", "write_text", "write_bytes", "rmtree"}
    changing |= {"makedirs", "remove", "truncate", "hardlink_to", "symlink_to", "link", "fsync"}
    wrong = [
        f"{where(path, node)}: {name}"
        for path, module in package_modules()
        if module.startswith("aurora_ray.storage.") and not module.endswith(".effects") and ".v1." not in module
        for node, name in qualified_calls(parse(path))
        if name.rpartition(".")[2] in changing
        if not name.startswith("effects.") and name not in _NO_FILES
    ]
    assert not wrong, "use aurora_ray.storage.disk.effects:\n" + "\n".join(wrong)


# Of dataclasses, of a log, of a list, of a text, of a chain of batches.
_NO_FILES = ("replace", "truncate", "self._left.remove", "setting.name.replace", "segment.link")


def _is_zero(call: ast.Call) -> bool:
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def _explained(path: Path, node: ast.AST) -> bool:
    line = path.read_text(encoding="utf-8").splitlines()[getattr(node, "lineno", 1) - 1]
    return "# not synchronisation: " in line


def test_decoders_expect_whatever_bytes_can_do() -> None:
    """A list of its own always lacks one: `OverflowError` of an infinity came past each of a dozen."""
    wrong = []
    for path, _ in package_modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
                caught = {each.id for each in node.type.elts if isinstance(each, ast.Name)}
                if {"ValueError", "KeyError"} <= caught or {"ValueError", "TypeError"} <= caught:
                    wrong.append(where(path, node))
    assert not wrong, "errors.UNDECODABLE says what decoding may raise; these list some of it:\n" + "\n".join(wrong)
