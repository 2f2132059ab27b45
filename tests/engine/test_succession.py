"""What a standby's files and its volume's must be for it to go on as the writer."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import google_crc32c
import pytest

from aurora_ray.engine.postgres.control_file import CONTROL_PATH, Recovery
from aurora_ray.engine.postgres.succession import succession, switched_on
from aurora_ray.errors import EngineError
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.record import create, mkdir
from tests.engine.wal_builder import PAGE, SEGMENT

if TYPE_CHECKING:
    from pathlib import Path

STANDBY, IN_PRODUCTION = 5, 6
REDO = 3 * SEGMENT + 100
SEGMENTS = tuple(f"pg_wal/00000001{0:08X}{number:08X}".encode() for number in (3, 4, 5))


def control(*, timeline: int = 1, least: tuple[int, int] = (5 * SEGMENT, 1), backup_end: int = 0) -> bytes:
    """Of a standby whose last restartpoint is at REDO, and which calls the data consistent from `least` on."""
    content = bytearray(PAGE)
    struct.pack_into("<QIII", content, 0, 77, 1800, 1, STANDBY)
    struct.pack_into("<QQI", content, 32, REDO + 500, REDO, timeline)
    struct.pack_into("<QIxxxxQQ?xxxi", content, 136, *least, 0, backup_end, False, 1)
    struct.pack_into("<d4I", content, 208, 1234567.0, PAGE, 1 << 17, PAGE, SEGMENT)
    struct.pack_into("<I", content, 296, google_crc32c.value(bytes(content[:296])))
    return bytes(content)


def table(*paths: bytes) -> FileTable:
    made = FileTable()
    for directory in sorted({path[:at] for path in paths for at, byte in enumerate(path) if byte == ord("/")}):
        made.apply(mkdir(directory))
    for file_id, path in enumerate(paths, 1):
        made.apply(create(file_id, path))
    return made


def put(data_dir: Path, content: bytes) -> Path:
    (data_dir / "global").mkdir()
    (data_dir / CONTROL_PATH.decode()).write_bytes(content)
    return data_dir


def test_a_crash_is_recovered_from_the_restartpoint_as_that_of_a_writer(tmp_path: Path) -> None:
    says = succession(put(tmp_path, control()), table(*SEGMENTS))
    assert (says.decides, says.recovers_from, len(says.page)) == (CONTROL_PATH, REDO, PAGE)
    assert says.page[says.first_byte : says.end_byte] == control()[says.first_byte : says.end_byte]
    recovery = Recovery.read(says.page)
    assert (recovery.redo, recovery.needless, recovery.plain) == (REDO, False, True)
    (state,) = struct.unpack_from("<I", says.page, 16)
    assert state == IN_PRODUCTION


@pytest.mark.parametrize("into", [0, 1, PAGE - 1])
def test_what_is_read_first_is_the_segment_in_which_the_wal_ends(tmp_path: Path, into: int) -> None:
    """Its end, of which the volume may have more than was given out; what is whole before that is here."""
    history = (b"pg_wal/00000001.history", 0, 1)
    name = b"pg_wal/000000010000000000000005"
    data_dir = put(tmp_path, control())
    says = succession(data_dir, table(*SEGMENTS), 5 * SEGMENT + 2 * PAGE + into)
    assert says.reads == ((name, 2, 1), history, (name, 0, 2))
    assert says.same == ((name, 2),)
    if into:
        says = succession(data_dir, table(*SEGMENTS), 5 * SEGMENT + into)
        assert (says.reads[0], says.same) == ((name, 0, 1), ((name, 0),)), "of its first page, nothing is"
    nothing = succession(data_dir, table(*SEGMENTS), 5 * SEGMENT)
    assert (nothing.reads, nothing.same) == ((history,), ())


@pytest.mark.parametrize(
    ("content", "paths", "why"),
    [
        (control(), SEGMENTS[1:], "no longer all WAL"),
        (control(), SEGMENTS[::2], "no longer all WAL"),
        (control(), (*SEGMENTS, b"pg_wal/000000020000000000000005"), "another timeline"),
        (control(least=(5 * SEGMENT, 2)), SEGMENTS, "another timeline"),
        (control(), (*SEGMENTS, b"pg_replslot/theirs/state"), "replication slots"),
        (control(), (*SEGMENTS, b"backup_label"), "base backup"),
        (control(backup_end=4 * SEGMENT), SEGMENTS, "base backup"),
        (b"not a control file", SEGMENTS, "cannot be read"),
    ],
)
def test_what_a_recovery_from_there_would_lack_is_refused(
    tmp_path: Path, content: bytes, paths: tuple[bytes, ...], why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        succession(put(tmp_path, content), table(*paths))


def test_the_last_word_of_the_configuration_counts() -> None:
    assert switched_on([]) == []
    assert switched_on([("archive_mode", "on"), ("archive_mode", " Off "), ("summarize_wal", "true")]) == [
        "summarize_wal"
    ]
