"""One end of an HTTP/2 connection that carries one gRPC call at a time, in the event loop and in no other thread.

gRPC's own library hands each message through two or three threads. That is nothing beside reading pages, and most of
what an append of a few kilobytes costs: so the streams that carry redo have this end instead, on both sides, while any
other gRPC client or server may be at the other end (tests hold it against grpcio, as client and as server).

What is here is framing, flow control and liveness (RFC 9113; gRPC's "over HTTP2" protocol document for messages). No
TLS, no pushes, no priorities, no compression, and no second stream: whoever wants those has `channel.py`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import hpack

from aurora_ray.rpc.channel import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, MESSAGE_BYTES_MAX
from aurora_ray.rpc.frames import FRAME_HEAD, Code, Flag, Frame, Kind, ProtocolError, pack_frame, unpadded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Headers = Iterable[tuple[str, str]]

_MAX_STREAMS, _WINDOW, _FRAME, _PUSH = 3, 4, 5, 2  # settings by number
_WINDOW_DEFAULT: Final = 65_535
_WINDOW_MAX: Final = 2**31 - 1
_FRAME_DEFAULT: Final = 16_384
FRAME_BYTES_MAX: Final = 1 << 20  # the largest that we take
_WINDOW_BYTES: Final = 32 << 20  # what the other side may send before we say that we have taken it in
_GRANT_BYTES: Final = 1 << 20  # ... and how often we say so. It is also how a sender on a slow link hears that we live
_HEADER_BYTES_MAX: Final = 16 << 10
_UNSENT_BYTES_MAX: Final = MESSAGE_BYTES_MAX + (16 << 20)  # beyond that the other side does not read at all
_HIGH_WATER_BYTES: Final = 1 << 20
_PREFIX_BYTES: Final = 5  # of a gRPC message: whether it is compressed, and its length

_MESSAGE_HEAD: Final = struct.Struct(">HBBBIBI")  # a DATA frame's, and the prefix of the message that it begins with
_MESSAGE_PREFIX: Final = struct.Struct(">BI")
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")


SERVER_KEY: Final = "aurora-server"  # metadata: whom a client expects, as a port may be another's by now


class MessageError(Exception):
    """A message cannot be taken: too long, or compressed. The call ends."""


class Link(asyncio.Protocol):
    """Frames in and out. Subclasses say what becomes of headers, messages and ends, in the `on_` methods.

    `stream` is the number of the call, 0 before one has begun. Sending never blocks: what the other side has no room
    for waits here, up to the largest message and some more; then the connection breaks. See `writable`.
    """

    def __init__(self) -> None:
        self.stream = 0
        self.frame_limit = FRAME_BYTES_MAX
        self.transport: Any = None
        self._pending = bytearray()  # a frame that is not complete yet
        self._wanted = 0  # ... and from how many bytes on it is
        self._body = bytearray()  # a message, likewise
        self._body_wanted = _PREFIX_BYTES
        self._block = bytearray()  # headers that go on in another frame
        self._block_flags: int | None = None
        self._block_stream = 0
        self._taken_bytes = 0  # not told the other side yet
        self._decoder = hpack.Decoder(max_header_list_size=_HEADER_BYTES_MAX)
        self._encoder = hpack.Encoder()
        self._unsent: deque[memoryview] = deque()  # pieces of messages that wait for room at the other side
        self._unsent_bytes = 0
        self._last = b""  # what follows them
        self._sending = 0  # the call that they belong to, which may have ended otherwise
        self._paused = False  # the socket is full
        self._link_window = self._stream_window = self._first_window = _WINDOW_DEFAULT
        self._frame_max = _FRAME_DEFAULT
        self._heard = True
        self._alive: asyncio.TimerHandle | None = None
        self._on_frame: dict[int, Callable[[Frame], None]] = {
            Kind.DATA: self._on_data,
            Kind.HEADERS: self._on_headers_frame,
            Kind.RST_STREAM: self._on_reset_frame,
            Kind.SETTINGS: self._on_settings,
            Kind.PING: self._on_ping,
            Kind.GOAWAY: self._on_goaway,
            Kind.WINDOW_UPDATE: self._on_window,
            Kind.CONTINUATION: self._on_continuation,
        }

    # ---- for subclasses to say

    def on_headers(self, stream: int, headers: dict[str, str], ended: bool) -> None:
        """A block of headers came; `ended`: nothing follows it."""
        raise NotImplementedError

    def on_message(self, message: bytes) -> None:
        """A message of the call came."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The other side has sent all its messages."""
        raise NotImplementedError

    def on_reset(self, code: int) -> None:
        """The other side gave the call up."""
        raise NotImplementedError

    def on_lost(self, why: str) -> None:
        """The connection has ended, in whatever way."""
        raise NotImplementedError

    def on_leave(self) -> None:
        """The other side says that it will close the connection."""

    def on_writable(self) -> None:
        """`writable` is true again."""

    def on_message_error(self, error: MessageError) -> None:
        """A message is not taken."""
        raise NotImplementedError

    # ---- the connection

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol. Says what we can take."""
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        # asyncio does that itself, except for connections to a listener that was made with no protocol number.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = {_PUSH: 0, _MAX_STREAMS: 1, _WINDOW: _WINDOW_BYTES, _FRAME: FRAME_BYTES_MAX}
        packed = b"".join(_SETTING.pack(*pair) for pair in settings.items())
        grant = _NUMBER.pack(_WINDOW_BYTES - _WINDOW_DEFAULT)
        transport.write(pack_frame(Kind.SETTINGS, 0, 0, packed) + pack_frame(Kind.WINDOW_UPDATE, 0, 0, grant))
        self._alive = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._look_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._alive is not None:
            self._alive.cancel()
        self._unsent.clear()
        self.on_lost(str(exc) if exc is not None else "the other side closed the connection")

    def eof_received(self) -> None:
        """See asyncio.Protocol: the transport closes itself."""
        self.on_leave()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._send_unsent()

    def cancel(self) -> None:
        """Ends the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _look_alive(self) -> None:
        loop = asyncio.get_running_loop()
        if self._heard:
            self._heard = False
            self._alive = loop.call_later(KEEPALIVE_S, self._look_alive)
            return
        self._write(pack_frame(Kind.PING, 0, 0, bytes(8)))
        self._alive = loop.call_later(KEEPALIVE_TIMEOUT_S, self._look_dead)

    def _look_dead(self) -> None:
        if self._heard:
            self._look_alive()
        else:
            self.transport.abort()

    # ---- out

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():  # else asyncio drops it, and warns at the fifth time
            self.transport.write(data)

    @property
    def writable(self) -> bool:
        """Whether a message sent now would go out at once."""
        return not self._paused and not self._unsent

    def send_message(self, message: bytes) -> None:
        """Sends a message of the call."""
        nbytes = len(message) + _PREFIX_BYTES
        if self._unsent or nbytes > self._link_window or nbytes > self._stream_window or nbytes > self._frame_max:
            self._send_later(_MESSAGE_PREFIX.pack(0, len(message)) + message)
            return
        self._link_window -= nbytes
        self._stream_window -= nbytes
        head = _MESSAGE_HEAD.pack(nbytes >> 8, nbytes & 0xFF, 0, 0, self.stream, 0, len(message))
        self._write(head + message)

    def send_headers(self, headers: Headers, *, ended: bool = False) -> None:
        """Sends a block of headers of the call; `ended`: it is the last, and goes after messages that wait."""
        flags = Flag.END_HEADERS | (Flag.END_STREAM if ended else 0)
        block = pack_frame(Kind.HEADERS, flags, self._sending, self._encoder.encode(headers))
        if self._unsent:
            self._last = block
        else:
            self._write(block)

    def send_reset(self, stream: int, code: Code) -> None:
        """Gives a call up."""
        self._write(pack_frame(Kind.RST_STREAM, 0, stream, _NUMBER.pack(code)))

    def _send_later(self, piece: bytes) -> None:
        self._unsent.append(memoryview(piece))  # a view, as frames are cut from its front
        self._unsent_bytes += len(piece)
        if self._unsent_bytes > _UNSENT_BYTES_MAX:
            self.transport.abort()
            return
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and not self._paused:
            room = min(self._link_window, self._stream_window)
            if room <= 0:
                return
            self._send_piece(room)
        if self._paused:
            return
        if self._last:
            self._write(self._last)
            self._last = b""
        self.on_writable()

    def _send_piece(self, room: int) -> None:
        piece = self._unsent[0]
        nbytes = min(len(piece), room, self._frame_max)
        if nbytes == len(piece):
            self._unsent.popleft()
        else:
            self._unsent[0] = piece[nbytes:]
        self._unsent_bytes -= nbytes
        self._link_window -= nbytes
        self._stream_window -= nbytes
        self._write(pack_frame(Kind.DATA, 0, self._sending, bytes(piece[:nbytes])))

    def begin(self, stream: int) -> None:
        """A call begins, with nothing left of the one before."""
        self.stream = self._sending = stream
        self._stream_window = self._first_window
        self._body.clear()
        self._body_wanted = _PREFIX_BYTES
        self.drop_unsent()

    def drop_unsent(self) -> None:
        """Forgets messages that wait for room."""
        self._unsent.clear()
        self._unsent_bytes = 0
        self._last = b""

    # ---- in

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._heard = True
        pending = self._pending
        if pending:
            pending += data
            if len(pending) < self._wanted:
                return
            data = bytes(pending)
            pending.clear()
        try:
            at = self._take_frames(data)
        except ProtocolError as error:
            self.fail(error)
            return
        if at < len(data):
            pending += memoryview(data)[at:]

    def _take_frames(self, data: bytes) -> int:
        """Handles the complete frames; where the rest begins."""
        at, end, closing = 0, len(data), self.transport.is_closing
        self._wanted = FRAME_HEAD.size
        while end - at >= FRAME_HEAD.size and not closing():
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, at)
            nbytes = high << 8 | low
            if nbytes > self.frame_limit:
                raise ProtocolError(Code.FRAME_SIZE_ERROR, f"a frame of {nbytes} bytes")
            content = at + FRAME_HEAD.size
            if content + nbytes > end:
                self._wanted = FRAME_HEAD.size + nbytes
                break
            at = content + nbytes
            if self._block_flags is not None and kind != Kind.CONTINUATION:
                raise ProtocolError(Code.PROTOCOL_ERROR, "headers were not finished")
            handle = self._on_frame.get(kind)
            if handle is not None:  # types that nobody knows are to be ignored
                handle(Frame(flags, stream & _WINDOW_MAX, data[content:at]))
            elif kind == Kind.PUSH_PROMISE:
                raise ProtocolError(Code.PROTOCOL_ERROR, "a push, which was forbidden")
        return at if not closing() else end

    def fail(self, error: ProtocolError) -> None:
        """Says why, and ends the connection."""
        reason = _NUMBER.pack(self.stream) + _NUMBER.pack(error.code) + str(error).encode()
        self._write(pack_frame(Kind.GOAWAY, 0, 0, reason))
        self.transport.close()

    def _on_data(self, frame: Frame) -> None:
        flags, stream, data = frame
        self._count_taken(len(data))
        if stream != self.stream or not stream:
            if not stream:
                raise ProtocolError(Code.PROTOCOL_ERROR, "data of no stream")
            return  # of a call that we have ended
        if flags & Flag.PADDED:
            data = unpadded(data)
        body = self._body
        if not body and len(data) >= _PREFIX_BYTES:
            compressed, nbytes = _MESSAGE_PREFIX.unpack_from(data)
            if not compressed and nbytes == len(data) - _PREFIX_BYTES and nbytes <= MESSAGE_BYTES_MAX:
                self.on_message(data[_PREFIX_BYTES:])  # as almost always: one frame, one message
                data = b""
        if data:
            body += data
            if len(body) >= self._body_wanted:
                self._take_messages()
        if flags & Flag.END_STREAM and stream == self.stream:
            self.on_end()

    def _take_messages(self) -> None:
        body, at, stream = self._body, 0, self.stream
        self._body_wanted = _PREFIX_BYTES
        messages = []
        while len(body) - at >= _PREFIX_BYTES:
            compressed, nbytes = _MESSAGE_PREFIX.unpack_from(body, at)
            if compressed or nbytes > MESSAGE_BYTES_MAX:
                self.on_message_error(MessageError("a compressed message" if compressed else f"one of {nbytes} bytes"))
                return
            end = at + _PREFIX_BYTES + nbytes
            if end > len(body):
                self._body_wanted = end - at
                break
            messages.append(bytes(memoryview(body)[at + _PREFIX_BYTES : end]))
            at = end
        del body[:at]
        for message in messages:
            if stream == self.stream:  # else the call has ended over one of them
                self.on_message(message)

    def _count_taken(self, nbytes: int) -> None:
        self._taken_bytes += nbytes
        if self._taken_bytes >= _GRANT_BYTES:
            grant = _NUMBER.pack(self._taken_bytes)
            self._taken_bytes = 0
            for stream in {0, self.stream}:
                self._write(pack_frame(Kind.WINDOW_UPDATE, 0, stream, grant))

    def _on_headers_frame(self, frame: Frame) -> None:
        flags, stream, data = frame
        if not stream:
            raise ProtocolError(Code.PROTOCOL_ERROR, "headers of no stream")
        if flags & Flag.PADDED:
            data = unpadded(data)
        if flags & Flag.PRIORITY:
            data = data[5:]
        self._block_flags, self._block_stream = flags, stream
        self._on_continuation(Frame(flags, stream, data))

    def _on_continuation(self, frame: Frame) -> None:
        flags, stream, data = frame
        if self._block_flags is None or stream != self._block_stream:
            raise ProtocolError(Code.PROTOCOL_ERROR, "a continuation of nothing")
        self._block += data
        if len(self._block) > _HEADER_BYTES_MAX:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "too many headers")
        if not flags & Flag.END_HEADERS:
            return
        ended = bool(self._block_flags & Flag.END_STREAM)
        block, self._block_flags = bytes(self._block), None
        self._block.clear()
        try:
            headers: dict[str, str] = dict(cast("Headers", self._decoder.decode(block)))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise ProtocolError(Code.COMPRESSION_ERROR, f"headers cannot be read: {error}") from error
        self.on_headers(stream, headers, ended)

    def _on_reset_frame(self, frame: Frame) -> None:
        _, stream, data = frame
        if len(data) != _NUMBER.size:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "a reset without its reason")
        if stream == self.stream:
            self.on_reset(_NUMBER.unpack(data)[0])

    def _on_settings(self, frame: Frame) -> None:
        flags, stream, data = frame
        if flags & Flag.ACK:
            return
        if stream or len(data) % _SETTING.size:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "settings of a wrong length")
        for number, value in _SETTING.iter_unpack(data):
            if number == _FRAME and _FRAME_DEFAULT <= value < 1 << 24:
                self._frame_max = value
            elif number == _WINDOW:
                if value > _WINDOW_MAX:
                    raise ProtocolError(Code.FLOW_CONTROL_ERROR, "a window beyond all bounds")
                self._stream_window += value - self._first_window
                self._first_window = value
            # The size of the table of headers may only shrink what our encoder keeps; ours keeps next to nothing.
            elif number == 1:
                self._encoder.header_table_size = min(value, 4096)
        self._write(pack_frame(Kind.SETTINGS, Flag.ACK, 0))
        self._send_unsent()

    def _on_ping(self, frame: Frame) -> None:
        flags, _, data = frame
        if len(data) != 8:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "a ping of a wrong length")
        if not flags & Flag.ACK and not self._paused:  # who floods us with pings gets no answer to all of them
            self._write(pack_frame(Kind.PING, Flag.ACK, 0, data))

    def _on_goaway(self, _: Frame) -> None:
        self.transport.close()
        self.on_leave()

    def _on_window(self, frame: Frame) -> None:
        _, stream, data = frame
        if len(data) != _NUMBER.size:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "a window update of a wrong length")
        grant = _NUMBER.unpack(data)[0] & _WINDOW_MAX
        if not stream:
            self._link_window += grant
        elif stream == self._sending:
            self._stream_window += grant
        if max(self._link_window, self._stream_window) > _WINDOW_MAX:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, "a window beyond all bounds")
        if self._unsent:
            self._send_unsent()
