"""The parts of what a MariaDB replica is fed with: events, files, the protocol."""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pymysql
import pytest

from aurora_ray.engine.mariadb.follow import events, protocol
from aurora_ray.engine.mariadb.follow.connection import Connection
from aurora_ray.engine.mariadb.follow.events import HEADER, IN_USE, EventType, Groups, whole_events
from aurora_ray.engine.mariadb.follow.files import BinlogFiles
from aurora_ray.errors import EngineError, MalformedError
from aurora_ray.log import record as records
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.pages import scan
from aurora_ray.log.record import Record, RecordBuilder

PASSWORD = "a password of that run"  # noqa: S105


def event(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    head = HEADER.pack(7, kind, 42, HEADER.size + len(body) + 4, 0, 0)
    checksum = zlib.crc32(head + body).to_bytes(4, "little")
    return head[:17] + flags.to_bytes(2, "little") + body + checksum


def gtid(*, standalone: bool) -> bytes:
    return event(EventType.GTID, struct.pack("<QIB", 1, 0, 1 if standalone else 0) + bytes(6))


def query(text: bytes) -> bytes:
    return event(EventType.QUERY, struct.pack("<IIBHH", 1, 0, 1, 0, 2) + b"xx" + b"d\0" + text)


def test_what_is_not_whole_is_not_an_event_yet() -> None:
    one, two = event(EventType.XID, bytes(8)), event(EventType.TABLE_MAP, b"abc" * 100)
    log = bytearray(one + two)
    assert [each.kind for each in whole_events(log)] == [EventType.XID, EventType.TABLE_MAP]
    for at in (len(one) + 1, len(log) - 1, len(log) - 50):
        damaged = bytearray(log)
        damaged[at] ^= 1
        assert [each.kind for each in whole_events(damaged)] == [EventType.XID]
    for cut in range(len(one), len(log)):
        assert len([*whole_events(log[:cut])]) == 1
    assert not [*whole_events(bytearray(100))], "zeros are what was not written yet"


def test_a_files_first_event_is_whole_whether_the_file_is_in_use_or_not() -> None:
    body = bytes(range(100)) + bytes([1])
    for flags in (0, IN_USE):
        assert [each.kind for each in whole_events(event(EventType.FORMAT, body, flags))] == [EventType.FORMAT]
    sent = events.format_of(event(EventType.FORMAT, body, IN_USE), from_start=False)
    assert sent[events.FLAGS_AT] == 0
    assert sent[71:75] == bytes(4), "not a server that has just begun"
    assert len([*whole_events(sent)]) == 1
    assert events.has_checksums(event(EventType.FORMAT, body))
    assert not events.has_checksums(event(EventType.FORMAT, body[:-1] + b"\0"))


def recovered(*parts: bytes) -> int:
    """Of these events, how many a server finds committed."""
    log, groups, at = b"".join(parts), Groups(0), 0
    for each in whole_events(log):
        groups.take(log, each, at)
        at += each.nbytes
    ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
    return ends.index(groups.end) + 1 if groups.end else 0


def test_only_whole_groups_are_recovered() -> None:
    rows, xid = event(EventType.TABLE_MAP), event(EventType.XID, bytes(8))
    begin = gtid(standalone=False)
    assert recovered(event(EventType.GTID_LIST), event(EventType.CHECKPOINT)) == 2
    assert recovered(event(EventType.CHECKPOINT), begin, rows, rows) == 1
    assert recovered(begin, rows, xid) == 3
    assert recovered(begin, query(b"BEGINNING"), rows) == 0
    assert recovered(begin, query(b"COMMIT"), begin, query(b"ROLLBACK"), begin) == 4
    assert recovered(gtid(standalone=True), query(b"create table t"), begin) == 2
    assert recovered(gtid(standalone=True), event(EventType.INTVAR)) == 0
    assert recovered(begin, rows, event(EventType.XA_PREPARE, b"x"), rows) == 4


def applied(files: BinlogFiles, *changes: Record) -> None:
    builder = RecordBuilder(0)
    for change in changes:
        builder.add(change)
    (part,) = builder.take()
    files.apply(part.payload, scan(part.payload, 0, {}))


def test_binary_logs_are_known_by_their_names() -> None:
    files = BinlogFiles(FileTable())
    assert files.newest is None
    applied(files, records.create(5, b"binlog.000001"), records.create(6, b"binlog.index"), records.extent(5, 1, 3))
    applied(files, records.create(7, b"binlog.000002"), records.create(8, b"shop/binlog.000003"))
    assert files.newest is not None
    assert (files.newest.name, 5 in files, 6 in files, 8 in files) == ("binlog.000002", True, False, False)
    (first, second) = files.numbered(1), files.numbered(2)
    assert first is not None
    assert second is not None
    assert [*first.extents][1] == 3
    applied(files, records.drop(5))
    assert files.numbered(1) is None
    assert not files.restarted
    applied(files, records.create(9, b"binlog.000001"))
    assert files.restarted


class Source:
    server_id = 42
    attached: protocol.Dump | None = None

    async def attach(self, connection: Connection, dump: protocol.Dump) -> None:
        self.attached = dump
        if dump.position == 13:
            raise EngineError("there is no such place")
        await connection.send_event(events.rotation(42, dump.name, dump.position))
        await connection.send_event(bytes(protocol.PACKET_BYTES_MAX))

    def detach(self, connection: Connection) -> None:
        self.attached = None


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def serve(*streams: Any) -> None:
        await Connection(Source(), "10.11.19", PASSWORD, streams).serve()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def ask(port: int, password: str) -> list[Any]:
    with pymysql.connect(host="127.0.0.1", port=port, user="u", password=password, autocommit=None) as session:
        with session.cursor() as cursor:
            found = []
            for statement in ("SELECT @@GLOBAL.SERVER_ID", "SET @x = 1", "SHOW VARIABLES LIKE 'SERVER_ID'"):
                cursor.execute(statement)
                found += cursor.fetchall()
        return found


async def test_a_replica_is_answered_what_it_asks(port: int) -> None:
    assert await asyncio.to_thread(ask, port, PASSWORD) == [("42",), ("SERVER_ID", "42")]
    with pytest.raises(pymysql.MySQLError, match="not the password"):
        await asyncio.to_thread(ask, port, "another")


def dump(port: int, position: int) -> list[bytes]:
    with pymysql.connect(host="127.0.0.1", port=port, user="u", password=PASSWORD, autocommit=None) as session:
        request = struct.pack("<IHI", position, 0, 7) + b"binlog.000001"
        session._execute_command(protocol.COM_BINLOG_DUMP, request)
        return [session._read_packet().get_all_data() for _ in range(2)]


@pytest.mark.allowed_logs(r"a replica cannot be fed")
async def test_a_replica_is_sent_events_from_where_it_wants(port: int) -> None:
    first, second = await asyncio.to_thread(dump, port, 99)
    assert first == b"\0" + events.rotation(42, "binlog.000001", 99)
    assert len(second) == 1 + protocol.PACKET_BYTES_MAX  # in two packets
    with pytest.raises(pymysql.MySQLError, match="no such place"):
        await asyncio.to_thread(dump, port, 13)
    with pytest.raises(MalformedError):
        protocol.dump_of(b"\x12")
