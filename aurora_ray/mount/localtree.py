"""The sparse tree on local disk: the names of a volume's files, at their sizes, and nothing in them.

A mount makes thousands of files at once, shortly after another mount's thousands were removed. ext4 gives out no inode
again for minutes after its removal, and looks at each such inode anew for every file that it makes in the same group
of inodes: ten thousand files take 17 s and more then, and 1 s elsewhere. So each tree gets groups of its own: ext4
spreads the directories below one that is marked as a place of unrelated ones, by the name under which each is made.

On a disk that is busy it takes longer than all else that opening takes together. So where it is known that the same
state is going to be mounted again, by whoever comes next, a tree of it is left in waiting (`leave_in_waiting`): it has
no page of any file, and its name says of what volume it is, and as of which LSN. Nobody else's fits, as what a volume
is at an LSN that was durable never changes.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import ConfigurationError
from aurora_ray.log.filetable import Entry, FileKind, FileTable
from aurora_ray.mount import discarding
from aurora_ray.mount._tree import make_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR: Final = 0x00020000  # as `chattr +T`: directories below this one are not related, and lie apart
_TELL_EVERY: Final = 512  # files: some 20 ms


class MountedFile(NamedTuple):
    """A regular file as it was when the volume was mounted."""

    ino: int
    entry: Entry


def make_tree(
    table: FileTable, mount_dir: Path, uid: int | None, gid: int | None, *, made: Callable[[int], None] = lambda _: None
) -> list[MountedFile]:
    """Makes directories, symbolic links and empty files of the right sizes, for this account; returns the files.

    What was at `mount_dir` is set aside. `made` is told from time to time how many files are there, in this thread.
    Raises ConfigurationError if something cannot be made; nothing is left then.
    """
    unfinished = discarding.unfinished(mount_dir)
    owner = None if uid is None or gid is None or (uid, gid) == (os.geteuid(), os.getegid()) else (uid, gid)
    try:
        discarding.set_aside(mount_dir)
        mount_dir.parent.mkdir(parents=True, exist_ok=True)
        keep_apart(mount_dir.parent)
        unfinished.mkdir(mode=0o700)
        root = os.fsencode(unfinished) + b"/"
        named: list[Entry] = []
        for entry in table.entries():
            if entry.kind is not FileKind.FILE:
                _make_entry(root, entry, owner)
            elif entry.paths:
                named.append(entry)
        files = _make_files(root, named, owner, made)
        unfinished.rename(mount_dir)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigurationError(f"cannot mount at {mount_dir}: {error.strerror}") from error
    return files


def leave_in_waiting(table: FileTable, mount_dir: Path, volume: str, uid: int | None, gid: int | None) -> None:
    """Makes a tree of what `table` has, which `take_waiting` finds; others that wait go. `volume`: which, and the LSN.
    Raises ConfigurationError."""
    for other in discarding.in_waiting(mount_dir):
        discarding.remove(other)
    make_tree(table, discarding.waiting(mount_dir, volume), uid, gid)


def take_waiting(table: FileTable, mount_dir: Path, volume: str) -> list[MountedFile] | None:
    """The tree of that volume and LSN, put in its place, as `make_tree` does; None if there is none."""
    ready = discarding.waiting(mount_dir, volume)
    root = os.fsencode(ready) + b"/"
    try:
        files = [
            MountedFile(os.lstat(root + entry.paths[0]).st_ino, entry)
            for entry in table.entries()
            if entry.kind is FileKind.FILE and entry.paths
        ]
        discarding.set_aside(mount_dir)
        ready.rename(mount_dir)
    except OSError:
        return None
    return files


def keep_apart(directory: Path) -> None:
    """Asks the file system to put each directory below this one elsewhere; where it cannot, nothing happens."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = array.array("L", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
            flags[0] |= _FS_TOPDIR
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags)
    finally:
        os.close(fd)


def _make_entry(root: bytes, entry: Entry, owner: tuple[int, int] | None) -> None:
    path = root + entry.paths[0]
    if entry.kind is FileKind.DIRECTORY:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        os.chmod(path, entry.mode)
    else:
        os.symlink(entry.target, path)
    if owner is not None:
        os.chown(path, *owner, follow_symlinks=False)


def _make_files(
    root: bytes, entries: list[Entry], owner: tuple[int, int] | None, made: Callable[[int], None]
) -> list[MountedFile]:
    uid, gid = owner or (-1, -1)
    files: list[MountedFile] = []
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for at in range(0, len(entries), _TELL_EVERY):
            some = entries[at : at + _TELL_EVERY]
            numbers = make_files(fd, tuple([(entry.paths[0], entry.mode, entry.size) for entry in some]), uid, gid)
            files += map(MountedFile, numbers, some)
            made(len(files))
    finally:
        os.close(fd)
    for entry in entries:
        for other in entry.paths[1:]:
            os.link(root + entry.paths[0], root + other)
    return files
