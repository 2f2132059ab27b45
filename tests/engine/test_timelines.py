"""Timelines of the WAL, and when an opening ends its recovery by promotion."""

import os
import struct
from pathlib import Path

import google_crc32c
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.postgres import promotion
from aurora_ray.engine.postgres.control_file import Recovery
from aurora_ray.engine.postgres.promotion import WAL_BYTES_MIN, pays
from aurora_ray.engine.postgres.standby import begin
from aurora_ray.engine.postgres.timelines import Timelines, path_of_history, timeline_of_history
from aurora_ray.engine.tree_edit import Edit

SEGMENT = 16 << 20
HISTORY = b"""1\t0/5000123\tno recovery target specified

3\t1/A0\tno recovery target specified
# a comment
"""


def test_a_history_file_says_where_each_timeline_was_left() -> None:
    line = Timelines.read(4, HISTORY)
    assert line.ends == {1: 0x5000123, 3: 0x1000000A0}
    assert [timeline in line for timeline in range(6)] == [False, True, False, True, True, False]
    assert (line.end_of(1), line.end_of(3), line.end_of(4)) == (0x5000123, 0x1000000A0, None)
    assert (line.after(1), line.after(3), line.after(4)) == (3, 4, 4)
    assert line.to_look_in(3) == (3, 1, 4)
    assert line.to_look_in(4) == (4, 3, 1)
    assert Timelines(1).to_look_in(1) == (1,)


def test_history_files_have_names() -> None:
    assert path_of_history(26) == "pg_wal/0000001A.history"
    assert timeline_of_history("0000001A.history") == 26
    assert timeline_of_history("0000001A.history.new") is None


def control(
    *, state: int = 6, segment: int = 1, least: tuple[int, int] = (0, 0), backup: int = 0, wal_level: int = 1
) -> bytes:
    content = bytearray(300)
    struct.pack_into("<QIII", content, 0, 77, 1800, 1, state)
    struct.pack_into("<QQI", content, 32, segment * SEGMENT + 5000, segment * SEGMENT + 4000, 1)
    struct.pack_into("<QIxxxxQQ?xxxi", content, 136, *least, backup, 0, False, wal_level)
    struct.pack_into("<d4I", content, 208, 1234567.0, 8192, 1 << 17, 8192, SEGMENT)
    struct.pack_into("<I", content, 296, google_crc32c.value(bytes(content[:296])))
    return bytes(content).ljust(8192, b"\0")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for name in ("global", "pg_wal", "pg_replslot"):
        (tmp_path / name).mkdir()
    (tmp_path / "global" / "pg_control").write_bytes(control())
    (tmp_path / "pg_wal" / f"00000001{0:08X}{1 + WAL_BYTES_MIN // (16 << 20):08X}").touch()
    return tmp_path


def test_it_pays_where_there_is_much_to_replay_after_a_crash(data_dir: Path) -> None:
    assert pays(data_dir)
    (data_dir / "global" / "pg_control").write_bytes(control(segment=2))
    assert not pays(data_dir)
    (data_dir / "pg_wal" / f"00000001{1:08X}{0:08X}").touch()
    assert pays(data_dir)


@pytest.mark.parametrize(
    "content",
    [
        control(state=1),  # it ended in order
        control(least=(5 * SEGMENT, 2)),  # promoted a moment ago
        control(backup=SEGMENT),
        control(wal_level=0),
        b"damaged",
    ],
)
def test_where_it_is_not_a_plain_crash_recovery_ends_as_ever(data_dir: Path, content: bytes) -> None:
    (data_dir / "global" / "pg_control").write_bytes(content)
    assert not pays(data_dir)


@pytest.mark.parametrize("name", ["pg_replslot/one", "backup_label"])
def test_with_slots_and_labels_recovery_ends_as_ever(data_dir: Path, name: str) -> None:
    (data_dir / name).touch()
    assert not pays(data_dir)


def test_a_recovery_knows_the_newest_timeline() -> None:
    assert (Recovery.read(control()).timeline, Recovery.read(control()).newest) == (1, 1)
    promoted = Recovery.read(control(least=(9, 3)))
    assert (promoted.timeline, promoted.newest, promoted.plain) == (1, 3, False)


def test_nothing_is_left_of_what_makes_a_server_promote(data_dir: Path) -> None:
    class Process:
        signals = 0

        def send(self, _: int) -> None:
            self.signals += 1

    ours = promotion.Promotion(data_dir, EngineAccount("us", os.getuid(), os.getgid(), switch=False))
    process = Process()
    before = sorted(os.listdir(data_dir))
    ours.begin()
    ours.urge(process, 10.0)  # type: ignore[arg-type]
    ours.urge(process, 10.01)  # type: ignore[arg-type]
    assert {*os.listdir(data_dir)} - {*before} == {pattern.pattern for pattern in promotion.FILES}
    (data_dir / "promote").unlink()
    ours.urge(process, 10.06)  # type: ignore[arg-type]
    assert process.signals == 2
    assert (data_dir / "promote").exists()
    ours.end()
    ours.end()
    assert sorted(os.listdir(data_dir)) == before


def test_a_standby_does_not_see_a_timeline_that_came_to_nothing(data_dir: Path) -> None:
    (data_dir / "global" / "pg_control").write_bytes(control(least=(9, 3)))
    for timeline in (2, 3, 4):
        (data_dir / path_of_history(timeline)).touch()
    account = EngineAccount("us", os.getuid(), os.getgid(), switch=False)
    assert begin.mark(data_dir, account) == [Edit("pg_wal/00000004.history", None)]
