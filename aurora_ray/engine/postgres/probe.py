"""Whether a PostgreSQL server is alive, asked without a session: users can close every login, but not this.

Two questions. The *postmaster* accepts a connection on the Unix socket, and the process that it forks answers an
SSLRequest with one byte before it looks at roles, databases, passwords or pg_hba.conf; a refusal is an answer too. The
*module* (src/probe.c), where it is loaded, answers on a socket of its own after it has taken the locks that every
transaction needs: it costs a write and a read, and says where the WAL is.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROBE_NAME: Final = "probe"
PROBE_VARIABLE: Final = "AURORA_PROBE_SOCKET"  # in the server's environment, for the module
_SSL_REQUEST: Final = struct.pack(">II", 8, 80877103)
_ANSWER_BYTES_MAX: Final = 200
_ANSWER = re.compile(rb"lsn=(\d+) recovery=([01])\n")


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What the module said: the end of the WAL that was written, or in recovery replayed, as PostgreSQL counts."""

    wal_lsn: int
    in_recovery: bool


async def postmaster_answers(socket_dir: Path, port: int) -> None:
    """Returns when it has answered anything. Raises OSError if it is not there; the caller sets the time limit."""
    answer = await ask(socket_dir / f".s.PGSQL.{port}", _SSL_REQUEST, 1)
    if not answer:
        raise ConnectionResetError("the server closed the connection without a word")


async def module_answers(socket_dir: Path) -> ProbeAnswer | None:
    """The module's answer; None if it does not serve. The caller sets the time limit."""
    try:
        answer = await ask(socket_dir / PROBE_NAME, b"", _ANSWER_BYTES_MAX)
    except (FileNotFoundError, ConnectionError):
        return None
    match = _ANSWER.fullmatch(answer)
    return ProbeAnswer(int(match[1]), match[2] == b"1") if match else None


async def ask(path: Path, question: bytes, answer_bytes: int) -> bytes:
    """What who listens there answers, up to so many bytes. The caller sets the time limit. Raises OSError."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        if question:
            writer.write(question)
            await writer.drain()
        return await reader.read(answer_bytes)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
