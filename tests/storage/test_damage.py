"""Flipped bits: in values, in files, in a segment that no longer opens. Found, not served, repaired, byte for byte."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from aurora_ray.errors import AuroraError, DamagedCopyError, UnknownVolumeError
from aurora_ray.log import record as rec
from aurora_ray.storage.disk.damage import STORE, DamagedError
from aurora_ray.storage.disk.keys import CUT_PREFIX, META_KEY, PAGE_FAMILIES, PAGE_KEY, guarded, lsn_key
from aurora_ray.storage.disk.rocks import WriteFailedError, held_open
from tests.storage.harness import PAGE_SIZE, Writer, introduce
from tests.storage.test_history import Workload, check, sample
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = 99

pytestmark = pytest.mark.allowed_logs(r"damaged here")


async def four_copies(start: Callable, **patient: object):
    """Four nodes with the same log in different layers; the first is the patient, and has these settings."""
    servers = [await start(f"n{i}", **(patient if i == 1 else {})) for i in range(1, 5)]
    writer = await Writer().open(*servers)
    workload = Workload(5)
    first = [rec.create(FILE, b"file"), rec.size(FILE, 40 * PAGE_SIZE), rec.extent(FILE, 0, 0)]
    for step in range(5):
        message = writer.flush(
            *first,
            *workload.records(),
            *(rec.page_full(FILE, page, b"%d" % step * 100) for page in range(40)),
            rec.truncate(FILE, 900),
            rec.size(FILE, 40 * PAGE_SIZE),
        )
        first = []
        for _ in range(3):
            message += writer.flush(*workload.records())
        for number, server in enumerate(servers):
            await server.send(message)
            await server.send([writer.heartbeat()])
            if step < 4 and (step + number) % 3 != 2:
                await server.coalesce(writer)
                await server.collect(writer)
    await introduce(*servers)
    return servers, writer, workload


def flip(value: bytes, at: int) -> bytes:
    at %= len(value)
    return value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :]


def put(server, writer: Writer, family: str, key: bytes, value: bytes) -> None:
    store = server.segment(writer).store
    of_pages = family in PAGE_FAMILIES
    changes = store.page_batch() if of_pages else store.batch()
    changes.put(family, key, value)
    if of_pages:
        changes.write_without_log()
    else:
        changes.write_synced()


def entries(server, writer: Writer, family: str) -> list[tuple[bytes, bytes]]:
    return list(server.segment(writer).store.scan(family, b""))


async def sound_again(servers, writer: Writer, workload: Workload) -> None:
    """The patient has no known damage, and is byte-identical to its peers at every LSN that all can show."""
    patient = servers[0]
    await poll_until(
        lambda: not patient.server.node.damage.segments() and (writer.volume, 0) in patient.server.node.segments,
        what="all damage is repaired",
        timeout_s=30,
    )
    before = found(patient)
    await patient.server.scrubber.round()
    assert found(patient) == before, "a second round finds nothing"
    await poll_until(lambda: patient.segment(writer).scl == writer.lsn, what="the log is complete")
    floor_lsn = max(server.segment(writer).meta.floor_lsn for server in servers)
    lsns = [lsn for lsn in sample(workload, writer, floor_lsn, 3) if lsn >= floor_lsn]
    for lsn in (floor_lsn, *lsns):
        assert len({await server.digest(writer, lsn, log_after_lsn=floor_lsn) for server in servers}) == 1, lsn
    await check(patient, writer, workload, lsns)


def found(server) -> dict[str, int]:
    return {name: count for name, count in server.server.node.counters.items() if name.startswith("damaged_")}


@pytest.mark.parametrize("at", [0, 4, 5, 9, -1])
async def test_a_flipped_bit_in_a_page_version(start, at):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    versions = entries(patient, writer, "pages")
    for key, value in (versions[0], versions[len(versions) // 2], versions[-1]):
        put(patient, writer, "pages", key, flip(value, at))
    await patient.server.scrubber.round()
    assert 1 <= found(patient)["damaged_page"] <= 3
    await sound_again(servers, writer, workload)
    counters = patient.server.node.counters
    assert counters["repaired_page"] == counters["damaged_page"]
    assert not counters["copied_segments"]


async def test_a_read_that_meets_damage_is_refused_and_has_it_repaired(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    key, value = next(
        (key, value) for key, value in entries(patient, writer, "pages") if key[:8] == FILE.to_bytes(8, "big")
    )
    file_id, page, lsn = PAGE_KEY.unpack(key)
    put(patient, writer, "pages", key, flip(value, 7))
    with pytest.raises(DamagedCopyError):
        await patient.pages(writer, lsn, file_id, first=page, count=1)
    await sound_again(servers, writer, workload)
    assert await patient.pages(writer, lsn, file_id, first=page, count=1) == [writer.page_at(lsn, file_id, page)]
    assert patient.server.node.counters["refused_damaged"] == 1


async def test_coalescing_does_not_build_on_a_damaged_version(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    await patient.coalesce(writer)
    prefix = FILE.to_bytes(8, "big") + bytes(4)
    key, value = [entry for entry in entries(patient, writer, "pages") if entry[0].startswith(prefix)][-1]
    put(patient, writer, "pages", key, flip(value, 30))
    with pytest.raises(DamagedError):
        await _grow_the_chain(servers, writer, 0)
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)


async def test_what_was_known_of_a_chain_is_forgotten_when_the_page_is_mended(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    await _grow_the_chain(servers, writer, 0, 3)
    segment = patient.segment(writer)
    known = segment.chains.get(FILE, 0)
    assert known is not None
    assert known.deltas
    prefix = FILE.to_bytes(8, "big") + bytes(4)
    key, value = [entry for entry in entries(patient, writer, "pages") if entry[0].startswith(prefix)][-1]
    put(patient, writer, "pages", key, flip(value, 30))
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)
    assert segment.chains.get(FILE, 0) is None


async def _grow_the_chain(servers, writer: Writer, page: int, times: int = 20) -> None:
    """Changes a page; by default until the patient makes an image of it."""
    for number in range(times):
        batch = writer.flush(rec.page_delta(FILE, page, [(0, b"%d" % number)]))
        for server in servers:
            await server.send(batch)
            await server.send([writer.heartbeat()])
        await servers[0].coalesce(writer)


@pytest.mark.parametrize("where", ["history", "tail"])
@pytest.mark.parametrize("at", [20, 60, -1])
async def test_a_flipped_bit_in_the_log(start, where, at):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    coalesced = lsn_key(patient.segment(writer).meta.coalesced_lsn)
    log = [entry for entry in entries(patient, writer, "log") if (entry[0] <= coalesced) == (where == "history")]
    key, value = log[len(log) // 2]
    put(patient, writer, "log", key, flip(value, at))
    await patient.server.scrubber.round()
    assert found(patient) == {"damaged_log": 1}
    await sound_again(servers, writer, workload)
    assert dict(entries(patient, writer, "log"))[key] == value


async def test_damaged_log_is_not_read_from(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    key, value = entries(patient, writer, "log")[-1]
    put(patient, writer, "log", key, flip(value, -9))
    with pytest.raises(DamagedCopyError):
        await patient.pages(writer, writer.lsn, FILE, count=1)
    await sound_again(servers, writer, workload)


async def test_damaged_log_is_a_gap_after_a_restart_and_filled(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    key, value = entries(patient, writer, "log")[-2]
    put(patient, writer, "log", key, flip(value, 60))
    await patient.restart()
    await introduce(*servers)
    await patient.server.gossip.round()
    await sound_again(servers, writer, workload)


async def test_a_flipped_bit_in_a_file_table(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    key, value = entries(patient, writer, "tables")[-1]
    put(patient, writer, "tables", key, flip(value, 50))
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)
    assert (await patient.table(writer, writer.lsn)).pack() == writer.table_at(writer.lsn).pack()


async def test_a_flipped_bit_in_a_cut_has_the_segment_copied(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    key, value = next(entry for entry in entries(patient, writer, "default") if entry[0].startswith(CUT_PREFIX))
    put(patient, writer, "default", key, flip(value, 4))
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)
    assert patient.server.node.counters["copied_segments"] == 1


def largest(path: Path, suffix: str) -> Path:
    return max(path.rglob("*" + suffix), key=lambda file: file.stat().st_size)


def flip_on_disk(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        byte = content.read(1)
        content.seek(-1, 1)
        content.write(flip(byte, 0))


@pytest.mark.parametrize("suffix", [".sst", ".blob"])
async def test_a_flipped_bit_in_a_file_on_disk(start, suffix):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    store = patient.segment(writer).store
    await store.flush_all()
    flip_on_disk(largest(store.path, suffix))
    await patient.server.scrubber.round()
    assert found(patient) == {"damaged_store": 1}
    await sound_again(servers, writer, workload)
    assert patient.server.node.counters["copied_segments"] == 1


async def test_a_file_that_is_gone(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    store = patient.segment(writer).store
    await store.flush_all()
    await patient.stop()
    largest(store.path, ".blob").unlink()
    await patient.restart_stopped()
    await introduce(*servers)
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)
    assert patient.server.node.counters["copied_segments"] == 1


@pytest.mark.allowed_logs("a write failed")
async def test_a_write_that_meets_damage_loses_the_segment_once(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    segment = patient.segment(writer)
    damaged = RuntimeError("Corruption: as RocksDB says it")
    patient.server.node.note_failure(raised(WriteFailedError((writer.volume, 0), damaged), damaged))
    assert segment.closed
    assert not patient.server.node.disk_full
    assert (writer.volume, 0) not in patient.server.node.segments
    await sound_again(servers, writer, workload)
    assert patient.server.node.counters["copied_segments"] == 1


def raised(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except type(error) as met:
        return met


async def test_a_copy_that_cannot_take_its_place_is_tried_again(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    segment = patient.segment(writer)
    segment.store.close, close = (lambda: None), segment.store.close  # something keeps it open
    patient.server.node.damage.report(DamagedError((writer.volume, 0), STORE, "so that it is copied"))
    await poll_until(lambda: segment.closed, what="the copy is about to take its place")
    assert (writer.volume, 0) not in patient.server.node.segments
    close()
    await sound_again(servers, writer, workload)


async def test_a_closed_store_is_let_go_of_whatever_still_refers_to_it(start):
    servers, writer, _ = await four_copies(start)
    store = servers[0].segment(writer).store
    scan, log, cursor = store.scan("pages", b""), store.log_entries(0, writer.lsn), store.cursor("log")
    assert next(scan)
    assert next(log)
    assert held_open(store.path)
    servers[0].segment(writer).close()
    assert not held_open(store.path)
    with pytest.raises(UnknownVolumeError):
        next(scan)
    with pytest.raises(UnknownVolumeError):
        cursor.it.seek(b"")


async def test_a_damaged_file_does_not_read_as_pages_never_written(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    store = patient.segment(writer).store
    await store.flush_all()
    await patient.stop()
    flip_on_disk(largest(store.path, ".sst"))
    await patient.restart_stopped()
    await introduce(*servers)
    lsn = patient.segment(writer).meta.coalesced_lsn
    for page in range(40):
        with contextlib.suppress(AuroraError):  # refused; what is answered is right
            assert await patient.pages(writer, lsn, FILE, first=page, count=1) == [writer.page_at(lsn, FILE, page)]
    await patient.server.scrubber.round()
    await sound_again(servers, writer, workload)
    assert patient.server.node.counters["copied_segments"] == 1


@pytest.mark.parametrize("what", [".", "pages", "meta"])
async def test_a_segment_that_does_not_open_votes_only_when_it_is_whole_again(start, what):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    for server in servers:
        assert (await server.seal(writer, 4, b"q" * 16)).promised
    store = patient.segment(writer).store
    if what == "meta":
        put(patient, writer, "default", META_KEY, flip(store.get(META_KEY), 20))
    await store.flush_all()
    await patient.stop()
    if what != "meta":
        flip_on_disk(next((store.path / what).glob("MANIFEST-*")))
    for server in servers[1:]:
        await server.stop()
    await patient.restart_stopped()
    assert not (await patient.seal(writer, 9)).segments
    with pytest.raises(AuroraError, match="was lost here"):
        await Writer.open(_twin(writer), patient)
    for server in servers[1:]:
        await server.restart_stopped()
    await introduce(*servers)
    await sound_again(servers, writer, workload)
    assert not (await patient.seal(writer, 3)).promised, "what the lost copy may have promised is kept"
    assert not list(patient.segment(writer).store.path.parent.glob("*.lost"))


def _twin(writer: Writer) -> Writer:
    twin = Writer(writer.epoch)
    twin.volume = writer.volume
    return twin


async def test_wrong_content_with_a_right_checksum_is_outvoted(start):
    servers, writer, workload = await four_copies(start)
    patient = servers[0]
    lsn = patient.segment(writer).meta.coalesced_lsn
    key, value = next(
        (key, value)
        for key, value in entries(patient, writer, "pages")
        if writer.page_at(lsn, *PAGE_KEY.unpack(key)[:2]) is not None and PAGE_KEY.unpack(key)[2] == lsn
    )
    put(patient, writer, "pages", key, guarded(key, flip(value[4:], -1)))
    await patient.server.scrubber.round()
    assert patient.server.node.counters["differing_ranges"] == 1
    assert found(patient) == {"damaged_page": 1}
    await sound_again(servers, writer, workload)


async def test_scrubbing_goes_on_by_itself_within_its_rate(start):
    servers, _, _ = await four_copies(start, scrub_interval_s=0.05, scrub_bytes_per_s=1 << 30)
    counters = servers[0].server.node.counters
    await poll_until(lambda: counters["compared_bytes"] > 40 * PAGE_SIZE, what="content is compared")
    assert counters["scrubbed_bytes"] > 10_000
    assert not found(servers[0])
