"""The serving side of gRPC streams, each on a connection of its own (see http2.py for why)."""

from __future__ import annotations

import asyncio
import logging
import socket
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import grpc

from aurora_ray.errors import ConfigurationError
from aurora_ray.rpc.admission import ANSWER_KEY, CHALLENGE_KEY, PROOF_KEY, REFUSAL, Admitted, Doorkeeper
from aurora_ray.rpc.frames import PREFACE, Code
from aurora_ray.rpc.http2 import FRAME_BYTES_MAX, SERVER_KEY, Link, MessageError
from aurora_ray.rpc.partition import PARTY, party_of
from aurora_ray.rpc.status import REASON_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_ACCEPT_AGAIN_S: Final = 1.0  # after an error that is ours: too many open files, no memory
# Of connections whose callers have not proved themselves: how long, how many, and the largest frame. When there are
# more, the oldest goes: who belongs to us proves it with the first packet.
_UNPROVED_S: Final = 5.0
_UNPROVED_MAX: Final = 64
_UNPROVED_FRAME_BYTES: Final = 16 << 10
_PLAIN: Final = "".join(chr(c) for c in range(0x20, 0x7F) if c != ord("%"))  # what a status message may hold unescaped


class RefusedError(Exception):
    """Ends a call with this status, sentence and reason (see status.py)."""

    def __init__(self, code: grpc.StatusCode, details: str, reason: str = "") -> None:
        super().__init__(details)
        self.code, self.details, self.reason = code, details, reason


class Handler(Protocol):
    """Serves one call."""

    def on_message(self, message: bytes) -> bytes | None:
        """The reply to a message; None if it comes later, by the `Line`. Raises RefusedError, which ends the call."""


class Line(Protocol):
    """A call's way to its client, besides the replies that `on_message` gives. Good until `on_end`."""

    def send_message(self, message: bytes) -> None:
        """Says what nobody asked for."""

    def answer(self, reply: bytes) -> None:
        """The reply to the first message that has none yet."""

    def refuse(self, error: RefusedError) -> None:
        """Ends the call."""

    def listen(self, *, wanted: bool) -> None:
        """Whether more messages are read. Those that have come already are heard in any case."""


@runtime_checkable
class Talker(Protocol):
    """A handler that uses the line."""

    def on_begin(self, line: Line) -> None:
        """The call has begun."""

    def on_end(self) -> None:
        """The call is over, however it ended."""


class _Connection(Link):
    """One client's connection, with one call at a time."""

    def __init__(self, server: StreamServer) -> None:
        super().__init__()
        self._server = server
        self._greeting = b""
        self._handler: Handler | None = None
        self._admitted: Admitted | None = None
        self._giving_up: asyncio.TimerHandle | None = None
        self._last_stream = 0
        self._unanswered = 0  # messages whose replies come later
        self._ending = False  # ... and no further one will come
        self._deaf = False  # no more are wanted for now
        self.frame_limit = _UNPROVED_FRAME_BYTES

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if self._server.stopped:  # it was accepted a moment before
            transport.abort()
            return
        self._server.connections.add(self)
        self._giving_up = asyncio.get_running_loop().call_later(_UNPROVED_S, transport.abort)
        self._server.add_unproved(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol. Who does not read replies is not heard."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if not self._deaf:
            self.transport.resume_reading()
        super().resume_writing()

    def listen(self, *, wanted: bool) -> None:
        """See Line."""
        self._deaf = not wanted
        if self._deaf:
            self.transport.pause_reading()
        elif self.writable:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. The connection begins with a fixed sequence of bytes."""
        if len(self._greeting) < len(PREFACE):
            greeting = self._greeting + data
            if not PREFACE.startswith(greeting[: len(PREFACE)]):
                self.transport.abort()
                return
            self._greeting, data = greeting[: len(PREFACE)], greeting[len(PREFACE) :]
        super().data_received(data)

    def on_headers(self, stream: int, headers: dict[str, str], ended: bool) -> None:
        """A call, or the trailers of one, which say nothing."""
        if stream == self.stream:
            if ended:
                self.on_end()
            return
        if stream <= self._last_stream or stream % 2 == 0:
            return  # of a call that has ended
        self._last_stream = stream
        if self.stream:
            self.send_reset(stream, Code.REFUSED_STREAM)
            return
        if self._admit(stream, headers) and self._hears(party_of(headers.get("user-agent", ""))):
            self.begin(stream)
            self._serve(headers, ended)

    def _hears(self, party: str) -> bool:
        if PARTY.mutes(party):
            self.transport.abort()
            return False
        PARTY.note(self, party)
        return True

    def _serve(self, headers: dict[str, str], ended: bool) -> None:
        if headers.get(SERVER_KEY, self._server.name) != self._server.name:
            self._refuse(RefusedError(grpc.StatusCode.UNAVAILABLE, f"this is {self._server.name}, not whom you expect"))
            return
        make_handler = self._server.methods.get(headers.get(":path", ""))
        if make_handler is None:
            self._refuse(RefusedError(grpc.StatusCode.UNIMPLEMENTED, "there is no such method at this port"))
            return
        self._handler = make_handler()
        self.send_headers(self._head())
        if isinstance(self._handler, Talker):
            self._handler.on_begin(self)
        if ended:
            self.on_end()

    def _admit(self, stream: int, headers: dict[str, str]) -> bool:
        """Whether the call proves itself; if not, it is told what it takes, and the connection ends."""
        proof = headers.get(PROOF_KEY, "")
        self._admitted = self._server.doorkeeper.admit(headers.get(":path", ""), proof, self._server.door)
        if self._admitted is not None:
            self._prove()
            return True
        self.begin(stream)
        self._end(grpc.StatusCode.UNAUTHENTICATED, REFUSAL, ((CHALLENGE_KEY, self._server.doorkeeper.challenge),))
        self.transport.close()
        return False

    def _prove(self) -> None:
        """From here on the other side is one of ours."""
        self.frame_limit = FRAME_BYTES_MAX
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self._server.unproved.pop(self, None)

    def _head(self) -> tuple[tuple[str, str], ...]:
        answer = ((ANSWER_KEY, self._admitted.answer),) if self._admitted is not None else ()
        return ((":status", "200"), ("content-type", "application/grpc"), *answer)

    def on_message(self, message: bytes) -> None:
        """Answers it."""
        if self._handler is None:
            return
        try:
            reply = self._handler.on_message(message)
        except RefusedError as error:
            self._refuse(error)
        except Exception as error:
            _log.exception("a call failed")
            self._refuse(RefusedError(grpc.StatusCode.UNKNOWN, f"unexpected: {error!r}"))
        else:
            if reply is None:
                self._unanswered += 1
            else:
                self.send_message(reply)

    def answer(self, reply: bytes) -> None:
        """See Line."""
        self._unanswered -= 1
        self.send_message(reply)
        if self._ending and not self._unanswered:
            self.on_end()

    def refuse(self, error: RefusedError) -> None:
        """See Line."""
        self._refuse(error)

    def on_message_error(self, error: MessageError) -> None:
        """Refuses it."""
        self._refuse(RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"not taken: {error}"))

    def on_end(self) -> None:
        """The client has said all; the call ends when all of that is answered."""
        self._ending = self._unanswered > 0
        if not self._ending:
            self._end(grpc.StatusCode.OK, "")

    def on_reset(self, _code: int) -> None:
        """The client gave the call up."""
        self._forget()

    def on_lost(self, _why: str) -> None:
        """Nobody is there any more."""
        self._forget()
        self._prove()
        self._server.connections.discard(self)

    def _refuse(self, error: RefusedError) -> None:
        stream = self.stream
        self.drop_unsent()
        self._end(error.code, error.details, ((REASON_KEY, error.reason),) if error.reason else ())
        self.send_reset(stream, Code.NO_ERROR)  # what the client still sends is of no use

    def _end(self, code: grpc.StatusCode, details: str, more: tuple[tuple[str, str], ...] = ()) -> None:
        headers = [
            ("grpc-status", str(code.value[0])),
            ("grpc-message", urllib.parse.quote(details, safe=_PLAIN)),
            *more,
        ]
        if self._handler is None:
            headers = [*self._head(), *headers]
        self.send_headers(headers, ended=True)
        self._forget()

    def _forget(self) -> None:
        PARTY.forget(self)
        handler, self._handler = self._handler, None
        if isinstance(handler, Talker):
            handler.on_end()
        self._unanswered, self._ending = 0, False
        if self._deaf:
            self.listen(wanted=True)
        self.stream = 0


class StreamServer:
    """Serves `methods` ("/package.Service/Method" -> what makes a handler of a call) at a port.

    `name`: who we are. Calls that say that they expect somebody else are refused, and all that `doorkeeper` does not
    admit.
    """

    def __init__(self, methods: Mapping[str, Callable[[], Handler]], name: str, doorkeeper: Doorkeeper) -> None:
        self.methods, self.name, self.doorkeeper = methods, name, doorkeeper
        self.door = ""
        self.stopped = False
        self.connections: set[_Connection] = set()
        self.unproved: dict[_Connection, None] = {}  # of these, those that nobody has proved yet; the oldest first
        self._listener: socket.socket | None = None
        self._accepted: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int = 0) -> int:
        """Listens; the port. `host` as gRPC takes it, IPv6 in brackets. Raises ConfigurationError if it is taken."""
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"port {port} on {host} cannot be listened on: {error}") from error
        self._listener.setblocking(False)
        self._listen()
        bound: int = self._listener.getsockname()[1]
        self.door = str(bound)
        return bound

    def connection(self) -> asyncio.Protocol:
        """What serves one connection."""
        return _Connection(self)

    def add_unproved(self, connection: _Connection) -> None:
        """One more; when they are too many, the oldest ends."""
        self.unproved[connection] = None
        if len(self.unproved) > _UNPROVED_MAX:
            oldest = next(iter(self.unproved))
            del self.unproved[oldest]
            oldest.cancel()

    async def stop(self) -> None:
        """Ends all calls."""
        self.stopped = True
        listener, self._listener = self._listener, None
        if listener is None:
            return
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
        for connection in tuple(self.connections):
            connection.cancel()
        await asyncio.gather(*self._accepted)

    # asyncio's own server (3.11) loses a socket that is accepted in the moment in which it closes: so we accept.

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            _log.error("no connection can be accepted: %s", error)
            loop.remove_reader(listener)
            loop.call_later(_ACCEPT_AGAIN_S, self._listen)
            return
        task = loop.create_task(self._connect(accepted))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self.connection, accepted)
        except OSError as error:
            _log.debug("a connection ended as it was accepted: %s", error)
            accepted.close()
