"""The sparse tree on local disk: the names of a volume's files, at their sizes, and nothing in them.

A mount makes thousands of files at once, shortly after another mount's thousands were removed. ext4 gives out no inode
again for minutes after its removal, and looks at each such inode anew for every file that it makes in the same group
of inodes: ten thousand files take 17 s and more then, and 1 s elsewhere. So each tree gets groups of its own: ext4
spreads the directories below one that is marked as a place of unrelated ones, by the name under which each is made.

On a disk that is busy it takes longer than all else that opening takes together. So the names of the next mount are
made before anybody waits for them (`leave_in_waiting`). They hold no page of any file, so they can be given to whatever
the volume is when it is mounted next, once they are made to be what its table says then: what is no longer there goes,
what is new comes, sizes and modes are set. Nothing is believed of such a tree but what is looked at: every file has to
be one that holds nothing.
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
    from collections.abc import Callable, Mapping
    from pathlib import Path

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR: Final = 0x00020000  # as `chattr +T`: directories below this one are not related, and lie apart
_TELL_EVERY: Final = 512  # files: some 20 ms

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class MountedFile(NamedTuple):
    """A regular file as it was when the volume was mounted."""

    ino: int
    entry: Entry


def make_tree(
    table: FileTable,
    mount_dir: Path,
    uid: int | None,
    gid: int | None,
    *,
    out_of: Path | None = None,
    made: Callable[[int], None] = lambda _: None,
    at_once: int = _TELL_EVERY,
) -> list[MountedFile]:
    """Makes directories, symbolic links and empty files of the right sizes, for this account; returns the files.

    If there is a tree at `out_of`, it is made out of that. What was at `mount_dir` is set aside. `made` is told, in
    this thread, each time that `at_once` more files are there; what it raises ends the work. Raises ConfigurationError
    if something cannot be made. Nothing is left then.
    """
    owner = None if uid is None or gid is None or (uid, gid) == (os.geteuid(), os.getegid()) else (uid, gid)
    filling = _Filling(table, owner, made, at_once)
    unfinished = discarding.unfinished(mount_dir)
    try:
        files = _out_of(out_of, unfinished, filling) if out_of is not None else None
        discarding.set_aside(mount_dir)
        mount_dir.parent.mkdir(parents=True, exist_ok=True)
        keep_apart(mount_dir.parent)
        if files is None:
            unfinished = discarding.unfinished(mount_dir)
            unfinished.mkdir(mode=0o700)
            files = filling.fill(unfinished)
        unfinished.rename(mount_dir)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigurationError(f"cannot mount at {mount_dir}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return files


def leave_in_waiting(
    table: FileTable,
    mount_dir: Path,
    volume: str,
    uid: int | None,
    gid: int | None,
    *,
    made: Callable[[int], None] = lambda _: None,
    at_once: int = _TELL_EVERY,
) -> None:
    """Makes a tree of what `table` has where the next mount of that volume looks for one, out of what waits there; what
    waits for other volumes goes. See make_tree, also for what it raises."""
    ready = discarding.waiting(mount_dir, volume)
    for other in discarding.in_waiting(mount_dir):
        if other != ready:
            discarding.remove(other)
    make_tree(table, ready, uid, gid, out_of=ready, made=made, at_once=at_once)


def _out_of(ready: Path, unfinished: Path, filling: _Filling) -> list[MountedFile] | None:
    """The tree at `ready` made into what is wanted, at `unfinished`; None if there is none, or it was not left so."""
    try:
        ready.rename(unfinished)  # from here on it is nobody else's
    except OSError:
        return None
    try:
        fd = os.open(unfinished, _DIRECTORY)
        try:
            _clear(fd, b"", filling.kinds())
        finally:
            os.close(fd)
        return filling.fill(unfinished, there=True)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        return None


def _clear(fd: int, below: bytes, kinds: Mapping[bytes, FileKind]) -> None:
    """Removes, in a directory and below it, what is not of these kinds."""
    with os.scandir(fd) as found:
        entries = list(found)
    for each in entries:
        path = below + os.fsencode(each.name)
        known = kinds.get(path)
        if not each.is_dir(follow_symlinks=False):
            plain = each.is_file(follow_symlinks=False) and each.stat(follow_symlinks=False).st_nlink == 1
            if known is not FileKind.FILE or not plain:
                os.unlink(each.name, dir_fd=fd)
        elif known is FileKind.DIRECTORY:
            inner = os.open(each.name, _DIRECTORY, dir_fd=fd)
            try:
                _clear(inner, path + b"/", kinds)
            finally:
                os.close(inner)
        else:
            shutil.rmtree(each.name, dir_fd=fd)


class _Filling(NamedTuple):
    """What a directory is to be filled with."""

    table: FileTable
    owner: tuple[int, int] | None  # None: this process's own account
    made: Callable[[int], None]
    at_once: int

    def kinds(self) -> dict[bytes, FileKind]:
        """By path, what may be there already; what has several names, and links, are made anew."""
        return {
            entry.paths[0]: entry.kind
            for entry in self.table.entries()
            if entry.kind is not FileKind.SYMLINK and len(entry.paths) == 1
        }

    def fill(self, directory: Path, *, there: bool = False) -> list[MountedFile]:
        """All that the table has; `there`: some of it may be."""
        root = os.fsencode(directory) + b"/"
        named: list[Entry] = []
        for entry in self.table.entries():
            if entry.kind is not FileKind.FILE:
                _make_entry(root, entry, self.owner)
            elif entry.paths:
                named.append(entry)
        return self._make_files(root, named, there)

    def _make_files(self, root: bytes, entries: list[Entry], there: bool) -> list[MountedFile]:
        uid, gid = self.owner or (-1, -1)
        files: list[MountedFile] = []
        fd = os.open(root, _DIRECTORY)
        try:
            for at in range(0, len(entries), self.at_once):
                some = entries[at : at + self.at_once]
                wanted = tuple([(entry.paths[0], entry.mode, entry.size) for entry in some])
                files += map(MountedFile, make_files(fd, wanted, uid, gid, there), some)
                self.made(len(files))
        finally:
            os.close(fd)
        for entry in entries:
            for other in entry.paths[1:]:
                os.link(root + entry.paths[0], root + other)
        return files


def _make_entry(root: bytes, entry: Entry, owner: tuple[int, int] | None) -> None:
    path = root + entry.paths[0]
    if entry.kind is FileKind.SYMLINK:
        os.symlink(entry.target, path)
    else:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    found = os.lstat(path)  # what is right already is left alone: each change waits its turn on a busy disk
    if owner is not None and (found.st_uid, found.st_gid) != owner:
        os.chown(path, *owner, follow_symlinks=False)
    if entry.kind is FileKind.DIRECTORY and found.st_mode & 0o7777 != entry.mode:
        os.chmod(path, entry.mode)


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
