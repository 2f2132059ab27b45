"""One connection of a replica's receiver: what it asks, and the events that go to it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, Final, Protocol

from aurora_ray.engine.mariadb.follow import protocol
from aurora_ray.errors import AuroraError

if TYPE_CHECKING:
    from aurora_ray.engine.mariadb.follow.protocol import Dump

LOGIN_TIMEOUT_S: Final = 10.0
UNSENT_BYTES_MAX: Final = 1 << 20  # then the log is not followed any further until the replica has taken some

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What a connection asks of the feed."""

    @property
    def server_id(self) -> int:
        """The writer's."""

    async def attach(self, connection: Connection, dump: Dump) -> None:
        """From now on events go to this connection, and to no other. Raises AuroraError if they cannot be had."""

    def detach(self, connection: Connection) -> None:
        """It takes no more."""


class Connection:
    """Serves one connection until it ends."""

    def __init__(
        self,
        source: Source,
        version: str,
        password: str,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._source, self._version, self._password = source, version, password
        self._reader, self._writer = streams
        self._sequence = 0
        self._writer.transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)

    async def serve(self) -> None:
        """Answers until the other side goes."""
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                if not await self._log_in():
                    return
            while await self._answer_one():
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        except AuroraError as error:
            _log.warning("a replica cannot be fed: %s", error)
            await self._refuse(str(error))
        finally:
            self._source.detach(self)
            self.close()

    async def send_event(self, event: bytes) -> None:
        """Sends it, and waits while there is much that was not taken. Raises OSError."""
        self._put(b"\0" + event)
        await self._writer.drain()

    def close(self) -> None:
        """Ends it."""
        self._writer.close()

    async def _log_in(self) -> bool:
        scramble = bytes(secrets.randbelow(94) + 33 for _ in range(20))
        self._put(protocol.greeting(f"{self._version}-MariaDB", scramble))
        response = await self._read()
        if not protocol.proves(response, scramble, self._password):
            await self._refuse("that is not the password of this run")
            return False
        self._put(protocol.OK)
        return True

    async def _answer_one(self) -> bool:
        """Answers a request; False: it was the last one."""
        request = await self._read()
        command = request[0] if request else protocol.COM_QUIT
        if command == protocol.COM_QUIT:
            return False
        if command == protocol.COM_BINLOG_DUMP:
            await self._source.attach(self, protocol.dump_of(request))
            await self._reader.read()  # it says nothing more; its end is
            return False
        packets = [protocol.OK]
        if command == protocol.COM_QUERY:
            packets = protocol.answer(request[1:].decode(errors="replace"), self._facts())
        for packet in packets:
            self._put(packet)
        await self._writer.drain()
        return True

    def _facts(self) -> dict[str, str]:
        return {
            "UNIX_TIMESTAMP": str(int(time.time())),
            "SERVER_ID": str(self._source.server_id),
            "master_binlog_checksum": "CRC32",
            "COLLATION_SERVER": "utf8mb4_general_ci",
            "TIME_ZONE": "SYSTEM",
            "gtid_domain_id": "0",
        }

    async def _refuse(self, message: str) -> None:
        try:
            self._put(protocol.denial(message))
            await self._writer.drain()
        except OSError:
            pass

    async def _read(self) -> bytes:
        """The next request. Raises IncompleteReadError at the end."""
        payload = b""
        while True:
            head = await self._reader.readexactly(4)
            nbytes = int.from_bytes(head[:3], "little")
            payload += await self._reader.readexactly(nbytes)
            if nbytes < protocol.PACKET_BYTES_MAX or len(payload) > UNSENT_BYTES_MAX:
                self._sequence = head[3] + 1
                return payload

    def _put(self, payload: bytes) -> None:
        packets, self._sequence = protocol.framed(payload, self._sequence)
        self._writer.write(packets)
