"""One connection of a standby's WAL receiver: what it asks, and the WAL that goes to it."""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import TYPE_CHECKING, Final, Protocol

from aurora_ray.engine.postgres.standby import protocol
from aurora_ray.errors import MalformedError

if TYPE_CHECKING:
    from aurora_ray.engine.postgres.standby.protocol import Feedback, StatusUpdate
    from aurora_ray.engine.postgres.timelines import Timelines

_LENGTH: Final = struct.Struct(">I")
STARTUP_TIMEOUT_S: Final = 10.0
UNSENT_BYTES_MAX: Final = 1 << 20  # then the log is not followed any further until the standby has taken some

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What a connection asks of the feed."""

    def identity(self) -> tuple[int, int, int]:
        """System identifier, the newest timeline, and up to where WAL was given out."""

    @property
    def timelines(self) -> Timelines:
        """Those of the volume."""

    async def history(self, timeline: int) -> bytes | None:
        """The history file of a timeline; None if there is none."""

    async def attach(self, connection: Connection, position: int, timeline: int) -> None:
        """From now on WAL of a timeline from `position` on goes to this connection, and to no other."""

    def strayed(self, why: str) -> None:
        """A standby asks for what is not of the volume's WAL."""

    def detach(self, connection: Connection) -> None:
        """It takes no more."""

    def on_update(self, update: StatusUpdate) -> None:
        """The standby says how far it is."""

    def on_feedback(self, feedback: Feedback) -> None:
        """The standby says what its sessions need."""


class Connection:
    """Serves one connection until it ends."""

    def __init__(
        self, source: Source, server_version: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._source, self._server_version = source, server_version
        self._reader, self._writer = reader, writer
        self._left: tuple[int, int] | None = None  # for which timeline the one that is sent was left, and where
        writer.transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)

    async def serve(self) -> None:
        """Answers until the other side goes."""
        try:
            async with asyncio.timeout(STARTUP_TIMEOUT_S):
                if not await self._greet():
                    return
            while (message := await self._message()) is not None:
                kind, body = message
                if kind == b"Q":
                    await self._query(body.rstrip(b"\0").decode("utf-8", "replace"))
                elif kind == b"X":
                    return
        except (OSError, EOFError, TimeoutError, MalformedError) as error:
            _log.info("the connection of a standby ended: %s", error or type(error).__name__)
        finally:
            self._writer.close()

    async def _greet(self) -> bool:
        while True:
            (nbytes,) = _LENGTH.unpack(await self._reader.readexactly(4))
            body = await self._reader.readexactly(_checked(nbytes) - 4)
            (code,) = _LENGTH.unpack_from(body)
            if code in (protocol.SSL_REQUEST, protocol.GSS_REQUEST):
                self._writer.write(b"N")
            elif code >> 16 == protocol.PROTOCOL_3:
                self._writer.write(protocol.welcome(self._server_version))
                return True
            else:
                return False

    async def _message(self) -> tuple[bytes, bytes] | None:
        """The next message; None at the end."""
        try:
            head = await self._reader.readexactly(5)
            return head[:1], await self._reader.readexactly(_checked(_LENGTH.unpack_from(head, 1)[0]) - 4)
        except asyncio.IncompleteReadError:
            return None

    async def _query(self, text: str) -> None:
        command = protocol.parse_command(text)
        system_identifier, timeline, position = self._source.identity()
        if text.strip().upper().startswith("IDENTIFY_SYSTEM"):
            self._writer.write(protocol.identify_system(system_identifier, timeline, position))
        elif isinstance(command, protocol.TimelineHistory):
            content = await self._source.history(command.timeline)
            known = content is not None
            self._writer.write(
                protocol.timeline_history(command.timeline, content or b"")
                if known
                else protocol.refusal(f"there is no history of timeline {command.timeline}")
            )
        elif isinstance(command, protocol.StartReplication):
            await self._start(command.position, command.timeline or timeline)
        else:
            self._writer.write(protocol.refusal(f"not a command of a standby: {text[:100]}"))
        await self._writer.drain()

    async def _start(self, position: int, timeline: int) -> None:
        timelines = self._source.timelines
        end = timelines.end_of(timeline)
        if timeline not in timelines or (end is not None and position > end):
            refused = f"what is at {position:X} of timeline {timeline} does not lead to timeline {timelines.newest}"
            self._writer.write(protocol.refusal(refused))
            self._source.strayed(refused)
        elif end == position:
            self._writer.write(protocol.timeline_left(timelines.after(timeline), end))
        else:
            await self._stream(position, timeline)

    async def _stream(self, position: int, timeline: int) -> None:
        self._left = None
        self._writer.write(protocol.copy_both())
        reading = asyncio.create_task(self._read_updates(), name="read a standby's updates")
        try:
            await self._source.attach(self, position, timeline)
            await reading
        finally:
            reading.cancel()
            self._source.detach(self)
        if self._left is None:
            self._writer.write(protocol.copy_done() + protocol.streaming_ended())
        else:
            self._writer.write(protocol.timeline_left(*self._left))

    async def _read_updates(self) -> None:
        """Until the standby wants no more."""
        while (message := await self._message()) is not None:
            kind, body = message
            if kind == b"c":
                return
            if kind == b"X":
                break
            update = protocol.parse_update(body) if kind == b"d" else None
            if isinstance(update, protocol.Feedback):
                self._source.on_feedback(update)
            elif update is not None:
                self._source.on_update(update)
                if update.answer and self._left is None:
                    self.ask(self._source.identity()[2], answer=False)
        raise EOFError("it went away")

    # ---- for the feed

    async def send(self, position: int, wal: bytes) -> None:
        """WAL from a position on, up to the end of a record; returns when more may come. Raises OSError.

        Messages end there, or at the end of a page: a standby takes what it has of a page for all that it will have
        of a record that begins there and goes on behind it, and finds that damaged.
        """
        view = memoryview(wal)
        at = 0
        while at < len(wal):
            if self._writer.is_closing():  # it may go while it is written to
                raise ConnectionResetError("the standby went away")
            end = at + protocol.CHUNK_BYTES - (position + at) % protocol.CHUNK_BYTES
            self._writer.write(protocol.wal_message(position + at, view[at:end]))
            at = end
        await self._writer.drain()

    def finish(self, following: int, position: int) -> None:
        """All of the timeline was sent: it was left at `position`, for `following`. The standby says that it has it."""
        if not self._writer.is_closing():
            self._left = following, position
            self._writer.write(protocol.copy_done())

    def ask(self, position: int, *, answer: bool = True) -> None:
        """Says how far the WAL is; with `answer`, the standby says at once how far it is."""
        if not self._writer.is_closing():
            self._writer.write(protocol.keepalive(position, answer=answer))

    def close(self) -> None:
        """Ends it."""
        self._writer.close()


def _checked(nbytes: int) -> int:
    if not 8 <= nbytes + 4 <= protocol.MESSAGE_BYTES_MAX:
        raise MalformedError(f"a message of {nbytes} bytes")
    return nbytes
