"""The calls of the libc that have to do with files: which lead into the library, and of all others, why they need not.

`aurora_ray/interposer/README.md` says the same by kinds, for people, and what happens on
ways that are no calls of the libc.
"""

from __future__ import annotations

import re
from pathlib import Path

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
    "pclose": "a pipe",
    "munmap": "only read-only mappings of durable files exist",
    "msync": "only read-only mappings of durable files exist",
    "madvise": "a hint",
    "mlock": "memory only",
    "dlopen": "shared libraries lie outside the mount",
    "flock": "locks are local to the machine of the mount",
    "lockf": "as flock",
    "lockf64": "as flock",
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
    "mkfifo": "a FIFO is not kept in the volume",
    "mkfifoat": "as mkfifo",
    "__xmknod": "old binaries make devices and FIFOs with it, which are not kept in the volume",
    "__xmknodat": "as __xmknod",
    "fchownat": "as chown",
    "futimes": "as utimes",
    "futimesat": "as utimes",
    "faccessat": "as access",
    "euidaccess": "as access",
    "eaccess": "as access",
    "readlinkat": "links are local and complete",
    "fstatfs": "describes the local file system",
    "pathconf": "describes the local file system",
    "fpathconf": "as pathconf",
    "fread_unlocked": "as fread",
    "fgets_unlocked": "as fread",
    "getc_unlocked": "as fread",
    "getdelim": "as fread",
    "getchar": "as fread",
    "__uflow": "as fread",
    "fwrite_unlocked": "as fwrite",
    "fputs_unlocked": "as fwrite",
    "fputc_unlocked": "as fwrite",
    "putc_unlocked": "as fwrite",
    "putchar_unlocked": "as fwrite",
    "__overflow": "as fwrite",
    "perror": "as fwrite, on standard error",
    "error": "as fwrite, on standard error",
    "error_at_line": "as fwrite, on standard error",
    "clearerr_unlocked": "changes only the stream",
    "__fpurge": "changes only the stream's buffer",
    "__fpending": "reads only",
    "__freading": "reads only",
    "__fwriting": "reads only",
    "setlinebuf": "changes only the stream's buffer",
    "chroot": "the mount is not known by its path any more: not supported",
    "mktemp": "makes a name only",
    "lsetxattr": "the volume keeps no attributes; a link has no access control list",
    "lgetxattr": "the volume keeps no attributes",
    "fgetxattr": "the volume keeps no attributes",
    "removexattr": "the volume keeps no attributes; a list that goes leaves the mode as it is",
    "lremovexattr": "as removexattr",
    "fremovexattr": "as removexattr",
    "listxattr": "the volume keeps no attributes",
    "llistxattr": "the volume keeps no attributes",
    "flistxattr": "the volume keeps no attributes",
    "seekdir": "names are local and complete",
    "telldir": "names are local and complete",
    "exit": "ends with the library's destructor, which logs what streams still had",
    "fork": "the library's memory is copied; a page that the kernel clears tells the child",
    "vfork": "the child finds that its memory is its parent's, and leaves what is known of descriptors alone",
    "recvfrom": "sockets",
    "name_to_handle_at": "reads only",
    "open_by_handle_at": "root only; the descriptor is looked at when it is first used",
    "inotify_init": "tells of changes of this machine's copy",
    "inotify_add_watch": "as inotify_init",
    "inotify_rm_watch": "as inotify_init",
    "getmntent": "reads a list of mounts, outside",
    "setmntent": "as getmntent",
    "endmntent": "as getmntent",
    "canonicalize_file_name": "names are local and complete",
    "vmsplice": "pipes",
    "tee": "pipes",
    "shmat": "shared memory, not files",
    "process_vm_readv": "another process's memory: not seen",
    "process_vm_writev": "another process's memory: not seen",
    "io_submit": "in a context, and none is made: io_setup is refused",
    "io_getevents": "as io_submit",
    "io_uring_submit": "in a ring, and none is made: io_uring_queue_init is refused",
    "io_uring_queue_exit": "as io_uring_submit",
    "io_uring_register_files_update": "as io_uring_submit",
    "__io_uring_get_cqe": "as io_uring_submit",
    "io_uring_mlock_size": "as io_uring_submit",
    "io_uring_ring_dontfork": "as io_uring_submit",
    "ptrace": "another process's calls: not seen",
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
    |lseek|lockf|flock|utimes?|utimensat|futimens|[fl]?([sg]et|remove|list)xattr|io_setup|io_submit|io_getevents
    |aio_(read|write|fsync)|lio_listio|io_uring\w*|exec(l|lp|le|v|ve|vp|vpe|veat)|fexecve|posix_spawnp?|popen|system|syscall|ioctl|v?dprintf
    |_exit|_Exit|exit|fork|vfork|f(read|write|puts|putc|flush|gets|getc|clearerr)_unlocked|overflow|uflow|fpurge|perror
    |error(_at_line)?|lchmod|mkfifoat|pathconf|fpathconf|fsetpos|fgetpos|ptrace|process_vm_\w+|name_to_handle_at
    |open_by_handle_at|memfd_create|inotify_\w+|getdelim|shm(at|_open|_unlink))(2|64|64v2|v2|_2|_chk|64_2)?)""",
    re.VERBOSE,
)


def interposed() -> set[str]:
    """The calls that lead into the library."""
    return set(re.findall(r"X\([^,]+, (\w+),", SOURCE.read_text()))


def unaccounted(names: set[str]) -> set[str]:
    """Those of a program's imports that have to do with files and of which nobody has said what happens."""
    return {name for name in names if FILE_CALLS.fullmatch(name)} - interposed() - NOT_INTERPOSED.keys()
