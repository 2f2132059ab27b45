"""A standby's feed where WAL comes as differences to what it never saw: the first segment of a timeline is a copy, and
behind the place where the timeline begins its pages may hold anything. And what it does if its window is wrong all the
same."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.postgres.control_file import ControlFile
from aurora_ray.engine.postgres.standby import feed as feed_module
from aurora_ray.engine.postgres.standby.feed import STUCK_BYTES, STUCK_S, PostgresFeed, Stuck
from aurora_ray.engine.postgres.standby.takeover import Takeover
from aurora_ray.engine.postgres.timelines import Timelines
from aurora_ray.log import record as records
from aurora_ray.log.batch import encode_batch
from aurora_ray.log.filetable import FileTable
from aurora_ray.log.flush import Flush
from aurora_ray.log.layout import RecordType
from aurora_ray.log.record import Record, RecordBuilder, apply_page, iter_records
from aurora_ray.log.sizes import EXTENT_PAGES
from tests.engine.wal_builder import PAGE, Wal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aurora_ray.engine.base import FilePart

EXTENTS = 2
SEGMENT = EXTENTS * EXTENT_PAGES * PAGE
NUMBER = 3
BASE = NUMBER * SEGMENT
FILE = 7
TEMPORARY = b"pg_wal/xlogtemp.77"


def name(timeline: int, number: int = NUMBER) -> bytes:
    return f"pg_wal/{timeline:08X}{0:08X}{number:08X}".encode()


class Volume:
    """A log, and all that was ever in its pages."""

    def __init__(self) -> None:
        self.table, self.lsn, self.reads = FileTable(), 0, 0
        self._builder = RecordBuilder(0)
        self._pages: dict[tuple[int, int], list[tuple[int, bytes]]] = defaultdict(list)

    def flush(self, *changes: Record) -> Flush:
        start = self._builder.end_lsn
        for change in changes:
            self._builder.add(change)
        self.lsn = self._builder.end_lsn
        batches = {}
        for part in self._builder.take():
            for each in iter_records(part.payload):
                self.table.apply(each)
                if each.type is RecordType.PAGE:
                    page = bytearray(self.page(each.file_id, each.page) or bytes(PAGE))
                    apply_page(each, page)
                    self._pages[each.file_id, each.page].append((each.lsn, bytes(page)))
            batches[part.group] = encode_batch(
                group=part.group,
                volume=UUID(int=1).bytes,
                epoch=1,
                prev_lsn=0,
                flush_start=start,
                flush_end=self.lsn,
                time_us=0,
                vdl=0,
                record_count=part.record_count,
                groups=[0],
                records=part.payload,
            )
        return Flush(start, self.lsn, batches)

    def page(self, file_id: int, page: int, lsn: int | None = None) -> bytes | None:
        states = [content for at, content in self._pages[file_id, page] if lsn is None or at <= lsn]
        return states[-1] if states else None

    def changes(self, content: bytes, first: int = 0) -> list[Record]:
        """What is logged of writing these pages: only what differs from what is there."""
        found = []
        for at in range(0, len(content), PAGE):
            new, old = content[at : at + PAGE], self.page(FILE, first + at // PAGE) or bytes(PAGE)
            differ = {each for each in range(0, PAGE, 8) if new[each : each + 8] != old[each : each + 8]}
            starts = sorted(each for each in differ if each - 8 not in differ)
            ends = sorted(each + 8 for each in differ if each + 8 not in differ)
            ranges = [(start, new[start:end]) for start, end in zip(starts, ends, strict=True)]
            if ranges:
                found.append(records.page_delta(FILE, first + at // PAGE, ranges))
        return found

    async def read(self, part: FilePart, lsn: int) -> list[bytes | None]:
        self.reads += 1
        end = min(part.first_page + part.page_count, len(part.extents) * EXTENT_PAGES)
        return [self.page(part.file_id, page, lsn) for page in range(part.first_page, end)]


class Standby:
    """What a connection is to a feed: it keeps what it is given."""

    def __init__(self) -> None:
        self.wal = b""

    async def send(self, position: int, wal: bytes) -> None:
        assert position == BASE + len(self.wal)
        self.wal += wal

    def ask(self, _position: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def volume() -> Volume:
    it = Volume()
    it.flush(records.mkdir(b"pg_wal"))
    return it


@pytest.fixture
async def feeds(tmp_path: Path, volume: Volume) -> AsyncIterator[list[PostgresFeed]]:
    made: list[PostgresFeed] = []
    yield made
    for feed in made:
        await feed.close()


def open_feed(feeds: list[PostgresFeed], tmp_path: Path, volume: Volume, timeline: int) -> PostgresFeed:
    feeds.append(
        PostgresFeed(
            tmp_path,
            EngineAccount("us", os.getuid(), os.getgid(), switch=False),
            major=18,
            control=ControlFile(1, (100, 8, 10, 0, 64), SEGMENT, timeline),
            own=(0, 0, 0, 0, 0),
            table=volume.table,
            lsn=volume.lsn,
            read=volume.read,
            takeover=Takeover(cast("Any", None), cast("Any", None)),
        )
    )
    return feeds[-1]


def some_wal(count: int, seed: int = 1) -> Wal:
    r, wal = random.Random(seed), Wal(BASE, segment=SEGMENT)
    for _ in range(count):
        wal.add(r.randbytes(r.choice((30, 300, 7000))))
    return wal


def placed(*, file_id: int = FILE) -> list[Record]:
    return [records.extent(file_id, number, 0) for number in range(EXTENTS)]


def copy_of(wal: Wal) -> bytes:
    """The first segment of a timeline: behind where that begins, what was there before, or the last page again."""
    begun = wal.pages()
    repeated = begun[-PAGE:] * (SEGMENT // PAGE)
    return (begun + repeated)[:SEGMENT]


async def goes_on(feed: PostgresFeed, volume: Volume, wal: Wal, standby: Standby, count: int = 260) -> None:
    """All that is written is given out at once, over the boundaries of pages and extents."""
    r = random.Random(2)
    written = len(wal.content)
    for turn in range(count):
        wal.add(r.randbytes(r.choice((30, 300, 7000))))
        if turn % 3 and turn < count - 1:
            continue
        first = written // PAGE
        await feed.take(volume.flush(*volume.changes(wal.pages()[first * PAGE :], first)))
        assert standby.wal == bytes(wal.content), f"it stopped in page {len(standby.wal) // PAGE}"
        written = len(wal.content)
    assert EXTENT_PAGES + 10 < written // PAGE < EXTENTS * EXTENT_PAGES - 1, "it is what was to be tried"
    feed.on_update(SimpleNamespace(applied=wal.at))  # type: ignore[arg-type]
    assert (feed.replayed().lsn, feed.replayed().waits_since_s) == (volume.lsn, None)


async def test_a_segment_that_is_known_when_the_feed_opens(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CATCH_UP_PAGES", 8)
    wal = some_wal(20)
    volume.flush(records.create(FILE, name(2)), *placed())
    volume.flush(*volume.changes(copy_of(wal)))
    feed, standby = open_feed(feeds, tmp_path, volume, 2), Standby()
    await feed.attach(cast("Any", standby), BASE, 2)
    assert standby.wal == bytes(wal.content)
    await goes_on(feed, volume, wal, standby)
    assert volume.reads < len(wal.content) // PAGE // 8 + 5, "many pages at a time"


@pytest.mark.parametrize("made_as", [TEMPORARY, name(2)], ids=["a temporary name", "another timeline"])
async def test_a_segment_that_was_written_where_nobody_looked(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], monkeypatch: pytest.MonkeyPatch, made_as: bytes
) -> None:
    """While the timeline before was followed; its name may come in the flush with the last of its pages, or later."""
    monkeypatch.setattr(feed_module, "CATCH_UP_PAGES", 8)
    wal = some_wal(20)
    volume.flush(records.create(FILE - 1, name(1)), *placed(file_id=FILE - 1))
    feed = open_feed(feeds, tmp_path, volume, 1)
    await feed.attach(cast("Any", Standby()), BASE, 1)
    await feed.take(volume.flush(records.create(FILE, made_as), *placed()))
    await feed.take(volume.flush(*volume.changes(copy_of(wal))))
    if made_as != name(2):
        await feed.take(volume.flush(records.rename(FILE, made_as, name(2))))
    feed.timelines, standby = Timelines(2, {1: BASE + len(wal.content)}), Standby()
    await feed.attach(cast("Any", standby), BASE, 2)
    assert standby.wal == bytes(wal.content)
    await goes_on(feed, volume, wal, standby)


async def test_a_segment_that_was_seen_from_its_beginning_is_not_read(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed]
) -> None:
    feed, standby, wal = open_feed(feeds, tmp_path, volume, 1), Standby(), some_wal(0)
    await feed.attach(cast("Any", standby), BASE, 1)
    await feed.take(volume.flush(records.create(FILE, TEMPORARY), *placed()))
    await feed.take(volume.flush(records.rename(FILE, TEMPORARY, name(1))))
    await goes_on(feed, volume, wal, standby)
    assert volume.reads == 0


# ---- a window that is wrong


class Clock:
    """What the feed goes by."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock()
    monkeypatch.setattr(feed_module, "time", it)
    return it


async def write(feed: PostgresFeed, volume: Volume, pages: bytes) -> None:
    """The WAL is these pages, as far as it goes."""
    await feed.take(volume.flush(*volume.changes(pages)))


@pytest.mark.allowed_logs(r"was not what the volume has")
async def test_a_window_that_differs_from_the_volume_is_read_anew(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], clock: Clock
) -> None:
    wal = some_wal(5)
    volume.flush(records.create(FILE, name(1)), *placed())
    volume.flush(*volume.changes(wal.pages()))
    feed, standby = open_feed(feeds, tmp_path, volume, 1), Standby()
    await feed.attach(cast("Any", standby), BASE, 1)
    whole = bytes(wal.content)
    assert standby.wal == whole
    for _ in range(10):
        wal.add(random.Random(3).randbytes(9000))
    half = wal.pages()[: len(wal.pages()) // 2 // PAGE * PAGE]
    volume.flush(*volume.changes(half))  # passes it by: a fault
    for pages in (half + b"x" * PAGE, half + b"y" * PAGE, half + b"z" * PAGE):
        await write(feed, volume, pages)
        assert standby.wal == whole
        clock.now_s += STUCK_S * 0.4
    reads = volume.reads
    await write(feed, volume, wal.pages())
    assert (standby.wal, volume.reads) == (bytes(wal.content), reads + 1)
    assert feed.replayed().waits_since_s is not None, "nobody has replayed it yet"
    feed.on_update(SimpleNamespace(applied=wal.at))  # type: ignore[arg-type]
    assert feed.replayed().waits_since_s is None


async def test_a_record_that_takes_long_counts_as_lag_and_is_not_read_again_and_again(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], clock: Clock
) -> None:
    wal = some_wal(5)
    volume.flush(records.create(FILE, name(1)), *placed())
    volume.flush(*volume.changes(wal.pages()))
    feed, standby = open_feed(feeds, tmp_path, volume, 1), Standby()
    await feed.attach(cast("Any", standby), BASE, 1)
    whole = bytes(wal.content)
    feed.on_update(SimpleNamespace(applied=wal.at))  # type: ignore[arg-type]
    wal.add(random.Random(3).randbytes(50 * PAGE))
    pages, reads = wal.pages(), volume.reads
    late = []
    for count in range(6, 46):
        await write(feed, volume, pages[: count * PAGE])
        clock.now_s += STUCK_S / 10
        late.append(feed.replayed().waits_since_s is not None)
    assert (any(late[:10]), all(late[12:])) == (False, True)
    assert standby.wal == whole
    assert reads < volume.reads <= reads + 3
    await write(feed, volume, pages)
    assert standby.wal == bytes(wal.content)
    feed.on_update(SimpleNamespace(applied=wal.at))  # type: ignore[arg-type]
    assert feed.replayed().waits_since_s is None


async def test_a_timeline_that_is_left_behind_what_never_came_is_a_failure(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], clock: Clock
) -> None:
    """However long it has been waited for: nothing that comes is of that timeline any more."""
    wal = some_wal(5)
    volume.flush(records.create(FILE, name(1)), *placed())
    volume.flush(*volume.changes(wal.pages()))
    feed = open_feed(feeds, tmp_path, volume, 1)
    await feed.attach(cast("Any", Standby()), BASE, 1)
    wal.add(random.Random(3).randbytes(50 * PAGE))
    for count in (20, 25, 30):
        await write(feed, volume, wal.pages()[: count * PAGE])
        clock.now_s += STUCK_S
    feed.timelines = Timelines(2, {1: wal.at})
    await write(feed, volume, wal.pages()[: 31 * PAGE])
    assert "did not come" in str(await feed.wait_failed())


def test_who_is_stuck() -> None:
    stuck = Stuck()
    stuck.came(1000 + STUCK_BYTES)
    assert not stuck.at(1000, 50.0)
    assert not stuck.at(1000, 50.0 + 10 * STUCK_S), "so little may be there for long, while nobody writes"
    stuck.came(1001 + STUCK_BYTES)
    assert not stuck.at(1000, 50.0 + 11 * STUCK_S)
    assert stuck.at(1000, 50.1 + 12 * STUCK_S)
    assert not stuck.at(1008, 50.2 + 12 * STUCK_S), "it goes on"


@pytest.mark.parametrize("later", [True, False])
async def test_a_standby_that_asks_for_wal_that_is_gone_is_opened_anew(
    tmp_path: Path, volume: Volume, feeds: list[PostgresFeed], later: bool
) -> None:
    """A checkpoint of the writer has removed the segment since the mount. One that is not there yet is awaited."""
    volume.flush(records.create(FILE, name(1, NUMBER + 3 if later else NUMBER - 1)))
    feed = open_feed(feeds, tmp_path, volume, 1)
    await feed.attach(cast("Any", Standby()), BASE, 1)
    assert feed.failed.done() is later
    if later:
        assert "no longer there" in str(await feed.wait_failed())
