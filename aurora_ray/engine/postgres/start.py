"""A PostgreSQL server on its way to being ready, see engine/start.py: it moves while WAL is replayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.postgres.probe import module_answers
from aurora_ray.engine.start import Progress, start_error
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from aurora_ray.engine.process import EngineProcess

READY_INTERVAL_S: Final = 0.01
PROBE_TIMEOUT_S: Final = 0.5
READY_LINE: Final = 7  # of postmaster.pid, from 0: pid, directory, start, port, sockets, address, shared memory, state
_VAGUE: Final = ("contains errors", "could not load")  # what a line says that leaves the reason to the one before
READY_STATES: Final = ("ready", "standby")  # the second: a standby without hot_standby, which takes no sessions


class StartProgress(Progress):
    """Of a server with its module: it tells how far the WAL is replayed."""

    def __init__(self, process: EngineProcess, socket_dir: Path, moved: Callable[[], object], now_s: float) -> None:
        super().__init__(process, moved, now_s)
        self._socket_dir = socket_dir

    async def look(self, now_s: float, state: object) -> float:
        """Seconds since something moved."""
        if self._is_due(now_s):
            lsn = await self._lsn()
            title = self._process.title("startup")
            where = f", WAL replayed up to {lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}" if lsn else ""
            self._look(now_s, (state, lsn), f"{title or 'starting'}{where}")
        return self._still_s(now_s)

    async def _lsn(self) -> int:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                answer = await module_answers(self._socket_dir)
        except (TimeoutError, OSError):
            return 0
        return answer.wal_lsn if answer is not None else 0


async def wait_ready(
    process: EngineProcess,
    data_dir: Path,
    progress: StartProgress,
    *,
    timeout_s: float,
    address: tuple[str, int],
    urge: Callable[[EngineProcess, float], None] | None = None,
) -> None:
    """Waits for "ready" in postmaster.pid: unlike trying to connect, this leaves no errors in the log.

    `timeout_s`: how long nothing may move. `urge`: called again and again with the process and the time, from when it
    takes signals until it is a server for sessions. Raises EngineError, and StartRefusedError if it ended by itself.
    """
    lock = data_dir / "postmaster.pid"
    while True:
        if process.returncode is not None:
            tail = process.log_tail()
            bind_failed = "could not bind" in tail or "could not create any TCP/IP sockets" in tail
            raise start_error(process, "PostgreSQL", address, bind_failed=bind_failed)
        try:
            lines = lock.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        state = lines[READY_LINE].strip() if len(lines) > READY_LINE and lines[0] == str(process.pid) else ""
        if state in (READY_STATES if urge is None else READY_STATES[:1]):
            return
        if state and urge is not None:
            urge(process, time.monotonic())
        if await progress.look(time.monotonic(), lines) > timeout_s:
            raise EngineError(
                f"PostgreSQL was not ready within {timeout_s:g} s; its log ends:\n{process.log_tail()}"
                + (f"\nIt was {progress.words} and nothing moved." if progress.words else "")
            )
        await process.wait_main(READY_INTERVAL_S)


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
