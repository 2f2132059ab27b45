"""Filling the copy of a new region: the primary's pages as of an LSN across the link, in order, several requests at
once.

It can be broken off anywhere and goes on from the copy's durable end, as long as the primary keeps that LSN; a lease
there sees to it while this runs. See `snapshot.py` for what is written.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aurora_ray.errors import DivergedError, FencedError, QuorumLostError, StorageError
from aurora_ray.log.batch import inflate, payload
from aurora_ray.log.record import iter_records
from aurora_ray.log.sizes import read_quorum
from aurora_ray.replication.sides import add_missing_groups
from aurora_ray.replication.snapshot import is_page, page_ranges, run_records, table_records
from aurora_ray.replication.succession import generation_of
from aurora_ray.volume.follow.follower import Follower
from aurora_ray.volume.nodes import Nodes
from aurora_ray.volume.read.copies import ask_states, told_placements
from aurora_ray.volume.read.lease import ReadLease
from aurora_ray.volume.read.reader import VolumeReader
from aurora_ray.volume.shape import Shape
from aurora_ray.volume.takeover import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.record import Record
    from aurora_ray.replication.sides import Notes, RegionalVolume
    from aurora_ray.volume.read.pages import PageRange, PageRun
    from aurora_ray.volume.read.source import PageSource
    from aurora_ray.volume.spec import VolumeSpec
    from aurora_ray.volume.volume_node import VolumeNode
    from aurora_ray.volume.write.volume import Volume

REQUEST_RANGES: Final = 8  # extents asked for at once: 4 MiB of pages of 8 KiB
REQUESTS: Final = 4  # on their way over the link: what fills one of 1 Gb/s and 100 ms
FLUSH_BYTES: Final = 4 << 20
TABLE_FLUSH_BYTES: Final = 32 << 20  # a table of usual size is one flush: its names appear at once
IN_FLIGHT_BYTES: Final = 32 << 20
OPEN_TIMEOUT_S: Final = 30.0
DURABLE_POLL_S: Final = 0.2
READ_TIMEOUT_S: Final = 120.0  # of one request: a link that is down for longer breaks the seeding off
DURABLE_TIMEOUT_S: Final = 600.0


@dataclass(slots=True)
class SeedProgress:
    """Extents (64 pages each) that have been looked at, and of how many; bytes of redo that came of them."""

    extents_done: int = 0
    extents_total: int = 0
    redo_bytes: int = 0


async def seed(
    source: RegionalVolume, target: RegionalVolume, volume: Volume, notes: Notes, progress: SeedProgress
) -> None:
    """Returns once the target, open as `volume`, durably holds the source as of the target's `first_lsn`, its end then.

    Raises OutOfRangeError if the source does not keep that LSN any more: then the copy is to be begun anew. Raises
    StorageError.
    """
    lsn = target.first_lsn
    if volume.tail_lsn >= lsn:
        return
    async with AsyncExitStack() as cleanup:
        nodes = Nodes(source.nodes, source.spec.volume_id.bytes, source.abroad)
        cleanup.push_async_callback(nodes.close)
        lease = await ReadLease.take(Shape(source.spec), nodes, holder=f"seeding-{uuid.uuid4()}", lsn=lsn)
        cleanup.push_async_callback(lease.release)
        states = await ask_states(nodes.clients, CALL_TIMEOUT_S)  # the source may have grown
        told = told_placements(source.spec.placements, (state for own in states.values() for state in own))
        spec = source.spec.with_placements(told.values())
        reader = await reader_at(source, spec, lsn)
        cleanup.push_async_callback(reader.close)
        table = await reader.read_file_table(lsn, READ_TIMEOUT_S)
        await _require_generation(nodes.clients, spec, generation_of(volume.epoch))
        await add_missing_groups(volume, (each.group for each in page_ranges(table)), notes)
        seeding = _Seeding(reader, table, volume, lsn, progress)
        last = await seeding.bring_pages(await last_record(target, volume.tail_lsn))
        # What the source held when this began and holds now, it held all the time.
        await _require_generation(nodes.clients, spec, generation_of(volume.epoch))
        await seeding.bring_table(last)


async def reader_at(source: RegionalVolume, spec: VolumeSpec, lsn: int) -> VolumeReader:
    """Of the source, once its nodes know `lsn` to be durable, which they may hear half a second after its writer."""
    deadline = time.monotonic() + OPEN_TIMEOUT_S
    while True:
        reader = await VolumeReader.open(
            spec, source.nodes, timeout_s=OPEN_TIMEOUT_S, az=source.az, abroad=source.abroad
        )
        if reader.read_lsn >= lsn:
            return reader
        await reader.close()
        if time.monotonic() >= deadline:
            raise QuorumLostError(f"the source knows LSN {reader.read_lsn} to be durable, and not {lsn} yet")
        await asyncio.sleep(DURABLE_POLL_S)


async def _require_generation(clients: Mapping[str, VolumeNode], spec: VolumeSpec, generation: int) -> None:
    """Raises FencedError if the source has gone on to a later generation: it may have put aside what is being read.

    An opening installs its epoch on a write quorum, so any read quorum shows it. Raises QuorumLostError.
    """
    states = await ask_states(clients, CALL_TIMEOUT_S)
    for placement in spec.groups:
        for nodes in placement.sets:
            held = [state for node in nodes for state in states.get(node, ()) if state.group == placement.group]
            if len(held) < read_quorum(len(nodes)):
                raise QuorumLostError(f"only {len(held)} copies of group {placement.group} answer at the source")
            found = max(generation_of(state.installed_epoch) for state in held)
            if found > generation:
                raise FencedError(f"fenced: the source is of generation {found} by now, and no primary in {generation}")


async def last_record(target: RegionalVolume, end_lsn: int) -> Record | None:
    """The record that a copy ends with."""
    if not end_lsn:
        return None
    follower = Follower.open(target.spec, target.nodes, after_lsn=end_lsn - 1, az=target.az, abroad=target.abroad)
    async with follower, asyncio.timeout(OPEN_TIMEOUT_S):
        flush = await anext(follower)
    records = (r for batch in flush.batches.values() for r in iter_records(payload(inflate(batch))))
    return max(records, key=lambda each: each.lsn)


async def fill(source: PageSource, volume: Volume, last: Record | None, notes: Notes, progress: SeedProgress) -> None:
    """Returns once `volume`, open for writing, durably holds what `source` reads at its `read_lsn`, its end then;
    `last`: the record that it ends with now. Raises StorageError, and what reading raises."""
    lsn = source.read_lsn
    table = await source.read_file_table(lsn, READ_TIMEOUT_S)
    await add_missing_groups(volume, (each.group for each in page_ranges(table)), notes)
    seeding = _Seeding(source, table, volume, lsn, progress)
    await seeding.bring_table(await seeding.bring_pages(last))


async def read_in_order(
    source: PageSource, ranges: Sequence[PageRange], lsn: int, requests: int = REQUESTS
) -> AsyncIterator[tuple[PageRange, PageRun]]:
    """What the ranges hold at `lsn`, in order; several are asked for at once."""
    parts = deque(ranges[at : at + REQUEST_RANGES] for at in range(0, len(ranges), REQUEST_RANGES))
    asked: deque[tuple[Sequence[PageRange], asyncio.Task[list[PageRun]]]] = deque()
    try:
        while parts or asked:
            while parts and len(asked) < requests:
                part = parts.popleft()
                reading = source.read_pages(part, lsn, READ_TIMEOUT_S)
                asked.append((part, asyncio.create_task(reading, name="read pages in order")))
            part, answer = asked.popleft()
            for each, run in zip(part, await answer, strict=True):
                yield each, run
    finally:
        for _, answer in asked:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in asked), return_exceptions=True)


class _Seeding:
    def __init__(self, reader: PageSource, table: FileTable, volume: Volume, lsn: int, progress: SeedProgress) -> None:
        self._reader, self._table, self._volume, self._lsn = reader, table, volume, lsn
        self._progress = progress
        self._page_size = volume.spec.page_size
        self._flushes: deque[tuple[int, int]] = deque()  # (end, bytes) of what may not be durable yet
        self._in_flight_bytes = 0

    async def bring_pages(self, last: Record | None) -> Record | None:
        """All that come behind `last`; the record behind which the table goes on, if it was begun."""
        ranges, done = page_ranges(self._table), 0
        self._progress.extents_total = len(ranges)
        if last is None or is_page(last):
            if last is not None:
                done = next(at for at, each in enumerate(ranges) if _reaches(each, last))
            self._progress.extents_done = done
            await self._pages(ranges[done:], last)
        self._progress.extents_done = len(ranges)
        return None if last is None or is_page(last) else last

    async def _pages(self, ranges: Sequence[PageRange], last: Record | None) -> None:
        waiting: list[Record] = []
        nbytes = 0
        async for each, run in read_in_order(self._reader, ranges, self._lsn):
            for record in run_records(each, run, self._page_size):
                if last is not None and (record.file_id, record.page) <= (last.file_id, last.page):
                    continue
                waiting.append(record)
                nbytes += record.encoded_bytes
                if nbytes >= FLUSH_BYTES:
                    await self._append(waiting)
                    waiting, nbytes = [], 0
            self._progress.extents_done += 1
        if waiting:
            await self._append(waiting)

    async def bring_table(self, last: Record | None) -> None:
        """The file table, behind `last`. Its last flush ends at the LSN that all this stands for."""
        records = table_records(self._table)
        if last is not None:
            records = records[1 + _index_of(records, last) :]
        waiting: list[Record] = []
        for part in _parts(records):
            if waiting:
                await self._append(waiting)
            waiting = part
        await self._append(waiting, self._lsn)
        await self._volume.durable.wait_for(self._lsn, DURABLE_TIMEOUT_S)

    async def _append(self, records: Sequence[Record], end_lsn: int | None = None) -> None:
        nbytes = sum(record.encoded_bytes for record in records)
        if self._volume.tail_lsn + nbytes > self._lsn:
            raise StorageError(
                f"what the source holds at LSN {self._lsn} does not fit below it: begin the copy at a later LSN"
            )
        await self._make_room(nbytes)
        flush = self._volume.redo.encode(records, end_lsn)
        self._volume.redo.submit(flush)
        self._flushes.append((flush.end, flush.nbytes))
        self._in_flight_bytes += flush.nbytes
        self._progress.redo_bytes += flush.nbytes

    async def _make_room(self, nbytes: int) -> None:
        while self._flushes and self._in_flight_bytes + nbytes > IN_FLIGHT_BYTES:
            end, done_bytes = self._flushes.popleft()
            await self._volume.durable.wait_for(end, DURABLE_TIMEOUT_S)
            self._in_flight_bytes -= done_bytes


def _reaches(each: PageRange, last: Record) -> bool:
    return (each.file_id, each.first_page + each.page_count) > (last.file_id, last.page)


def _index_of(records: Sequence[Record], last: Record) -> int:
    for index, each in enumerate(records):
        if (each.type, each.file_id, each.page, each.body) == (last.type, last.file_id, last.page, last.body):
            return index
    raise DivergedError("the copy does not end with a part of what it is to hold: it was begun at another LSN")


def _parts(records: Iterable[Record]) -> list[list[Record]]:
    parts: list[list[Record]] = [[]]
    nbytes = 0
    for record in records:
        if nbytes >= TABLE_FLUSH_BYTES:
            parts.append([])
            nbytes = 0
        parts[-1].append(record)
        nbytes += record.encoded_bytes
    return parts
