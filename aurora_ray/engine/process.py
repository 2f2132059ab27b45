"""The processes of one engine: started, watched, and ended to the last one.

Engines fork, and their children leave the process group (each PostgreSQL backend opens a session of its own), so
neither a group nor the process tree says who belongs to an engine once its main process is dead. A pipe does: its write
end is inherited by every descendant and by nobody else, so the read end reports end-of-file exactly when the last one
is gone, and /proc shows who still holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.account import BASE_ENVIRONMENT, EngineAccount
from aurora_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KILL_INTERVAL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 4096
LOG_TAIL_LINES: Final = 12

# If our own thread dies, nobody flushes for the engine any more: it is told to end at once. QUIT and not KILL, since
# the main process then ends its children and gives back shared memory; it kills those that do not follow within 5 s. An
# engine that is a single process, and for which QUIT means a shutdown in order, is killed instead.
PARENT_DEATH_SIGNAL: Final = "QUIT"


class EngineProcess:
    """A running engine. Belongs to the event loop in which it was started, and to the thread that runs that loop."""

    def __init__(
        self, child: subprocess.Popen[bytes], life_fd: int, log_path: Path, log_offset: int, program: str
    ) -> None:
        self.pid = child.pid
        self._program = os.path.realpath(shutil.which(program) or program)
        self._child = child
        self._life_fd = life_fd
        self._life_inode = os.fstat(life_fd).st_ino
        self._log_path = log_path
        self._log_offset = log_offset
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._pid_fd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pid_fd, self._on_main_exit)
        self._loop.add_reader(life_fd, self._on_life)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        account: EngineAccount,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        work_dir: Path,
        log_path: Path,
        death_signal: str = PARENT_DEATH_SIGNAL,
    ) -> EngineProcess:
        """Starts `argv` as `account` with its output appended to `log_path`. Raises ConfigurationError if it cannot.

        `death_signal` is what it gets when our thread ends, see PARENT_DEATH_SIGNAL.
        """
        life_read, life_write = os.pipe()
        try:
            with log_path.open("ab") as log:
                log_offset = log.tell()
                child = subprocess.Popen(
                    account.command(argv, env=env, death_signal=death_signal),
                    env=dict(BASE_ENVIRONMENT),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=work_dir,
                    pass_fds=(*pass_fds, life_write),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(life_read)
            raise ConfigurationError(f"cannot start {argv[0]}: {error}") from error
        finally:
            os.close(life_write)
        os.set_blocking(life_read, False)
        return cls(child, life_read, log_path, log_offset, argv[0])

    @property
    def returncode(self) -> int | None:
        """Of the main process; negative for a signal; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def send(self, signo: signal.Signals) -> None:
        """Signals the main process, if it still runs."""
        if self._ended.done():
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pid_fd, signo)

    async def wait_main(self, timeout_s: float | None) -> int | None:
        """The main process's return code; None if it outlives the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._ended)
        except TimeoutError:
            return None

    async def wait_gone(self, timeout_s: float) -> bool:
        """True as soon as no process of the engine is left, False if the timeout passes first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._gone.wait()
                await asyncio.shield(self._ended)
        except TimeoutError:
            return False
        return True

    async def kill(self, timeout_s: float) -> None:
        """SIGKILL to every process, again until none is left (one may just be forking). Raises EngineError."""
        deadline = self._loop.time() + timeout_s
        self.send(signal.SIGKILL)
        found = self.members(fast=True)  # somebody waits for the next engine
        while True:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if await self.wait_gone(KILL_INTERVAL_S):
                return
            found = self.members()
            if self._loop.time() > deadline:
                raise EngineError(
                    f"processes {self.members() or [self.pid]} of the engine are still there {timeout_s:g} s after "
                    "SIGKILL: they hang in the kernel; the machine needs a look"
                )

    def members(self, *, fast: bool = False) -> list[int]:
        """Process ids of the engine's living processes, by who holds the pipe.

        To look at all descriptors of the machine takes tens of milliseconds; `fast`, a tenth of that, finds those alone
        that run the same program as the main process.
        """
        link = f"pipe:[{self._life_inode}]"
        others = (pid for pid in _processes() if pid != os.getpid() and (not fast or _runs(pid, self._program)))
        return [pid for pid in others if link in _open_files(pid)]

    def cpu_s(self) -> float:
        """CPU time that the main process and its children used, in seconds."""
        return sum(_cpu_ticks(pid) for pid in (self.pid, *_children(self.pid))) / os.sysconf("SC_CLK_TCK")

    def title(self, kind: str) -> str:
        """What the first child whose title begins with `kind` shows of itself in a process list."""
        for pid in _children(self.pid):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                name = words.partition(": ")[2]
                if name.startswith(kind):
                    return name
        return ""

    def log_tail(self) -> str:
        """The last lines of what this run wrote to its log."""
        with self._log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(min(self._log_offset, size), size - LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def close(self) -> None:
        """Gives back the descriptors. The engine must be gone."""
        if self._pid_fd >= 0:
            self._loop.remove_reader(self._pid_fd)
            self._loop.remove_reader(self._life_fd)
            os.close(self._pid_fd)
            os.close(self._life_fd)
            self._pid_fd = self._life_fd = -1

    def _on_main_exit(self) -> None:
        self._loop.remove_reader(self._pid_fd)
        returncode = self._child.wait()  # does not wait: the descriptor says that it has ended
        if not self._ended.done():
            self._ended.set_result(returncode)

    def _on_life(self) -> None:
        try:
            if os.read(self._life_fd, 4096):
                return  # somebody wrote into a descriptor it does not know; it means nothing
        except BlockingIOError:
            return
        self._loop.remove_reader(self._life_fd)
        self._gone.set()


def processes_in(directory: Path, program: str) -> list[int]:
    """Process ids of those that run `program` (a file name) with `directory` as their working directory."""
    wanted = str(directory.resolve())
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):
            executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
            if os.path.basename(executable) == program and os.readlink(f"/proc/{pid}/cwd") == wanted:
                found.append(pid)
    return found


def _runs(pid: int, program: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)") == program
    return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
    return []


def _cpu_ticks(pid: int) -> int:
    """User and system time; 0 of a process that is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _open_files(pid: int) -> set[str]:
    """What the process's descriptors point at; empty if it is gone or not ours to see."""
    links = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                links.add(os.readlink(entry.path))
    return links
