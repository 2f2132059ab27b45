"""GET /metrics: the smallest HTTP server that Prometheus can scrape, in the process's own event loop.

Not prometheus_client's: that one starts a thread per scrape, next to an event loop on the commit path. One request per
connection, no keep-alive, bounded in size and time, and nothing but /metrics is answered.

Whoever can connect may read; there are no secrets in it. So it listens on loopback unless a caller says otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING

from aurora_ray.errors import ConfigurationError
from aurora_ray.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

REQUEST_BYTES_MAX = 8192
REQUEST_TIMEOUT_S = 5.0
KEPT_S = 1.0

_log = logging.getLogger(__name__)


async def serve_metrics(
    host: str = "127.0.0.1", port: int = 0, render: Callable[[], bytes | Awaitable[bytes]] = metrics.exposition
) -> asyncio.Server:
    """Serve until the returned server is closed; port 0 takes a free one (`server.sockets[0].getsockname()[1]`).

    A `render` that fails is answered with 500, one that takes too long with the connection's end. Raises
    ConfigurationError if the port is in use.
    """
    try:
        return await asyncio.start_server(partial(_answer, render), host, port, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot serve metrics on {host}:{port} ({error.strerror}): free the port or choose another."
        ) from error


class Rendered:
    """What is dear to render: made once at a time, and given to everybody who asks within `kept_s` of its making."""

    def __init__(self, render: Callable[[], Awaitable[bytes]], kept_s: float = KEPT_S) -> None:
        self._render = render
        self._kept_s = kept_s
        self._lock = asyncio.Lock()
        self._made_s = float("-inf")
        self._text = b""

    async def __call__(self) -> bytes:
        """The text. Raises what rendering raises."""
        async with self._lock:
            clock = asyncio.get_running_loop().time
            if clock() - self._made_s > self._kept_s:
                self._text = await self._render()
                self._made_s = clock()
            return self._text


async def _answer(
    render: Callable[[], bytes | Awaitable[bytes]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(*await _content(render, head)))
            await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
        _log.debug("a metrics request was not completed: %r", error)
    finally:
        writer.close()


async def _content(render: Callable[[], bytes | Awaitable[bytes]], head: bytes) -> tuple[str, bytes]:
    """(status line, body)."""
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if method != b"GET":
        return "405 Method Not Allowed", b"only GET\n"
    if path != b"/metrics":
        return "404 Not Found", b"only /metrics\n"
    try:
        body = render()
        return "200 OK", await body if inspect.isawaitable(body) else body
    except Exception:
        _log.exception("the metrics could not be rendered")
        return "500 Internal Server Error", b"the metrics could not be rendered; see the log\n"


def _response(status: str, body: bytes) -> bytes:
    headers = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {metrics.CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + body
