"""Where and with what a measurement was made: enough to judge a figure later."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("grpcio", "protobuf", "rocksdict", "psycopg", "google-crc32c", "ray")
_TIMEOUT_S = 10


def describe(work_dir: Path) -> dict[str, object]:
    """Processor, memory, kernel, and the file system under `work_dir`."""
    return {
        "cpu": _line(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "system": _os_name(),
        "file_system": _output("stat", "--file-system", "--format=%T", str(work_dir)),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions(postgres: str) -> dict[str, str]:
    """Of everything that takes part."""
    found = {"postgres": postgres, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def commit() -> dict[str, object]:
    """The commit that is checked out, and whether tracked files differ from it."""
    git = ("git", "-C", str(ROOT))
    return {
        "id": _output(*git, "rev-parse", "HEAD"),
        "modified": bool(_output(*git, "status", "--porcelain", "--untracked-files=no")),
    }


def _os_name() -> str:
    path = Path("/etc/os-release")
    return _line(path, "PRETTY_NAME", separator="=").strip('"') if path.exists() else platform.system()


def _line(path: Path, key: str, separator: str = ":") -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
