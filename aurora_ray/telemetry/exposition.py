"""GET /metrics: the smallest HTTP server that Prometheus can scrape, in the process's own event loop.

Not prometheus_client's: that one starts a thread per scrape, next to an event loop on the commit path. One request per
connection, no keep-alive, bounded in size and time, and nothing but /metrics is answered.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from aurora_ray.errors import ConfigurationError
from aurora_ray.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST_BYTES_MAX = 8192
REQUEST_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


async def serve_metrics(
    host: str = "127.0.0.1", port: int = 0, render: Callable[[], bytes] = metrics.exposition
) -> asyncio.Server:
    """Serve until the returned server is closed; port 0 takes a free one (`server.sockets[0].getsockname()[1]`).

    Raises ConfigurationError if the port is in use.
    """
    try:
        return await asyncio.start_server(partial(_answer, render), host, port, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot serve metrics on {host}:{port} ({error.strerror}): free the port or choose another."
        ) from error


async def _answer(render: Callable[[], bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(render, head))
            await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
        _log.debug("a metrics request was not completed: %r", error)
    finally:
        writer.close()


def _response(render: Callable[[], bytes], head: bytes) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if method != b"GET":
        status, body = "405 Method Not Allowed", b"only GET\n"
    elif path != b"/metrics":
        status, body = "404 Not Found", b"only /metrics\n"
    else:
        status, body = "200 OK", render()
    headers = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {metrics.CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + body
