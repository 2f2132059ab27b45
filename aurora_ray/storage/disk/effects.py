"""All that a storage node does to its disk besides RocksDB: directories, names and small files.

Each function is durable when it returns, and nothing else in this package renames, makes or removes anything
(`tests/house`), so the test of crash points can cut the power after each effect, one by one.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_directory(path: Path) -> None:
    """Makes a directory, and those above it, for its owner only; one that is there is fine. Raises OSError."""
    missing = [path, *path.parents]
    missing = missing[: next(number for number, each in enumerate(missing) if each.exists())]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_directory(each.parent)


def rename(path: Path, target: Path) -> None:
    """Moves a file or directory, also to another directory of the same file system. Raises OSError."""
    path.rename(target)
    sync_directory(target.parent)
    if path.parent != target.parent:
        sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Puts a small file in the place of what was there: after a power cut it is the old one or this. Raises OSError."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Removes a file; one that is not there is fine. Raises OSError."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Removes a directory with all that is in it, not at one moment; what is not there is fine. Raises OSError.

    Nothing that a later start would take for a segment or a volume may be removed so: rename it first.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Makes names created or moved in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tree_bytes(path: Path) -> int:
    """On disk, of all files below a directory, or of a file."""
    if path.is_file():
        return path.stat().st_blocks * 512
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # RocksDB deletes files while we look
    return total
