"""The calling side of a gRPC stream on a connection of its own (see http2.py for why)."""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from aurora_ray.rpc.admission import Caller
from aurora_ray.rpc.frames import PREFACE, Code
from aurora_ray.rpc.http2 import SERVER_KEY, Link, MessageError
from aurora_ray.rpc.partition import PARTY
from aurora_ray.rpc.status import error_of

if TYPE_CHECKING:
    from aurora_ray.errors import AuroraError
    from aurora_ray.rpc.frames import ProtocolError

CONNECT_TIMEOUT_S: Final = 2.0
_STREAM: Final = 1
_STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}


class StreamEndedError(Exception):
    """The call has ended, with gRPC's `code` and its sentence `details`; `error` says it in our own tree."""

    def __init__(self, code: grpc.StatusCode, details: str, error: AuroraError) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details, self.error = code, details, error


class Receiver(Protocol):
    """Who gets what comes in. Called in the event loop, in order; must not block."""

    def on_message(self, message: bytes) -> None:
        """A reply."""

    def on_writable(self) -> None:
        """Room for messages again."""


class StreamCall(Link):
    """A running call. `send_message` while `writable`; `await ended()` tells how it ended; `cancel` ends it.

    Nothing is to be sent before `admitted` is there: only then is it known who hears it.
    """

    def __init__(self, authority: str, method: str, receiver: Receiver, caller: Caller) -> None:
        super().__init__()
        self._authority, self._method, self._receiver, self._caller = authority, method, receiver, caller
        self._proof = caller.prove(method)
        self.admitted = asyncio.Event()  # or ended
        self._ended: asyncio.Future[StreamEndedError] = asyncio.get_running_loop().create_future()

    async def ended(self) -> StreamEndedError:
        """How it ended, once it has; also a good end is one."""
        return await asyncio.shield(self._ended)

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol. Begins the call."""
        transport.write(PREFACE)
        super().connection_made(transport)
        self.begin(_STREAM)
        self.send_headers(
            (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", self._method),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", PARTY.user_agent),
                (SERVER_KEY, self._caller.server),
                self._proof.entry,
            )
        )

    def on_headers(self, stream: int, headers: dict[str, str], ended: bool) -> None:
        """The server's, before or after its messages."""
        if stream != self.stream:
            return
        proved = self.admitted.is_set() or self._proof.is_answered(headers.items())
        if (status := headers.get("grpc-status")) is not None:
            code = _STATUS.get(int(status) if status.isdecimal() else -1, grpc.StatusCode.UNKNOWN)
            details = urllib.parse.unquote(headers.get("grpc-message", ""))
            if proved:
                self._end(code, details, error_of(self._caller.server, code, details, headers.items()))
            else:
                self._caller.learn(self._proof, headers.items())
                self._end_with_stranger(details)
        elif ended or headers.get(":status", "200") != "200":
            self._end(grpc.StatusCode.UNAVAILABLE, f"no gRPC server: HTTP status {headers.get(':status')}")
        elif not proved:
            self._end_with_stranger()
        else:
            self.admitted.set()

    def _end_with_stranger(self, said: str = "") -> None:
        error = self._caller.impostor(self._authority, said)
        self._end(grpc.StatusCode.UNAVAILABLE, str(error), error)

    def on_message(self, message: bytes) -> None:
        """See Receiver. What comes ahead of the answer to our proof counts for nothing."""
        if not self.admitted.is_set():
            self._end_with_stranger()
        elif not self._ended.done():
            self._receiver.on_message(message)

    def on_writable(self) -> None:
        """See Receiver."""
        if not self._ended.done():
            self._receiver.on_writable()

    def on_end(self) -> None:
        """Without a status: not how a gRPC server ends a call."""
        self._end(grpc.StatusCode.INTERNAL, "the server ended the stream without a status")

    def on_leave(self) -> None:
        """Nothing more will come."""
        self._end(grpc.StatusCode.UNAVAILABLE, "the server closes the connection")

    def on_reset(self, code: int) -> None:
        """The server gave the call up."""
        self._end(grpc.StatusCode.UNAVAILABLE, f"the server reset the stream ({code})")

    def on_message_error(self, error: MessageError) -> None:
        """A reply that cannot be taken."""
        self.send_reset(self.stream, Code.CANCEL)
        self._end(grpc.StatusCode.INTERNAL, f"a reply cannot be taken: {error}")

    def on_lost(self, why: str) -> None:
        """The connection has ended."""
        self._end(grpc.StatusCode.UNAVAILABLE, why)

    def fail(self, error: ProtocolError) -> None:
        """The server does not speak HTTP/2."""
        super().fail(error)
        self._end(grpc.StatusCode.UNAVAILABLE, f"no gRPC server: {error}")

    def _end(self, code: grpc.StatusCode, details: str, error: AuroraError | None = None) -> None:
        if not self._ended.done():
            error = error or error_of(self._caller.server, code, details)
            self._ended.set_result(StreamEndedError(code, details, error))
            self.admitted.set()
            self.transport.close()


async def open_stream(host: str, port: int, method: str, receiver: Receiver, caller: Caller) -> StreamCall:
    """Connects and begins a call of `method` ("/package.Service/Method"), once the server has proved itself.

    Raises StreamEndedError: UNAVAILABLE if nobody answers, or a stranger, within CONNECT_TIMEOUT_S.
    """
    loop = asyncio.get_running_loop()
    call: StreamCall | None = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, call = await loop.create_connection(
                lambda: StreamCall(f"{host}:{port}", method, receiver, caller), host, port
            )
            await call.admitted.wait()
    except OSError as error:  # TimeoutError is one
        if call is not None:
            call.cancel()
        code, details = grpc.StatusCode.UNAVAILABLE, f"no connection to {host}:{port}: {error or 'it takes too long'}"
        raise StreamEndedError(code, details, error_of(caller.server, code, details)) from error
    except BaseException:
        if call is not None:
            call.cancel()
        raise
    return call
