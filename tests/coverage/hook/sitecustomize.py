"""Python imports this in each process whose PYTHONPATH has this directory: it loads measured modules with their probes.

Only what every Python has, and nothing at all unless AURORA_TEST_COVERAGE names a directory that is still there.
"""

import builtins
import importlib.abc
import importlib.util
import marshal
import mmap
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType


class _Loader(SourceFileLoader):
    """Of one module: its code is compiled already."""

    def __init__(self, name: str, path: str, directory: str) -> None:
        super().__init__(name, path)
        self._code = os.path.join(directory, "code", name)

    def get_code(self, fullname: str) -> CodeType:
        """The code with its probes."""
        with open(self._code, "rb") as file:
            code: CodeType = marshal.loads(file.read())  # noqa: S302 - our own
        return code


class _Finder(importlib.abc.MetaPathFinder):
    """Of the modules that are measured."""

    def __init__(self, directory: str) -> None:
        with open(os.path.join(directory, "plan"), "rb") as file:
            self._plan: dict[str, tuple[str, int, bool]] = marshal.loads(file.read())  # noqa: S302 - our own
        with open(os.path.join(directory, "hits"), "r+b") as file:
            # A name of all modules: what `python -m` runs takes its code from the loader and never executes it there.
            builtins.__hits__ = mmap.mmap(file.fileno(), 0)  # type: ignore[attr-defined]
        self._directory = directory

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Where the module is, if it is measured."""
        known = self._plan.get(fullname)
        if known is None:
            return None
        file, _, is_package = known
        loader = _Loader(fullname, file, self._directory)
        parents = [os.path.dirname(file)] if is_package else None
        return importlib.util.spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=parents)


_directory = os.environ.get("AURORA_TEST_COVERAGE", "")
if _directory and os.path.exists(os.path.join(_directory, "hits")):
    sys.meta_path.insert(0, _Finder(_directory))
