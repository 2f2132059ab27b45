"""An ordinary program that does file operations; run as a child with the interposer preloaded.

    python -m tests.interposer.workload SEED COUNT JOURNAL [start]

Works in its current directory. After each operation it appends a line "number lsn" to the journal, which lies outside
the mount. It checks what it reads and ends with code 3 if that is not what it wrote.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tests.interposer.model import Operation, Operations

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fopen.restype = ctypes.c_void_p
_libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
_libc.fclose.argtypes = [ctypes.c_void_p]
_libc.ar_tail_lsn.restype = ctypes.c_uint64


def perform(operation: Operation, expected: bytes | None) -> None:
    match operation.kind:
        case "create":
            os.close(os.open(operation.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        case "mkdir":
            os.mkdir(operation.path, 0o700)
        case "rmdir":
            os.rmdir(operation.path)
        case "unlink":
            os.unlink(operation.path)
        case "link":
            os.link(operation.path, operation.other)
        case "rename":
            os.rename(operation.path, operation.other)
        case "truncate":
            os.truncate(operation.path, operation.offset)
        case "stdio":
            stream = _libc.fopen(operation.path.encode(), b"w")
            _libc.fwrite(operation.data, 1, len(operation.data), stream)
            _libc.fclose(stream)
        case "sync" if operation.path == "":
            os.sync()
        case _:
            with_descriptor(operation, expected)


def with_descriptor(operation: Operation, expected: bytes | None) -> None:
    flags = os.O_WRONLY | os.O_APPEND if operation.kind == "append" else os.O_RDWR
    fd = os.open(operation.path, flags)
    try:
        match operation.kind:
            case "pwrite":
                assert os.pwrite(fd, operation.data, operation.offset) == len(operation.data)
            case "writev":
                third = len(operation.data) // 3
                parts = [operation.data[:third], operation.data[third:]]
                assert os.pwritev(fd, parts, operation.offset) == len(operation.data)
            case "append":
                assert os.write(fd, operation.data) == len(operation.data)
            case "fallocate":
                os.posix_fallocate(fd, 0, operation.offset)
            case "sync":
                os.fsync(fd)
            case "read":
                assert expected is not None
                found = os.pread(fd, 100_000, operation.offset)
                if found != expected[operation.offset : operation.offset + 100_000]:
                    sys.stderr.write(f"{operation.path} at {operation.offset} is not what was written\n")
                    os._exit(3)
    finally:
        os.close(fd)


def main() -> None:
    seed, count, journal_path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    operations = Operations(seed)
    journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND)
    for number in range(count):
        operation = operations.next()
        content = operations.tree.nodes.get(operation.path) if operation.kind == "read" else None
        perform(operation, bytes(content) if content is not None else None)
        os.write(journal, f"{number} {_libc.ar_tail_lsn()}\n".encode())


if __name__ == "__main__":
    main()
