"""Which pages a recovery will read, by the records of its WAL. (That they come: tests/compute/test_next_mount.py.)"""

import random
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import pytest

from aurora_ray.engine._wal import blocks
from aurora_ray.engine.base import PagesOf
from aurora_ray.engine.postgres.control_file import Recovery
from aurora_ray.engine.postgres.foresight import foresee
from aurora_ray.errors import MalformedError
from tests.engine.wal_builder import PAGE, SEGMENT, Wal

Block = tuple[int, int, int, int, int]
IMAGE, INIT, SAME = 0x10, 0x40, 0x80
TABLE, INDEX = (1663, 5, 16384), (1663, 5, 16385)


def block(number: int, relation: tuple[int, int, int] | None, *, fork: int = 0, flags: int = 0, at: int = 0) -> bytes:
    """The header of a block in a record; `relation` None: that of the block before."""
    if relation is None:
        return struct.pack("<BBHI", at, fork | flags | SAME, 0, number)
    return struct.pack("<BBH4I", at, fork | flags, 0, *relation, number)


def found(wal: Wal, *, size: int | None = None) -> list[Block]:
    content = wal.pages() if size is None else wal.pages()[:size].ljust(-(-size // PAGE) * PAGE, b"\0")
    refs = blocks(content, wal.base, wal.starts[0], 0, SEGMENT, False)[3]
    return list(struct.iter_unpack("=5I", refs))  # type: ignore[arg-type]


def test_the_blocks_of_records_are_found_each_once_and_in_order() -> None:
    wal = Wal()
    wal.add(block(7, TABLE) + block(9, None, at=1) + bytes((255, 3)) + b"abc")
    wal.add(block(3, INDEX) + block(1, TABLE, fork=2, at=1) + bytes((255, 0)))
    wal.add(block(7, TABLE))
    wal.add(bytes((255, 3)) + b"abc")  # of no block
    assert found(wal) == [(*TABLE, 0, 7), (*TABLE, 0, 9), (*TABLE, 2, 1), (*INDEX, 0, 3)]


def test_a_block_that_the_record_makes_anew_is_not_read_nor_are_those_behind_an_image() -> None:
    wal = Wal()
    wal.add(block(1, TABLE, flags=INIT) + block(2, None, at=1) + block(3, INDEX, flags=IMAGE, at=2) + bytes(200))
    assert found(wal) == [(*TABLE, 0, 2)]


@pytest.mark.parametrize("seed", range(10))
def test_of_any_prefix_the_whole_records_count(seed: int) -> None:
    rng = random.Random(seed)
    wal = Wal()
    numbers = rng.sample(range(1 << 32), 60)
    for number in numbers:
        data = rng.randbytes(rng.choice((0, 90, 9000)))
        wal.add(block(number, TABLE) + struct.pack("<BI", 254, len(data)) + data)
    for _ in range(30):
        size = rng.randrange(1, len(wal.content))
        whole = sum(wal.base + size > end - 8 for end in wal.ends)  # one that ends in padding is whole before it
        sure = sum(wal.base + size >= end for end in wal.ends)
        got = {number for *_, number in found(wal, size=size)}
        assert got in (set(numbers[:whole]), set(numbers[:sure]))


@pytest.mark.parametrize("seed", range(200))
def test_whatever_a_record_holds_is_read_within_it(seed: int) -> None:
    rng = random.Random(seed)
    wal = Wal()
    for _ in range(20):
        parts = [block(rng.randrange(9), TABLE, flags=rng.choice((0, SAME, INIT)), at=rng.randrange(40)) for _ in "123"]
        body = b"".join(parts) + rng.randbytes(rng.randrange(60))
        wal.add(body[: rng.randrange(len(body) + 1)])
    for _, _, _, fork, _ in found(wal):
        assert fork < 16


def control(wal: Wal, *, state: int = 6) -> bytes:
    """A control file whose last checkpoint's redo point is the first record."""
    content = bytearray(300)
    struct.pack_into("<QIII", content, 0, 77, 1800, 1, state)
    struct.pack_into("<QQI", content, 32, wal.starts[-1], wal.starts[0], 1)
    struct.pack_into("<d4I", content, 208, 1234567.0, PAGE, 1 << 17, PAGE, SEGMENT)
    struct.pack_into("<I", content, 296, google_crc32c.value(bytes(content[:296])))
    return bytes(content).ljust(PAGE, b"\0")


def data_dir_with(wal: Wal, directory: Path, control_file: bytes) -> Path:
    (directory / "global").mkdir()
    (directory / "global" / "pg_control").write_bytes(control_file)
    (directory / "pg_wal").mkdir()
    content = wal.pages()
    for at in range(0, len(content), SEGMENT):
        number = (wal.base + at) // SEGMENT
        name = f"00000001{number // (2**32 // SEGMENT):08X}{number % (2**32 // SEGMENT):08X}"
        (directory / "pg_wal" / name).write_bytes(content[at : at + SEGMENT].ljust(SEGMENT, b"\0"))
    return directory


class Asked:
    """What was to be brought; all of it is there."""

    def __init__(self) -> None:
        self.calls: list[list[PagesOf]] = []

    async def bring(self, pages: Iterable[PagesOf]) -> None:
        self.calls.append(list(pages))

    def of_tables(self) -> list[PagesOf]:
        return [part for call in self.calls for part in call if not part.path.startswith(b"pg_wal/")]


async def test_neighbours_are_brought_together_and_each_page_once(tmp_path: Path) -> None:
    wal = Wal()
    for number in (4, 5, 6, 9, 5, (1 << 17) + 2):
        wal.add(block(number, TABLE) + bytes((255, 0)))
    wal.add(block(0, (1664, 0, 1262)) + block(1, (1664, 0, 1262), fork=1, at=1) + bytes((255, 0)))
    wal.add(block(1, (16999, 5, 17000)) + bytes((255, 0)))  # of another tablespace
    asked = Asked()
    await foresee(data_dir_with(wal, tmp_path, control(wal)), asked.bring, 1000)
    assert sorted(asked.of_tables()) == [
        (b"base/5/16384", 4, 3),
        (b"base/5/16384", 9, 1),
        (b"base/5/16384.1", 2, 1),
        (b"global/1262", 0, 1),
        (b"global/1262_fsm", 1, 1),
    ]


async def test_the_wal_is_read_to_its_end_over_all_segments_and_no_more_is_brought_than_there_is_room(
    tmp_path: Path,
) -> None:
    wal = Wal()
    for number in range(200):
        wal.add(block(2 * number, TABLE) + bytes((254,)) + struct.pack("<I", 2000) + bytes(2000))
    assert len(wal.content) > 10 * SEGMENT
    directory = data_dir_with(wal, tmp_path, control(wal))
    asked = Asked()
    await foresee(directory, asked.bring, 1000)
    assert sorted(part.first_page for part in asked.of_tables()) == [2 * number for number in range(200)]
    kinds = "".join("w" if call[0].path.startswith(b"pg_wal/") else "p" for call in asked.calls if call)
    behind = [number for number in range(len(kinds)) if kinds[number] == "p"]
    assert all(kinds[:at].count("w") > kinds[: at + 1].count("p") for at in behind), "the next WAL comes before pages"
    bounded = Asked()
    await foresee(directory, bounded.bring, 50)
    assert 0 < len(bounded.of_tables()) <= 50


async def test_after_an_end_in_order_there_is_nothing_to_bring(tmp_path: Path) -> None:
    wal = Wal()
    wal.add(block(1, TABLE))
    asked = Asked()
    await foresee(data_dir_with(wal, tmp_path, control(wal, state=1)), asked.bring, 1000)
    assert asked.calls == []


async def test_without_a_control_file_that_can_be_read_nothing_is_foreseen(tmp_path: Path) -> None:
    wal = Wal()
    wal.add(block(1, TABLE))
    directory = data_dir_with(wal, tmp_path, control(wal)[:100] + bytes(100))
    asked = Asked()
    await foresee(directory, asked.bring, 1000)
    (directory / "global" / "pg_control").unlink()
    await foresee(directory, asked.bring, 1000)
    assert asked.calls == []
    with pytest.raises(MalformedError):
        Recovery.read(bytes(8192))
