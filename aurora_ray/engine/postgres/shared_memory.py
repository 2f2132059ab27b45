"""Shared memory that an engine which was killed leaves in the kernel.

An engine that ends in order gives it back, and one that starts again in the same data directory finds and removes it.
We never start again in the same data directory after a crash, so it would stay for ever: one SysV segment (of 4096 that
a machine has) and some files in /dev/shm for each kill.

When the engine's starter was killed as well, only the main process's id is left. It is enough: the SysV segment has it
as its creator, and leads to the files, as PostgreSQL itself would go about it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_IPC_RMID: Final = 0
# PostgreSQL's control segment (dsm_control_header in dsm.c, the same from 14 to 18) lists the others: u32 magic, u32
# items, u32 items at most; then items of u32 handle, u32 references (0: free), u64 first page, u64 pages, a pointer, a
# flag. A segment's file is called after its handle.
_CONTROL_MAGIC: Final = 0x9A503D32
_CONTROL_HEADER: Final = struct.Struct("<III4x")
_CONTROL_ITEM: Final = struct.Struct("<II32x")
# At the head of its SysV segment (PGShmemHeader in pg_shmem.h): i32 magic, i32 creator, u64 size, u64 free, u32 handle
# of the control segment.
_SYSV_MAGIC: Final = 679834894
_SYSV_HEADER: Final = struct.Struct("<iiQQI")
_SHM_RDONLY: Final = 0o10000
_SYSV_TABLE: Final = Path("/proc/sysvipc/shm")
_MAPPED = re.compile(r"(/dev/shm/PostgreSQL\.\d+)$", re.MULTILINE)


def posix_segments(pids: Iterable[int]) -> set[Path]:
    """The files in /dev/shm that these processes have mapped as PostgreSQL's dynamic shared memory."""
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.update(Path(name) for name in _MAPPED.findall(Path(f"/proc/{pid}/maps").read_text()))
    return found


def remove_segments(main_pid: int, posix: Iterable[Path] = ()) -> None:
    """Removes the SysV segments that `main_pid` made, the files they lead to, `posix`, and what those list.

    All its processes must be gone.
    """
    sysv = {segment_id: _control_file(segment_id, main_pid) for segment_id in _sysv_segments(main_pid)}
    for path in {*posix, *(control for control in sysv.values() if control is not None)}:
        for listed in [*_listed(path), path]:
            listed.unlink(missing_ok=True)
    for segment_id in sysv:
        ctypes.CDLL(None).shmctl(segment_id, _IPC_RMID, None)


def _control_file(segment_id: int, main_pid: int) -> Path | None:
    """The control segment that a SysV segment names, if it is PostgreSQL's."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    address = libc.shmat(segment_id, None, _SHM_RDONLY)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        header = ctypes.string_at(address, _SYSV_HEADER.size)
    finally:
        libc.shmdt(address)
    magic, creator, _, _, handle = _SYSV_HEADER.unpack(header)
    return Path(f"/dev/shm/PostgreSQL.{handle}") if (magic, creator) == (_SYSV_MAGIC, main_pid) else None  # noqa: S108


def _listed(control: Path) -> list[Path]:
    """The segments that the control segment lists as in use and that belong to its owner; none if it is not one."""
    try:
        owner, content = control.stat().st_uid, control.read_bytes()
    except OSError:
        return []
    if len(content) < _CONTROL_HEADER.size:
        return []
    magic, items, items_max = _CONTROL_HEADER.unpack_from(content)
    room = (len(content) - _CONTROL_HEADER.size) // _CONTROL_ITEM.size
    if magic != _CONTROL_MAGIC or not items <= items_max <= room:
        return []
    end = _CONTROL_HEADER.size + items * _CONTROL_ITEM.size
    used = [
        handle for handle, references in _CONTROL_ITEM.iter_unpack(content[_CONTROL_HEADER.size : end]) if references
    ]
    paths = [control.with_name(f"PostgreSQL.{handle}") for handle in used]
    return [path for path in paths if path.exists() and path.stat().st_uid == owner]


def _sysv_segments(creator_pid: int) -> list[int]:
    """Ids of segments made by `creator_pid` that no process is attached to and that are ours to remove."""
    try:
        header, *rows = (line.split() for line in _SYSV_TABLE.read_text().splitlines())
    except OSError:  # a kernel without SysV shared memory
        return []
    found = []
    for row in rows:
        facts = dict(zip(header, map(int, row), strict=False))
        ours = os.geteuid() in (0, facts["uid"])
        if facts["cpid"] == creator_pid and facts["nattch"] == 0 and ours:
            found.append(facts["shmid"])
    return found
