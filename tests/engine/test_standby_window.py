"""Which WAL is given to a standby: whole records, all of them, and nothing else, however the WAL comes in."""

import random

import pytest

from aurora_ray.engine.postgres.standby.window import WalWindow
from aurora_ray.log.record import encode, page_delta
from tests.engine.wal_builder import (
    PAGE,
    RM_DBASE,
    SEGMENT,
    XLOG_DBASE_CREATE_FILE_COPY,
    XLOG_DBASE_CREATE_WAL_LOG,
    XLOG_PARAMETER_CHANGE,
    XLOG_SWITCH,
    Wal,
    parameter_change,
)


def window_of(wal: Wal, *, size: int | None = None) -> WalWindow:
    window = WalWindow(wal.base, SEGMENT)
    window.put(wal.base, wal.pages() if size is None else wal.pages()[:size].ljust(-(-size // PAGE) * PAGE, b"\0"))
    return window


def some_wal(seed: int, count: int = 40) -> Wal:
    rng = random.Random(seed)
    wal = Wal()
    for _ in range(count):
        wal.add(rng.randbytes(rng.choice((0, 3, 40, 200, 3000, 9000, 20000))))
    return wal


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_whole_records_of_any_prefix_are_found(seed: int) -> None:
    wal = some_wal(seed)
    rng = random.Random(seed)
    for _ in range(30):
        size = rng.randrange(1, len(wal.content))
        window = window_of(wal, size=size)
        window.look()
        whole = [end for end in wal.ends if wal.base + size >= end]
        # A record that ends in padding is whole before it.
        near = [end for end in wal.ends if wal.base + size > end - 8]
        assert window.end in {(whole or [wal.base])[-1], (near or [wal.base])[-1]}


@pytest.mark.parametrize("seed", range(5))
def test_what_is_taken_bit_by_bit_is_the_wal(seed: int) -> None:
    wal = some_wal(seed, 100)
    rng = random.Random(seed)
    window = WalWindow(wal.base, SEGMENT)
    taken, size = b"", 0
    while size < len(wal.content):
        before, size = size, min(len(wal.content), size + rng.randrange(1, 12000))
        for page in range(before // PAGE, -(-size // PAGE)):
            at, until = max(before, page * PAGE), min(size, (page + 1) * PAGE)
            record = encode(page_delta(1, page, [(at % PAGE, bytes(wal.content[at:until]))]))
            window.change(wal.base + page * PAGE, record, 0)
        window.look()
        taken += window.take(wal.base + len(taken))
        assert window.loaded - window.base <= 32 * PAGE
    assert taken == bytes(wal.content)


def test_a_record_whose_middle_is_not_there_yet_is_not_given() -> None:
    wal = Wal()
    wal.add(b"first")
    wal.add(b"x" * 1000)
    wal.add(b"third")
    content = bytearray(wal.pages())
    content[wal.starts[1] - wal.base + 500] ^= 1
    window = WalWindow(wal.base, SEGMENT)
    window.put(wal.base, bytes(content))
    window.look()
    assert window.end == wal.ends[0]
    window.put(wal.base, wal.pages())
    window.look()
    assert window.end == wal.ends[2]


def test_what_a_used_again_segment_held_before_is_not_taken_for_wal() -> None:
    wal, old = Wal(), Wal(2 * SEGMENT)
    wal.add(b"x" * (PAGE - 40 - 24))
    for _ in range(50):
        old.add(b"y" * 300)
    window = WalWindow(wal.base, SEGMENT)
    window.put(wal.base, wal.pages() + bytes(old.content)[PAGE : 2 * PAGE])
    assert not window.look()
    assert window.end == wal.ends[0]


def test_records_of_another_chain_do_not_follow() -> None:
    wal = Wal()
    wal.add(b"first")
    wal.add(b"second", prev=4711)
    window = window_of(wal)
    window.look()
    assert window.end == wal.ends[0]


def test_a_standby_that_begins_in_the_middle_of_a_record_gets_its_rest_with_the_next_one() -> None:
    wal = Wal(10 * SEGMENT + 3 * PAGE)
    wal.add(b"x" * 3 * PAGE)
    rest = len(wal.content)
    wal.add(b"next")
    window = WalWindow(11 * SEGMENT, SEGMENT)
    content = wal.pages()[PAGE:]
    window.put(11 * SEGMENT, content[: rest - PAGE].ljust(len(content), b"\0"))
    window.look()
    assert window.end == 11 * SEGMENT
    window.put(11 * SEGMENT, content)
    window.look()
    assert window.end == wal.ends[1]


def test_a_record_that_a_recovery_gave_up_is_followed_by_what_the_recovery_wrote() -> None:
    wal = Wal()
    wal.add(b"first")
    kept = len(wal.content)
    wal.add(b"x" * 2 * PAGE)
    whole = window_of(wal)
    whole.look()
    assert whole.end == wal.ends[1]
    del wal.content[PAGE:]  # the rest was never written
    window = window_of(wal)
    window.look()
    assert window.end == wal.base + kept
    wal.overwrite(b"this record says so")
    window.put(wal.base, wal.pages())
    window.look()
    assert window.end == wal.ends[-1]
    assert window.take(wal.base) == bytes(wal.content)


def test_behind_a_switch_the_next_segment_begins() -> None:
    wal = Wal()
    wal.add(b"first")
    wal.add(b"", info=XLOG_SWITCH, rmid=0)
    assert wal.ends[-1] == wal.base + SEGMENT
    window = window_of(wal, size=200)
    window.look()
    assert window.end == wal.base + SEGMENT
    assert window.take(wal.base) == bytes(wal.content)
    wal.add(b"there")
    window.put(wal.base + SEGMENT, wal.pages()[SEGMENT:])
    window.look()
    assert window.take(wal.base + SEGMENT) == bytes(wal.content)[SEGMENT:]


def test_a_change_of_the_settings_that_a_standby_must_have_is_seen() -> None:
    wal = Wal()
    wal.add(b"first")
    window = window_of(wal)
    window.look()
    assert window.parameters is None
    wal.add(parameter_change((300, 9, 10, 5, 64)), info=XLOG_PARAMETER_CHANGE, rmid=0)
    window.put(wal.base, wal.pages())
    window.look()
    assert window.parameters == (300, 9, 10, 5, 64)


def test_a_change_of_a_page_that_was_given_out_is_no_concern() -> None:
    wal = some_wal(1)
    window = window_of(wal)
    window.look()
    window.take(wal.base)
    before = window.base
    window.change(wal.base, encode(page_delta(1, 0, [(0, b"x")])), 0)
    assert window.base == before


def test_a_record_that_copies_the_files_of_a_database_is_noticed() -> None:
    wal = Wal()
    wal.add(b"first")
    wal.add(b"a database, page by page", rmid=RM_DBASE, info=XLOG_DBASE_CREATE_WAL_LOG)
    window = window_of(wal)
    window.look()
    assert window.copies == 0
    wal.add(b"a database, as files", rmid=RM_DBASE, info=XLOG_DBASE_CREATE_FILE_COPY)
    wal.add(b"x" * 3 * PAGE)
    window.put(wal.base, wal.pages())
    window.look()
    assert (window.copies, window.end) == (wal.starts[2], wal.ends[3])
