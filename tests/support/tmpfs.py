"""A file system of a chosen size, for full disks. Needs root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, nbytes: int) -> None:
        """Makes it larger (or smaller, if what it holds still fits)."""
        _run("mount", "-o", f"remount,size={nbytes}", str(self.path))

    def fill_up(self, free_bytes: int) -> None:
        """Makes it so small that no more than this is free."""
        for _ in range(50):
            found = os.statvfs(self.path)
            used_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
            with contextlib.suppress(subprocess.CalledProcessError):  # somebody wrote in between: it would not fit
                self.resize(used_bytes + free_bytes)
                return
        raise AssertionError(f"what is in {self.path} grows all the time")


@contextlib.contextmanager
def small_disk(path: Path, nbytes: int) -> Iterator[SmallDisk]:
    """Mounts it on a new directory and takes it away in the end; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk needs a small tmpfs, and mounting one needs root")
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={nbytes}", "aurora-test", str(path))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED: a full disk needs a small tmpfs, and mounting one failed: {error.stderr}")
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
