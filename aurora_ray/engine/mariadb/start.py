"""A MariaDB server on its way to being ready, see engine/start.py.

It is alive when it greets: it speaks first, before it knows who is there, so whatever users do to accounts, this stays.
It takes connections while it starts and greets when its recovery is done. A refusal ("Too many connections") is a sign
of life as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.start import Progress, start_error
from aurora_ray.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from aurora_ray.engine.process import EngineProcess

READY_INTERVAL_S: Final = 0.02
GREETING_TIMEOUT_S: Final = 0.5
_ERROR = re.compile(r"\[ERROR\] (.*)")
_STAMP = re.compile(r"^\S+\s+\S+ \d+ ")


class StartProgress(Progress):
    """Of a server that says in its log how far it is."""

    def look(self, now_s: float) -> float:
        """Seconds since something moved."""
        if self._is_due(now_s):
            tail = self._process.log_tail()
            self._look(now_s, tail, _STAMP.sub("", tail.splitlines()[-1]) if tail else "starting")
        return self._still_s(now_s)


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
            bind_failed = "Bind on TCP/IP port" in process.log_tail()
            raise start_error(process, "MariaDB", address, bind_failed=bind_failed)
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


def first_complaint(error: Exception) -> str:
    """The line of a start's error that says what was wrong, for one sentence."""
    match = _ERROR.search(str(error))
    return match[1].strip() if match else str(error).splitlines()[0]
