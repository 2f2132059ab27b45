"""Small files that hold state: written whole or not at all, and there after a power cut. All of them are written here.

A file is made beside its place, synced, renamed into it, and the directory is synced: whoever reads it finds the old
content or the new. `tests/house` checks that nothing else writes such files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(path: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Writes `path`, whatever was there. Raises OSError, the old content unharmed.

    Without `durable` only the syncs are left out: for hints, whose loss costs nothing.
    """
    temporary = _written(path, content, mode, durable=durable)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_dir(path.parent)


def make_file(path: Path, content: str | bytes, *, mode: int = 0o600) -> bool:
    """Writes `path` unless there is one already, which then stays; whether it was made. Raises OSError."""
    temporary = _written(path, content, mode, durable=True)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def remove_file(path: Path) -> None:
    """Removes `path` if it is there, and makes that last. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_dir(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Renames a file in its directory, and makes that last. Raises OSError."""
    source.rename(target)
    sync_dir(target.parent)


def move_tree(source: Path, target: Path) -> None:
    """Renames a directory that was built beside its place; all that is in it is synced first. Raises OSError."""
    for directory, _, names in os.walk(source):
        for name in names:
            file = os.path.join(directory, name)
            if not os.path.islink(file):
                _sync(file)
        _sync(directory)
    source.rename(target)
    sync_dir(target.parent)


def sync_dir(path: Path) -> None:
    """Makes names in a directory last."""
    _sync(path)


def _written(path: Path, content: str | bytes, mode: int, *, durable: bool) -> Path:
    """A new file beside `path`, with its content."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(directory: Path) -> str:
    """Tells a directory from its copies, by whatever path it is reached. Raises OSError."""
    facts = directory.stat()
    return f"{facts.st_dev}:{facts.st_ino}"
