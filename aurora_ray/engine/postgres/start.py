"""A PostgreSQL server on its way to being ready: how far it is, whether it moves, and why it ended.

A recovery takes as long as it must. What may not be is that nothing moves: not the server's CPU time, not the WAL that
is replayed, not its own state, and not what the caller knows of (pages that come from the volume).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.postgres.probe import module_answers
from aurora_ray.errors import AuroraError, ConfigurationError, EngineError, PortInUseError

if TYPE_CHECKING:
    from aurora_ray.engine.process import EngineProcess

READY_INTERVAL_S: Final = 0.01
PROGRESS_EVERY_S: Final = 0.5
PROBE_TIMEOUT_S: Final = 0.5
CPU_SHARE_MIN: Final = 0.02  # of one core, below which a server that waits for something is not at work
READY_LINE: Final = 7  # of postmaster.pid, from 0: pid, directory, start, port, sockets, address, shared memory, state
_VAGUE: Final = ("contains errors", "could not load")  # what a line says that leaves the reason to the one before
READY_STATES: Final = ("ready", "standby")  # the second: a standby without hot_standby, which takes no sessions


class StartRefusedError(EngineError):
    """The server ended by itself during its start, in order: something that it was given does not suit it."""


class StartProgress:
    """Looked at now and then, says whether anything moved since; `words` is for people."""

    def __init__(self, process: EngineProcess, socket_dir: Path, moved: Callable[[], object], now_s: float) -> None:
        self.words = ""
        self._process = process
        self._socket_dir = socket_dir
        self._moved = moved
        self._begun_s = self._moved_at_s = self._looked_at_s = now_s
        self._before: object = None
        self._cpu_s = 0.0

    async def look(self, now_s: float, state: object) -> float:
        """Seconds since something moved."""
        if now_s - self._looked_at_s < PROGRESS_EVERY_S:
            return now_s - self._moved_at_s
        since_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        lsn = await self._lsn()
        seen = (state, lsn, self._moved())
        cpu_s = self._process.cpu_s()
        worked = cpu_s - self._cpu_s > CPU_SHARE_MIN * since_s
        if seen != self._before or worked:
            self._moved_at_s = now_s
        self._before, self._cpu_s = seen, cpu_s
        title = self._process.title("startup")
        where = f", WAL replayed up to {lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}" if lsn else ""
        self.words = f"recovering for {now_s - self._begun_s:.0f} s ({title or 'starting'}{where})"
        return now_s - self._moved_at_s

    async def _lsn(self) -> int:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                answer = await module_answers(self._socket_dir)
        except (TimeoutError, OSError):
            return 0
        return answer.wal_lsn if answer is not None else 0


async def wait_ready(
    process: EngineProcess, data_dir: Path, progress: StartProgress, *, timeout_s: float, address: tuple[str, int]
) -> None:
    """Waits for "ready" in postmaster.pid: unlike trying to connect, this leaves no errors in the log.

    `timeout_s`: how long nothing may move. Raises EngineError, and StartRefusedError if it ended by itself.
    """
    lock = data_dir / "postmaster.pid"
    while True:
        if process.returncode is not None:
            raise start_error(process, *address)
        try:
            lines = lock.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if len(lines) > READY_LINE and lines[0] == str(process.pid) and lines[READY_LINE].strip() in READY_STATES:
            return
        if await progress.look(time.monotonic(), lines) > timeout_s:
            raise EngineError(
                f"PostgreSQL was not ready within {timeout_s:g} s; its log ends:\n{process.log_tail()}"
                + (f"\nIt was {progress.words} and nothing moved." if progress.words else "")
            )
        await process.wait_main(READY_INTERVAL_S)


def start_error(process: EngineProcess, host: str, port: int) -> AuroraError:
    """Why a server ended during its start, from its log."""
    tail = process.log_tail()
    if "could not bind" in tail or "could not create any TCP/IP sockets" in tail:
        if "Address already in use" in tail:  # taken between our look at the port and the server's own
            return PortInUseError(f"port {port} on {host} is in use: stop what listens there or choose another port")
        return ConfigurationError(f"cannot listen on {host}, port {port}; the server's log ends:\n{tail}")
    kind = StartRefusedError if (process.returncode or 0) > 0 else EngineError
    return kind(f"PostgreSQL ended during its start with code {process.returncode}; its log ends:\n{tail}")


def first_complaint(error: Exception) -> str:
    """The line of a start's error that says what was wrong, for one sentence."""
    lines = str(error).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if "FATAL:" in line or "PANIC:" in line:
            vague = any(words in line for words in _VAGUE) and "LOG:" in before
            return _message(before if vague else line)
    program = [line for line in lines if line.startswith("postgres: ")]
    return (program or lines or [type(error).__name__])[0]


def _message(line: str) -> str:
    """A line of the log without its time and process."""
    for level in ("LOG:", "FATAL:", "PANIC:"):
        if level in line:
            return level + line.partition(level)[2].rstrip()
    return line
