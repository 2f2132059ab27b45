"""Many ways to do the same to a file: what the model calls a write may be any of a dozen calls, or another program.

A way does all of an operation or raises. It works on paths relative to the current directory, which lies in a mount.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.interposer.model import Operation

_libc = ctypes.CDLL(None, use_errno=True)
for _name, _result, _arguments in (
    ("fopen", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
    ("fdopen", ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]),
    ("fwrite", ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]),
    ("fread", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]),
    ("fseek", ctypes.c_int, [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]),
    ("fflush", ctypes.c_int, [ctypes.c_void_p]),
    ("fclose", ctypes.c_int, [ctypes.c_void_p]),
    ("syscall", ctypes.c_long, None),
    ("ar_tail_lsn", ctypes.c_uint64, []),
):
    _call = getattr(_libc, _name)
    _call.restype = _result
    if _arguments is not None:
        _call.argtypes = _arguments
tail_lsn: Callable[[], int] = _libc.ar_tail_lsn

PREAD64, PWRITE64, RENAMEAT2, OPENAT2, UNLINKAT, LINKAT, FTRUNCATE, WRITE = 17, 18, 316, 437, 263, 265, 77, 1
AT_FDCWD = -100


def _sys(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_uint64]) -> int:
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _program(*words: str, stdin: int | None = None, stdout: int | None = None) -> None:
    subprocess.run(words, stdin=stdin, stdout=stdout, check=True)


@contextmanager
def _opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _source(data: bytes) -> Iterator[int]:
    """A file outside the mount with this content."""
    with tempfile.TemporaryFile(dir=os.environ["AURORA_TEST_OUTSIDE"]) as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()


def _all(step: Callable[[int], int], nbytes: int) -> None:
    done = 0
    while done < nbytes:
        n = step(done)
        assert n > 0, "a call did nothing"
        done += n


# ---- writes at an offset


def _w_pwrite(at: Operation, fd: int) -> None:
    _all(lambda done: os.pwrite(fd, at.data[done:], at.offset + done), len(at.data))


def _w_pwritev2(at: Operation, fd: int) -> None:
    third = len(at.data) // 3
    assert os.pwritev(fd, [at.data[:third], at.data[third:]], at.offset, os.RWF_DSYNC) == len(at.data)


def _w_seek(at: Operation, fd: int) -> None:
    os.lseek(fd, at.offset, os.SEEK_SET)
    assert os.writev(fd, [at.data]) == len(at.data)


def _w_number(at: Operation, fd: int) -> None:
    assert _sys(PWRITE64, fd, at.data, len(at.data), at.offset) == len(at.data)


def _w_link_of_descriptor(at: Operation, fd: int) -> None:
    with _opened(f"/proc/self/fd/{fd}", os.O_WRONLY) as other:
        _w_pwrite(at, other)


def _w_copy_of_descriptor(at: Operation, fd: int) -> None:
    copy = os.dup(fd)
    try:
        _w_seek(at, copy)
    finally:
        os.close(copy)


def _w_over_a_socket(at: Operation, fd: int) -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        socket.send_fds(here, [b"x"], [fd])
        _, (other,), _, _ = socket.recv_fds(there, 1, 1)
    try:
        _w_pwrite(at, other)
    finally:
        os.close(other)


def _w_stream(at: Operation, fd: int) -> None:
    stream = _libc.fdopen(os.dup(fd), b"r+")
    _libc.fseek(stream, at.offset, os.SEEK_SET)
    half = len(at.data) // 2
    assert _libc.fwrite(at.data[:half], 1, half, stream) == half
    _libc.fflush(stream)
    assert _libc.fwrite(at.data[half:], 1, len(at.data) - half, stream) == len(at.data) - half
    assert _libc.fclose(stream) == 0


def _w_copy_file_range(at: Operation, fd: int) -> None:
    with _source(at.data) as source:
        _all(lambda n: os.copy_file_range(source, fd, len(at.data) - n, n, at.offset + n), len(at.data))


def _w_sendfile(at: Operation, fd: int) -> None:
    with _source(at.data) as source:
        os.lseek(fd, at.offset, os.SEEK_SET)
        _all(lambda n: os.sendfile(fd, source, n, len(at.data) - n), len(at.data))


def _w_splice(at: Operation, fd: int) -> None:
    reads, writes = os.pipe()
    try:
        for start in range(0, len(at.data), 4096):
            piece = at.data[start : start + 4096]
            assert os.write(writes, piece) == len(piece)
            _all(lambda n: os.splice(reads, fd, len(piece) - n, offset_dst=at.offset + start + n), len(piece))  # noqa: B023
    finally:
        os.close(reads)
        os.close(writes)


def _w_program(at: Operation, fd: int) -> None:
    with _source(at.data) as source:
        os.lseek(fd, at.offset, os.SEEK_SET)
        _program("cat", stdin=source, stdout=fd)


WRITES = [
    _w_pwrite,
    _w_pwritev2,
    _w_seek,
    _w_number,
    _w_link_of_descriptor,
    _w_copy_of_descriptor,
    _w_over_a_socket,
    _w_stream,
    _w_copy_file_range,
    _w_sendfile,
    _w_splice,
]


def _write(at: Operation, draw: Random) -> None:
    with _opened(at.path) as fd:
        (_w_program if draw.random() < RARE else draw.choice(WRITES))(at, fd)


# ---- appending


def _a_opened_so(at: Operation) -> None:
    with _opened(at.path, os.O_WRONLY | os.O_APPEND) as fd:
        _all(lambda done: os.write(fd, at.data[done:]), len(at.data))


def _a_switched_on(at: Operation) -> None:
    with _opened(at.path) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        assert _sys(WRITE, fd, at.data, len(at.data)) == len(at.data)


def _a_flag(at: Operation) -> None:
    with _opened(at.path) as fd:
        assert os.pwritev(fd, [at.data], 0, os.RWF_APPEND) == len(at.data)


def _a_stream(at: Operation) -> None:
    stream = _libc.fopen(at.path.encode(), b"a")
    assert _libc.fwrite(at.data, 1, len(at.data), stream) == len(at.data)
    assert _libc.fclose(stream) == 0


APPENDS = [_a_opened_so, _a_switched_on, _a_flag, _a_stream]

# ---- making, naming, cutting


def _how(flags: int, mode: int = 0) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * 3)(flags, mode, 0)


@contextmanager
def _directory_of(path: str) -> Iterator[tuple[int, str]]:
    directory, _, name = path.rpartition("/")
    with _opened(directory or ".", os.O_RDONLY | os.O_DIRECTORY) as fd:
        yield fd, name


def _c_at(path: str) -> None:
    with _directory_of(path) as (directory, name):
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=directory))


def _c_openat2(path: str) -> None:
    os.close(_sys(OPENAT2, AT_FDCWD, path.encode(), _how(os.O_CREAT | os.O_RDWR, 0o600), 24))


def _c_nameless(path: str) -> None:
    with _opened(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_RDWR) as fd:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=0, follow_symlinks=True)


CREATES = [
    lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)),
    lambda path: os.mknod(path, 0o100600),
    _c_at,
    _c_openat2,
    _c_nameless,
]


def _r_at(path: str, other: str) -> None:
    with _directory_of(path) as (here, name), _directory_of(other) as (there, new):
        os.rename(name, new, src_dir_fd=here, dst_dir_fd=there)


RENAMES = [
    os.rename,
    _r_at,
    lambda path, other: _sys(RENAMEAT2, AT_FDCWD, path.encode(), AT_FDCWD, other.encode(), 0),
]


def _u_at(path: str) -> None:
    with _directory_of(path) as (directory, name):
        os.unlink(name, dir_fd=directory)


UNLINKS = [os.unlink, _u_at, lambda path: _sys(UNLINKAT, AT_FDCWD, path.encode(), 0), os.remove]


def _l_descriptor(path: str, other: str) -> None:
    with _opened(path, os.O_RDONLY) as fd:
        _sys(LINKAT, AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, other.encode(), 0x400)


LINKS = [os.link, _l_descriptor]


def _t_number(path: str, size: int) -> None:
    with _opened(path) as fd:
        _sys(FTRUNCATE, fd, size)


def _t_descriptor(path: str, size: int) -> None:
    with _opened(path, os.O_RDWR if size else os.O_RDONLY | os.O_TRUNC) as fd:
        if size:
            os.ftruncate(fd, size)


TRUNCATES = [os.truncate, _t_number, _t_descriptor]


def _s_dataless(fd: int) -> None:
    _libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7)
    _libc.syncfs(fd)


SYNCS = [os.fsync, os.fdatasync, _s_dataless]

# ---- reading: all give up to `count` bytes from `offset` on


def _d_readv(fd: int, offset: int, count: int) -> bytes:
    parts = [bytearray(count // 2), bytearray(count - count // 2)]
    n = os.preadv(fd, parts, offset)
    return b"".join(parts)[:n]


def _d_number(fd: int, offset: int, count: int) -> bytes:
    buffer = ctypes.create_string_buffer(count)
    n = _libc.syscall(ctypes.c_long(PREAD64), ctypes.c_long(fd), buffer, ctypes.c_long(count), ctypes.c_long(offset))
    return buffer.raw[:n]


def _d_mapped(fd: int, offset: int, count: int) -> bytes:
    if not os.fstat(fd).st_size:
        return b""
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        return mapping[offset : offset + count]


def _d_stream(fd: int, offset: int, count: int) -> bytes:
    buffer = ctypes.create_string_buffer(count)
    stream = _libc.fdopen(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), b"r")
    _libc.fseek(stream, offset, os.SEEK_SET)
    n = _libc.fread(buffer, 1, count, stream)
    _libc.fclose(stream)
    return buffer.raw[:n]


def _to_outside(move: Callable[[int, int, int], int]) -> Callable[[int, int, int], bytes]:
    def read(fd: int, offset: int, count: int) -> bytes:
        with tempfile.TemporaryFile(dir=os.environ["AURORA_TEST_OUTSIDE"]) as file:
            moved = 0
            while moved < count and (n := move(fd, file.fileno(), offset + moved)):
                moved += n
            file.seek(0)
            return file.read()[:count]

    return read


def _d_past_holes(fd: int, offset: int, count: int) -> bytes:
    if offset < os.fstat(fd).st_size:
        assert os.lseek(fd, offset, os.SEEK_DATA) == offset
        assert os.lseek(fd, offset, os.SEEK_HOLE) >= offset
    return os.pread(fd, count, offset)


READS = [
    lambda fd, offset, count: os.pread(fd, count, offset),
    _d_readv,
    _d_number,
    _d_mapped,
    _d_stream,
    _d_past_holes,
    _to_outside(lambda fd, to, at: os.sendfile(to, fd, at, 50_000)),
    _to_outside(lambda fd, to, at: os.copy_file_range(fd, to, 50_000, at)),
]
READ_BYTES = 100_000
RARE = 0.03  # so many writes and reads are another program's

_REFUSED = (0x40049409, 0xC020660B)  # FICLONE, FIEMAP


def _read(at: Operation, expected: bytes, draw: Random) -> None:
    with _opened(at.path, os.O_RDONLY) as fd:
        found = draw.choice(READS)(fd, at.offset, READ_BYTES)
        assert found == expected[at.offset : at.offset + READ_BYTES], f"{at.path} is not what was written"
        numbers = array.array("q", [fd, 0, 0, 0])
        assert _libc.ioctl(fd, ctypes.c_ulong(draw.choice(_REFUSED)), ctypes.c_void_p(numbers.buffer_info()[0])) == -1
    if draw.random() < RARE:
        with tempfile.NamedTemporaryFile(dir=os.environ["AURORA_TEST_OUTSIDE"]) as copy:
            _program("cp", *draw.choice([(), ("--sparse=always",)]), at.path, copy.name)
            assert Path(copy.name).read_bytes() == expected


def perform(at: Operation, expected: bytes, draw: Random) -> None:
    """Does the operation in one of its ways. `expected`: the file's content before it."""
    match at.kind:
        case "create":
            draw.choice(CREATES)(at.path)
        case "mkdir":
            os.mkdir(at.path, 0o700)
        case "rmdir":
            os.rmdir(at.path)
        case "unlink":
            draw.choice(UNLINKS)(at.path)
        case "link":
            draw.choice(LINKS)(at.path, at.other)
        case "rename":
            draw.choice(RENAMES)(at.path, at.other)
        case "truncate":
            draw.choice(TRUNCATES)(at.path, at.offset)
        case "append":
            draw.choice(APPENDS)(at)
        case "read":
            _read(at, expected, draw)
        case "sync" if not at.path:
            os.sync()
        case _:
            _by_descriptor(at, draw)


def _by_descriptor(at: Operation, draw: Random) -> None:
    if at.kind in ("pwrite", "writev"):
        _write(at, draw)
    elif at.kind == "stdio":
        stream = _libc.fopen(at.path.encode(), b"w")
        assert _libc.fwrite(at.data, 1, len(at.data), stream) == len(at.data)
        assert _libc.fclose(stream) == 0
    else:
        with _opened(at.path) as fd:
            if at.kind == "fallocate":
                os.posix_fallocate(fd, 0, at.offset)
            else:
                draw.choice(SYNCS)(fd)
