"""Records and batches: what goes in comes out; what is damaged is refused."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_ray.errors import MalformedError
from aurora_ray.log import record as rec
from aurora_ray.log._pages import walk
from aurora_ray.log.batch import check_records, compress, encode_batch, inflate, payload, verify
from aurora_ray.log.layout import RECORD_ALIGN, RECORD_HEADER, RECORD_HEADER_BYTES, RECORD_TYPE_MAX
from aurora_ray.log.pages import apply_delta, fits, merge_changes, scan
from aurora_ray.log.record import Record, RecordBuilder

PAGE = 512
PATHS = st.binary(min_size=1, max_size=30).filter(lambda p: b"\0" not in p)
IDS = st.integers(1, (1 << 64) - 1)
GROUPS = st.integers(0, 3)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)


@st.composite
def ranges(draw):
    offset = draw(st.integers(0, PAGE - 1))
    return offset, draw(st.binary(min_size=1, max_size=min(40, PAGE - offset)))


PAGES = st.one_of(
    st.builds(rec.page_full, IDS, U32, st.binary(max_size=PAGE), group=GROUPS),
    st.builds(rec.page_delta, IDS, U32, st.lists(ranges(), min_size=1, max_size=5), group=GROUPS),
)
RECORDS = st.one_of(
    PAGES,
    st.builds(rec.create, IDS, PATHS, U32),
    st.builds(rec.unlink, IDS, PATHS),
    st.builds(rec.rename, IDS, PATHS, PATHS),
    st.builds(rec.link, IDS, PATHS, PATHS),
    st.builds(rec.symlink, PATHS, PATHS),
    st.builds(rec.truncate, IDS, U64, group=GROUPS),
    st.builds(rec.size, IDS, U64),
    st.builds(rec.mkdir, PATHS, U32),
    st.builds(rec.rmdir, PATHS),
    st.builds(rec.chmod, PATHS, U32),
    st.builds(rec.extent, IDS, U32, U32),
    st.builds(rec.drop, IDS, group=GROUPS),
)


def batches(records: list[Record], start_lsn: int = 0) -> list[bytes]:
    builder = RecordBuilder(start_lsn)
    for record in records:
        builder.add(record)
    parts = builder.take()
    return [
        encode_batch(
            group=part.group, volume=b"v" * 16, epoch=3, prev_lsn=start_lsn, flush_start=start_lsn,
            flush_end=builder.end_lsn, time_us=5, vdl=start_lsn, record_count=part.record_count,
            groups=[p.group for p in parts], records=part.payload,
        )
        for part in parts
    ]  # fmt: skip


@given(st.lists(RECORDS, min_size=1, max_size=12), st.integers(0, 1 << 50))
def test_a_flush_comes_back_as_it_was(records, start_lsn):
    lsn = start_lsn
    expected: dict[int, list[Record]] = {}
    for record in records:
        lsn += record.encoded_bytes
        expected.setdefault(record.group, []).append(replace(record, lsn=lsn))
    made = batches(records, start_lsn)
    assert len(made) == len(expected)
    for batch in made:
        header = verify(batch)
        check_records(batch, header)
        assert (header.flush_start, header.flush_end, header.groups) == (start_lsn, lsn, tuple(sorted(expected)))
        assert list(rec.iter_records(payload(batch))) == expected[header.group]


@pytest.mark.parametrize("pages", [1, 40])
def test_a_large_batch_is_compressed_and_comes_back(pages):
    plain = batches([rec.page_full(7, n, b"padding " * (PAGE // 8)) for n in range(pages)])[0]
    small = compress(plain)
    header = verify(small)
    check_records(small, header)
    assert header.compressed == (pages > 1)
    assert len(small) < len(plain) / 4 or pages == 1
    assert header._replace(compressed=False) == verify(plain)
    assert payload(inflate(small)) == payload(plain)


def test_what_does_not_shrink_stays_as_it_is():
    plain = batches([rec.page_full(7, n, random.Random(n).randbytes(PAGE)) for n in range(64)])[0]
    assert compress(plain) is plain
    assert inflate(plain) is plain


def test_damage_to_a_compressed_batch_is_refused():
    small = compress(batches([rec.page_full(7, n, b"padding " * (PAGE // 8)) for n in range(40)])[0])
    for nbytes in range(len(small)):
        with pytest.raises(MalformedError):
            verify(small[:nbytes])
    for bit in range(8 * len(small)):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedError):
            verify(bytes(damaged))


@settings(max_examples=30)
@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_every_truncation_is_refused(records):
    batch = batches(records)[0]
    for nbytes in range(len(batch)):
        with pytest.raises(MalformedError):
            verify(batch[:nbytes])
    with pytest.raises(MalformedError):
        verify(batch + b"\0")


@settings(max_examples=15)
@given(RECORDS)
def test_every_flipped_bit_is_refused(record):
    batch = batches([record])[0]
    for bit in range(8 * len(batch)):
        damaged = bytearray(batch)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedError):
            verify(bytes(damaged))


@given(st.lists(PAGES, min_size=1, max_size=8), st.binary(min_size=PAGE, max_size=PAGE), st.booleans())
def test_a_merged_change_equals_its_parts(records, base, base_is_zeros):
    changes = [(record.lsn, rec.encode(record), 0) for record in records]
    expected = bytearray(PAGE) if base_is_zeros else bytearray(base)
    for record in records:
        rec.apply_page(record, expected)
    merged = merge_changes(changes, PAGE, base_is_zeros=base_is_zeros)
    if merged.is_image:
        assert merged.data.ljust(PAGE, b"\0") == expected
    else:
        page = bytearray(base)
        apply_delta(merged.data, page)
        assert page == expected


@given(st.binary(max_size=200), st.integers(0, 1), st.integers(0, 20))
def test_a_page_record_with_any_body_is_applied_or_refused(body, flags, count):
    record = Record(rec.RecordType.PAGE, flags, 8, 1, 0, 0, body, count)
    encoded = rec.encode(record)
    page = bytearray(64)
    if not fits(encoded, 0, 64):
        with pytest.raises(MalformedError):
            merge_changes([(8, encoded, 0)], 64, base_is_zeros=True)
        good = (8, rec.encode(rec.page_delta(1, 0, [(60, b"x")])), 0)
        assert len(merge_changes([good], 64, base_is_zeros=True).data) == 61, "nothing is left of the bad one"
    else:
        merge_changes([(8, encoded, 0)], 64, base_is_zeros=True)
    assert len(page) == 64


@given(st.lists(PAGES, min_size=1, max_size=5), st.lists(st.integers(0, PAGE), min_size=6, max_size=6), st.booleans())
def test_cuts_between_changes_leave_zeros(records, cuts, base_is_zeros):
    changes = [(record.lsn, rec.encode(record), 0) for record in records]
    cuts = cuts[: len(records) + 1]
    base = bytearray(PAGE) if base_is_zeros else bytearray(b"b" * PAGE)
    expected = bytearray(base)
    expected[cuts[0] :] = bytes(PAGE - cuts[0])
    for record, cut in zip(records, cuts[1:], strict=True):
        rec.apply_page(record, expected)
        expected[cut:] = bytes(PAGE - cut)
    merged = merge_changes(changes, PAGE, base_is_zeros=base_is_zeros, zero_from=cuts)
    if merged.is_image:
        base = bytearray(merged.data.ljust(PAGE, b"\0"))
    else:
        apply_delta(merged.data, base)
    assert base == expected


def walked(batch: bytes, at: int, group: int, low: int) -> tuple[int, int, int]:
    """What `walk` is to give, the plain way."""
    count = 0
    while len(batch) - at >= RECORD_HEADER_BYTES:
        length, kind, _, _, lsn, _, of_group, _ = RECORD_HEADER.unpack_from(batch, at)
        fits = RECORD_HEADER_BYTES <= length <= len(batch) - at and not length % RECORD_ALIGN
        if not fits or not 1 <= kind <= RECORD_TYPE_MAX or of_group != group or lsn < low + length:
            break
        count, at, low = count + 1, at + length, lsn
    return count, at, low


@given(st.lists(RECORDS, min_size=1, max_size=12), st.data())
def test_the_walk_over_a_batch_goes_as_far_as_its_records_are_sound(records, data):
    for batch in batches(records):
        header = verify(batch)
        begin = len(batch) - header.payload_bytes
        damaged = bytearray(batch)
        for _ in range(data.draw(st.integers(0, 2))):
            at = begin + data.draw(st.integers(0, (len(batch) - begin) // 8 - 1)) * 8
            damaged[at + data.draw(st.integers(0, 7))] ^= 1 << data.draw(st.integers(0, 7))
        for content in (bytes(damaged), bytes(damaged[: data.draw(st.integers(begin, len(batch)))])):
            expected = walked(content, begin, header.group, header.flush_start)
            assert walk(content, begin, header.group, header.flush_start) == expected


def test_records_of_all_types_and_no_others_are_sound():
    for kind in (0, *rec.RecordType, RECORD_TYPE_MAX + 1):
        encoded = RECORD_HEADER.pack(RECORD_HEADER_BYTES, kind, 0, 0, 40, 1, 0, 0)
        assert walk(encoded, 0, 0, 0)[0] == (kind in list(rec.RecordType))
    with pytest.raises(MalformedError):
        walk(b"", 1, 0, 0)


@given(st.lists(RECORDS, min_size=1, max_size=12))
def test_a_scan_finds_every_record(records):
    for batch in batches(records):
        begin = len(batch) - len(payload(batch))
        pages: dict[int, list[tuple[int, bytes, int]]] = {}
        others = scan(batch, begin, pages)
        expected: dict[int, list[int]] = {}
        rest = []
        at = begin
        for record in rec.iter_records(payload(batch)):
            if record.type == rec.RecordType.PAGE:
                expected.setdefault(record.file_id << 32 | record.page, []).append(at)
            else:
                rest.append((int(record.type), record.lsn, record.file_id, at, record.encoded_bytes))
            at += record.encoded_bytes
        assert {key: [at for _, _, at in changes] for key, changes in pages.items()} == expected
        assert others == rest


@given(st.binary(max_size=200), st.integers(0, 40))
def test_a_scan_of_arbitrary_bytes_ends_or_is_refused(data, at):
    with contextlib.suppress(MalformedError):
        scan(data, at, {})


@given(st.binary(max_size=80))
def test_an_arbitrary_delta_is_applied_or_refused(data):
    page = bytearray(64)
    with contextlib.suppress(MalformedError):
        apply_delta(data, page)
    assert len(page) == 64


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_decoded_or_refused(data):
    with contextlib.suppress(MalformedError):
        list(rec.iter_records(data))
