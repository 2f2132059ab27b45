"""The library as it is, built with AddressSanitizer and UndefinedBehaviorSanitizer, and programs that run with it.

The runtime must be the first that a process loads, so it is preloaded before the library, in whatever is started.
Leaks are not looked for: Python and PostgreSQL leave what the system takes back anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.timing import scaled

_ROOT = Path(__file__).parents[2]
_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A library with its runtime."""

    library: Path
    runtime: str

    @classmethod
    def build(cls, directory: Path) -> Sanitized:
        """Compiles it, with the flags of the ordinary one but for the optimization."""
        modules = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
        (module,) = (each for each in modules if each["name"] == "aurora_ray.interposer._native")
        flags = [flag for flag in module["extra-compile-args"] if not flag.startswith("-O")]
        library = directory / "native_sanitized.so"
        command = ["gcc", *flags, *_FLAGS, "-fPIC", "-shared", "-o", library, *module["sources"]]
        subprocess.run([*command, *module["extra-link-args"]], cwd=_ROOT, check=True)
        found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        return cls(library, os.path.realpath(found.stdout.strip()))

    @property
    def preload(self) -> str:
        """For programs that work on a mount."""
        return f"{self.runtime}:{self.library}"

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with the runtime alone, each of its objects an allocation that the runtime watches."""
        environment = {
            **os.environ,
            "LD_PRELOAD": self.runtime,
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=scaled(110), check=False
        )
