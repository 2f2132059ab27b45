"""The small parts of a standby's feed: which files are WAL, how far it has replayed, what is said on the wire."""

import asyncio
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.postgres.control_file import ControlFile
from aurora_ray.engine.postgres.dirs import feed_dir
from aurora_ray.engine.postgres.standby import protocol
from aurora_ray.engine.postgres.standby.connection import Connection
from aurora_ray.engine.postgres.standby.feed import PORT, PostgresFeed
from aurora_ray.engine.postgres.standby.files import ConfigFiles
from aurora_ray.engine.postgres.standby.segments import WalFiles
from aurora_ray.engine.postgres.standby.takeover import Takeover
from aurora_ray.engine.progress import POINTS_MAX, Progress
from aurora_ray.engine.tree_edit import Edit
from aurora_ray.errors import MalformedError
from aurora_ray.log import record as records
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.pages import scan
from aurora_ray.log.record import Record, RecordBuilder
from tests.support.polling import poll_until

SEGMENT = 16 << 20
FIRST = b"pg_wal/000000010000000000000001"
SECOND = b"pg_wal/000000010000000000000002"
LATER = b"pg_wal/000000010000000100000003"


def apply(files: WalFiles, *changes: Record) -> None:
    builder = RecordBuilder(0)
    for change in changes:
        builder.add(change)
    (part,) = builder.take()
    files.apply(part.payload, scan(part.payload, 0, {}))


def table(*changes: Record) -> FileTable:
    found = FileTable()
    for change in (records.mkdir(b"pg_wal"), records.mkdir(b"base"), *changes):
        found.apply(change)
    return found


def test_segments_of_a_mounted_volume_are_known_with_their_places() -> None:
    """Nobody saw what was written to them."""
    files = WalFiles(table(records.create(7, FIRST), records.extent(7, 0, 3), records.create(8, b"base/1")), SEGMENT)
    file = files.at(SEGMENT + 5, (1,))
    assert file is not None
    assert (file.file_id, list(file.extents), file.stale) == (7, [3], True)
    assert 8 not in files
    assert files.at(0, (1,)) is None
    assert files.timeline == 1


def test_a_segment_that_is_made_and_named_is_one_from_its_name_on() -> None:
    files = WalFiles(table(), SEGMENT)
    apply(files, records.create(9, b"pg_wal/xlogtemp.77"), records.extent(9, 1, 5))
    assert files.segment(9) is None
    apply(files, records.link(9, b"pg_wal/xlogtemp.77", SECOND), records.unlink(9, b"pg_wal/xlogtemp.77"))
    file = files.segment(9)
    assert file is not None
    assert (file.start, file.stale, list(file.extents)[1]) == (2 * SEGMENT, False, 5)


def test_a_segment_that_becomes_a_later_one_has_old_content() -> None:
    files = WalFiles(table(records.create(7, FIRST)), SEGMENT)
    apply(files, records.rename(7, FIRST, LATER))
    file = files.at((256 + 3) * SEGMENT, (1,))
    assert file is not None
    assert file.stale
    assert files.at(SEGMENT, (1,)) is None


def test_segments_go_and_other_files_are_no_concern() -> None:
    files = WalFiles(table(records.create(7, FIRST), records.create(8, SECOND)), SEGMENT)
    apply(files, records.unlink(7, FIRST), records.create(10, b"base/1"), records.extent(10, 0, 1))
    assert files.at(SEGMENT, (1,)) is None
    apply(files, Record(records.RecordType.DROP, file_id=8))
    assert files.at(2 * SEGMENT, (1,)) is None
    assert 10 not in files


def test_a_newer_timeline_is_noticed() -> None:
    files = WalFiles(table(records.create(7, FIRST)), SEGMENT)
    apply(files, records.create(8, b"pg_wal/000000020000000000000001"))
    assert files.timeline == 2
    assert files.at(SEGMENT, (2, 1)) is files.segment(8)
    assert files.at(SEGMENT, (1, 2)) is files.segment(7)
    assert files.at(SEGMENT, (3,)) is None


def test_a_standby_is_as_far_as_what_it_has_replayed() -> None:
    progress = Progress(100)
    progress.given(1000, 110, 1.0)
    progress.given(2000, 120, 2.0)
    progress.given(2000, 125, 3.0)
    assert (progress.replayed_lsn, progress.waits_since()) == (100, 1.0)
    progress.applied(1500)
    assert (progress.replayed_lsn, progress.waits_since()) == (110, 2.0)
    progress.applied(2000)
    assert (progress.replayed_lsn, progress.waits_since()) == (125, None)
    progress.given(2000, 130, 4.0)  # a flush without WAL
    assert (progress.replayed_lsn, progress.waits_since()) == (130, None)


def test_a_standby_that_replays_nothing_is_later_and_later_and_costs_no_more() -> None:
    progress = Progress(100)
    for n in range(POINTS_MAX + 100):
        progress.given(1000 + n, 200 + n, float(n))
    assert progress.waits_since() == 0.0
    assert len(progress._points) == POINTS_MAX
    progress.applied(1000 + POINTS_MAX + 99)
    assert progress.replayed_lsn == 200 + POINTS_MAX + 99


def test_what_comes_while_nobody_is_there_counts_from_then_on() -> None:
    progress = Progress(100)
    progress.missed(5.0)
    progress.missed(6.0)
    assert progress.waits_since() == 5.0
    progress.given(1000, 110, 7.0)
    assert progress.waits_since() == 5.0
    progress.applied(1000)
    assert (progress.replayed_lsn, progress.waits_since()) == (110, None)


def test_commands_and_updates_are_understood() -> None:
    start = protocol.StartReplication((1 << 32) + 0x2000000, 3)
    assert protocol.parse_command("START_REPLICATION 1/2000000 TIMELINE 3") == start
    assert protocol.parse_command("START_REPLICATION SLOT s PHYSICAL 1/2000000 TIMELINE 3") == start
    assert protocol.parse_command("TIMELINE_HISTORY 2") == protocol.TimelineHistory(2)
    assert protocol.parse_command("SELECT 1") is None
    update = protocol.parse_update(b"r" + struct.pack(">QQQqB", 30, 20, 10, 0, 1))
    assert update == protocol.StatusUpdate(30, 20, 10, answer=True)
    feedback = protocol.parse_update(b"h" + struct.pack(">qIIII", 0, 700, 1, 800, 1))
    assert feedback == protocol.Feedback(700, 800)
    with pytest.raises(MalformedError):
        protocol.parse_update(b"r123")


def test_a_control_file_is_read_or_refused(tmp_path: Path) -> None:
    content = bytearray(292)
    struct.pack_into("<Q", content, 0, 4711)
    struct.pack_into("<QI", content, 40, 99, 3)
    struct.pack_into("<QI", content, 136, 0, 2)
    struct.pack_into("<5i", content, 180, 200, 9, 10, 0, 64)
    struct.pack_into("<d4I", content, 208, 1234567.0, 8192, 131072, 8192, SEGMENT)
    assert ControlFile.read(_sealed(content)) == ControlFile(4711, (200, 9, 10, 0, 64), SEGMENT, 3)
    struct.pack_into("<QI", content, 136, 5, 4)
    assert ControlFile.read(_sealed(content)).timeline == 4, "it was promoted, and has written no checkpoint since"
    struct.pack_into("<I", content, 216, 4096)
    with pytest.raises(MalformedError, match="layout is not known"):
        ControlFile.read(_sealed(content))


def _sealed(content: bytearray) -> bytes:
    import google_crc32c

    return bytes(content) + struct.pack("<I", google_crc32c.value(bytes(content)))


def config_change(files: ConfigFiles, *changes: Record) -> set[int]:
    builder = RecordBuilder(0)
    for change in changes:
        builder.add(change)
    (part,) = builder.take()
    return files.apply(part.payload, scan(part.payload, 0, {}))


def test_configuration_files_are_known_by_their_names_however_they_come_to_them() -> None:
    files = ConfigFiles(table(records.create(7, b"pg_hba.conf"), records.create(8, b"base/1")))
    assert 7 in files
    assert 8 not in files
    beside = b"postgresql.auto.conf.tmp"
    assert config_change(files, records.create(9, beside), records.extent(9, 0, 3)) == set()
    assert config_change(files, records.rename(9, beside, b"postgresql.auto.conf")) == {9}
    file = files.of(9)
    assert file is not None
    assert list(file.extents) == [3]
    assert config_change(files, records.rename(9, b"postgresql.auto.conf", b"base/9")) == set()
    assert files.of(9) is None


async def test_only_the_newest_content_is_taken_over_and_then_read() -> None:
    done: list[str] = []

    async def edit(edits: Sequence[Edit]) -> None:
        done.extend(f"{one.path}={one.content}" for one in edits)

    class Server:
        def send(self, signal_: int) -> None:
            done.append("read")

    takeover = Takeover(edit, cast("Any", Server))
    takeover.take({"a": "1"})
    takeover.take({"a": "2", "b": "3"})
    await poll_until(lambda: "read" in done, what="it is done")
    assert done == ["a=2", "b=3", "read"]
    await takeover.close()


async def test_a_feed_that_is_closed_while_a_standby_is_connected_ends_without_a_fault(tmp_path: Path) -> None:
    async def nothing(*_: object) -> Any:
        return None

    account = EngineAccount("us", os.getuid(), os.getgid(), switch=False)
    found = table(records.create(7, FIRST), records.extent(7, 0, 3))
    control = ControlFile(1, (100, 8, 10, 0, 64), SEGMENT, 1)
    takeover = Takeover(nothing, cast("Any", None))
    feed = PostgresFeed(
        tmp_path,
        account,
        major=18,
        control=control,
        own=(0, 0, 0, 0, 0),
        table=found,
        lsn=1,
        read=cast("Any", nothing),
        takeover=takeover,
    )
    await feed.open()
    _, writer = await asyncio.open_unix_connection(feed_dir(tmp_path) / f".s.PGSQL.{PORT}")
    await poll_until(lambda: bool(feed._serving), what="it is served")
    await feed.close()
    writer.close()
    await writer.wait_closed()


class _Kept:
    """A stream that keeps what is written."""

    def __init__(self) -> None:
        self.transport, self.messages = self, list[bytes]()

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, message: bytes) -> None:
        self.messages.append(message)

    async def drain(self) -> None:
        pass


async def test_long_wal_is_cut_at_ends_of_pages_alone() -> None:
    kept, position, wal = _Kept(), 0x2003A70, os.urandom(3 * protocol.CHUNK_BYTES + 123)
    await Connection(cast("Any", None), "18.0", cast("Any", kept), cast("Any", kept)).send(position, wal)
    parts = [(struct.unpack_from(">Q", message, 6)[0], message[30:]) for message in kept.messages]
    assert b"".join(part for _, part in parts) == wal
    assert [start for start, _ in parts] == [position, *(start + len(part) for start, part in parts[:-1])]
    assert len(parts) > 3
    assert all((start + len(part)) % 8192 == 0 for start, part in parts[:-1])
    assert all(len(part) <= protocol.CHUNK_BYTES for _, part in parts)
