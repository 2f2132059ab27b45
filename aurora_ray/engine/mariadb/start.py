"""A MariaDB server on its way to being ready: how far it is, whether it moves, and why it ended.

It is alive when it greets: it speaks first, before it knows who is there, so whatever users do to accounts, this stays.
It takes connections while it starts and greets when its recovery is done. A refusal ("Too many connections") is a sign
of life as well.

A recovery takes as long as it must. What may not be is that nothing moves: not the server's CPU time, not its log, not
what the caller knows of (pages that come from the volume).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import AuroraError, ConfigurationError, EngineError, PortInUseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aurora_ray.engine.process import EngineProcess

READY_INTERVAL_S: Final = 0.02
GREETING_TIMEOUT_S: Final = 0.5
PROGRESS_EVERY_S: Final = 0.5
CPU_SHARE_MIN: Final = 0.02  # of one core, below which a server that waits for something is not at work
_ERROR = re.compile(r"\[ERROR\] (.*)")
_STAMP = re.compile(r"^\S+\s+\S+ \d+ ")


class StartRefusedError(EngineError):
    """The server ended by itself during its start, in order: something that it was given does not suit it."""


class StartProgress:
    """Looked at now and then, says whether anything moved since; `words` is for people."""

    def __init__(self, process: EngineProcess, moved: Callable[[], object], now_s: float) -> None:
        self.words = ""
        self._process = process
        self._moved = moved
        self._begun_s = self._moved_at_s = self._looked_at_s = now_s
        self._before: object = None
        self._cpu_s = 0.0

    def look(self, now_s: float) -> float:
        """Seconds since something moved."""
        if now_s - self._looked_at_s < PROGRESS_EVERY_S:
            return now_s - self._moved_at_s
        since_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        tail = self._process.log_tail()
        seen, cpu_s = (tail, self._moved()), self._process.cpu_s()
        if seen != self._before or cpu_s - self._cpu_s > CPU_SHARE_MIN * since_s:
            self._moved_at_s = now_s
        self._before, self._cpu_s = seen, cpu_s
        last = _STAMP.sub("", tail.splitlines()[-1]) if tail else "starting"
        self.words = f"recovering for {now_s - self._begun_s:.0f} s ({last})"
        return now_s - self._moved_at_s


async def greets(socket: Path) -> None:
    """Returns when the server has said anything. Raises OSError if nobody is there; the caller sets the time limit."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        if not await reader.read(1):
            raise ConnectionResetError("the server closed the connection without a word")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def wait_ready(
    process: EngineProcess, socket: Path, progress: StartProgress, *, timeout_s: float, address: tuple[str, int]
) -> None:
    """Waits until it greets. `timeout_s`: how long nothing may move. Raises EngineError, and StartRefusedError if it
    ended by itself."""
    while True:
        if process.returncode is not None:
            raise start_error(process, *address)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                await greets(socket)
                return
        if progress.look(time.monotonic()) > timeout_s:
            raise EngineError(
                f"MariaDB was not ready within {timeout_s:g} s; it was {progress.words} and nothing moved. "
                f"Its log ends:\n{process.log_tail()}"
            )
        await process.wait_main(READY_INTERVAL_S)


def start_error(process: EngineProcess, host: str, port: int) -> AuroraError:
    """Why a server ended during its start, from its log."""
    tail = process.log_tail()
    if "Bind on TCP/IP port" in tail:
        if "Address already in use" in tail:  # taken between our look at the port and the server's own
            return PortInUseError(f"port {port} on {host} is in use: stop what listens there or choose another port")
        return ConfigurationError(f"cannot listen on {host}, port {port}; the server's log ends:\n{tail}")
    kind = StartRefusedError if (process.returncode or 0) > 0 else EngineError
    return kind(f"MariaDB ended during its start with code {process.returncode}; its log ends:\n{tail}")


def first_complaint(error: Exception) -> str:
    """The line of a start's error that says what was wrong, for one sentence."""
    match = _ERROR.search(str(error))
    return match[1].strip() if match else str(error).splitlines()[0]
