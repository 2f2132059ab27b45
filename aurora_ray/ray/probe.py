"""Whether anything like a Ray cluster answers at an address, before Ray is asked to join it: Ray waits for minutes."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from aurora_ray.control.api.client import NotRunningError
from aurora_ray.errors import UsageError

TIMEOUT_S: Final = 5.0
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and an empty SETTINGS frame
_FRAME_HEADER_BYTES: Final = 9
_SETTINGS: Final = 4


def require_answer(address: str, timeout_s: float = TIMEOUT_S) -> None:
    """Raises NotRunningError if no gRPC server answers at HOST:PORT (or ray://HOST:PORT), UsageError if it is no such
    address. Ray's own words (`auto`) are for Ray to judge.

    A server of HTTP/2 begins with its settings (RFC 9113, 3.4), whatever it thinks of us. One that speaks TLS
    (RAY_USE_TLS) is only asked whether it listens.
    """
    if address in ("auto", "local"):
        return
    host, port = _parts(address)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false", ""):
                return
            connection.settimeout(timeout_s)
            connection.sendall(_HELLO)
            answer = b""
            while len(answer) < _FRAME_HEADER_BYTES and (more := connection.recv(_FRAME_HEADER_BYTES - len(answer))):
                answer += more
    except OSError as error:
        why = "nothing was said" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise NotRunningError(f"no Ray cluster answers at {address}: {why}") from error
    if len(answer) < _FRAME_HEADER_BYTES or answer[3] != _SETTINGS:
        raise NotRunningError(f"no Ray cluster answers at {address}: something else listens there")


def _parts(address: str) -> tuple[str, int]:
    with suppress(ValueError):  # of a port that is no number
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise UsageError(f"{address!r} is no address of a Ray cluster: HOST:PORT, as `ray start --head` prints it")
