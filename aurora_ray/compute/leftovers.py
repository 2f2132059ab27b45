"""Ends processes that an earlier incarnation left behind, and no others.

An engine dies with its actor (it is told by the kernel and by a pipe), but whoever starts a new incarnation on the same
directory must be sure of it, not hope. What is ended is known to be the fleet's own:

- the process in the pid file, which carries the start time, so that a pid that was given to another process in the
  meantime is not taken for ours;
- processes that run one of the engine's programs with the mount as their working directory, as a server does;
- processes whose environment names the mount, as the engine's is made: what it started (an archive command, say).

Who only looks around in the mount, a person's shell or a backup's `du`, is left alone.

Pid file: one line, `<pid> <start time in clock ticks since boot> <boot id> <device:inode of its directory>`. The last,
because a copy of a directory may be started beside what runs in the first; an earlier version's does not tell it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora_ray.durable import place_of, replace_file
from aurora_ray.errors import EngineError

_log = logging.getLogger(__name__)
_POLL_S = 0.01
MOUNT_VARIABLE = b"AURORA_MOUNT"  # in the environment of an engine and of what it starts (interposer.region)


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none, or only its corpse."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_pid_file(path: Path, pid: int) -> None:
    """Notes a process that we started."""
    ticks = start_ticks(pid)
    if ticks is None:
        return
    note = f"{pid} {ticks} {_boot_id()} {place_of(path.parent)}\n"
    replace_file(path, note, durable=False)  # no process survives a power cut


def read_pid_file(path: Path) -> int | None:
    """The noted process if it is still the same one and still runs."""
    try:
        pid, ticks, boot_id, *place = path.read_text().split()
        if place not in ([], [place_of(path.parent)]):
            return None
        if boot_id == _boot_id() and start_ticks(int(pid)) == int(ticks):
            return int(pid)
    except (OSError, ValueError):
        pass
    return None


def working_below(directory: Path) -> list[int]:
    """Processes whose working directory is `directory` or below it (as far as we may look)."""
    return [pid for pid in _others() if _works_below(pid, directory)]


def of_engine(mount_dir: Path, programs: Sequence[str]) -> list[int]:
    """Processes of an engine on that mount, and those that they started. `programs`: names of an engine's files."""
    return [
        pid
        for pid in _others()
        if (_program(pid) in programs and _works_below(pid, mount_dir)) or _is_marked(pid, mount_dir)
    ]


def _others() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield int(entry.name)


def _works_below(pid: int, directory: Path) -> bool:
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return False
    return cwd == str(directory) or cwd.startswith(f"{directory}/")


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
    except OSError:
        return ""


def _is_marked(pid: int, mount_dir: Path) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"%s=%s" % (MOUNT_VARIABLE, os.fsencode(mount_dir)) in environment.split(b"\0")


async def end_leftovers(pid_file: Path, mount_dir: Path, programs: Sequence[str], timeout_s: float = 5.0) -> int:
    """Kills what an earlier incarnation left and waits until it is gone; how many there were. Raises EngineError."""
    deadline_s = time.monotonic() + timeout_s
    killed: set[int] = set()
    while True:
        noted = read_pid_file(pid_file)
        found = await asyncio.to_thread(of_engine, mount_dir, programs)  # tens of milliseconds, and others have work
        pids = {*found, *([noted] if noted is not None else [])}
        pids = {pid for pid in pids if start_ticks(pid) is not None}
        if not pids:
            break
        if time.monotonic() > deadline_s:
            raise EngineError(
                f"Processes {sorted(pids)} of an earlier incarnation in {mount_dir} do not end; kill them."
            )
        for pid in pids - killed:
            _log.info("killing process %d, left by an earlier incarnation in %s", pid, mount_dir)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise EngineError(f"Process {pid} works in {mount_dir} and belongs to another user; end it.") from error
            killed.add(pid)
        await asyncio.sleep(_POLL_S)
    pid_file.unlink(missing_ok=True)  # noqa: ASYNC240  (a local name, at once)
    return len(killed)
