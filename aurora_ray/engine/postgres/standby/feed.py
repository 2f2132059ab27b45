"""What a hot standby of PostgreSQL is fed with: WAL, cut out of the durable log of the volume that its writer writes.

The writer's WAL segments are files of the volume like all others, so what is written to them stands in the volume's
log. The feed knows which files they are (`segments`), keeps the stretch of WAL whose records are not all here yet
(`window`), and gives whole records to the standby's WAL receiver (`connection`), which connects to a socket that only
the engine's account can reach. A standby begins at the start of a segment: what comes before the log that is being
followed is read from the volume. While nobody is connected, only names are followed.

When a writer goes on in another timeline (`timelines`), the stream of the one before ends where that was left, and the
standby asks for the next: its server and its sessions live on. That it has done so counts from the moment at which the
control file says it, which is before anything on the new timeline was acknowledged.

A call of `take` returns when the standby has room for more, so that nothing piles up here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import FilePart, Horizon, Replayed
from aurora_ray.engine.dirs import make_private
from aurora_ray.engine.postgres.control_file import CONTROL_PATH, ControlFile
from aurora_ray.engine.postgres.dirs import feed_dir
from aurora_ray.engine.postgres.settings import standby_settings
from aurora_ray.engine.postgres.standby.connection import Connection
from aurora_ray.engine.postgres.standby.files import FILE_PAGES_MAX, ConfigFiles
from aurora_ray.engine.postgres.standby.segments import WalFiles
from aurora_ray.engine.postgres.standby.window import PAGE_BYTES, WalWindow
from aurora_ray.engine.postgres.timelines import FIRST, Timelines, path_of_history
from aurora_ray.engine.progress import Progress
from aurora_ray.errors import AuroraError, EngineError
from aurora_ray.log.batch import inflate, payload
from aurora_ray.log.pages import scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aurora_ray.engine.account import EngineAccount
    from aurora_ray.engine.base import ReadFile
    from aurora_ray.engine.postgres.standby.protocol import Feedback, StatusUpdate
    from aurora_ray.engine.postgres.standby.segments import WalFile
    from aurora_ray.engine.postgres.standby.takeover import Takeover
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.flush import Flush

PORT: Final = 1  # in the name of the socket; no server has it
CATCH_UP_PAGES: Final = 128
HISTORY_PAGES_MAX: Final = 16
ASK_AFTER_S: Final = (0.005, 0.02, 0.1, 0.5)  # since the last WAL was given out; then again and again after the last
FEEDBACK_S: Final = 10.0  # what a standby said of its sessions counts for so long
STUCK_S: Final = 2.0
STUCK_BYTES: Final = 2 * PAGE_BYTES  # so much may be written behind the last whole record for long, as it is at hand
_PAGE_BITS: Final = 32

_log = logging.getLogger(__name__)


class Stuck:
    """Whether WAL comes behind a place and no record ends there: one that is long takes a moment, not so long."""

    def __init__(self) -> None:
        self._end = self._came = 0
        self._since_s = self._looked_s = 0.0

    def came(self, end: int) -> None:
        """Pages up to `end` have changed."""
        self._came = max(self._came, end)

    def at(self, end: int, now_s: float) -> bool:
        """Whole records end at `end`."""
        if end != self._end or self._came <= end + STUCK_BYTES:
            self._end, self._since_s = end, now_s
        return now_s - self._since_s > STUCK_S

    def looks(self, end: int, now_s: float) -> bool:
        """Whether to look, now and then: one that is very long is much to read."""
        looks = self.at(end, now_s) and now_s - self._looked_s > STUCK_S
        if looks:
            self._looked_s = now_s
        return looks


class PostgresFeed:
    """See StandbyFeed. Belongs to one event loop."""

    def __init__(
        self,
        run_dir: Path,
        account: EngineAccount,
        *,
        major: int,
        control: ControlFile,
        own: Sequence[int],
        table: FileTable,
        lsn: int,
        read: ReadFile,
        takeover: Takeover,
    ) -> None:
        """`table` is the volume's as of `lsn`; `own`, what the server would have by itself of the settings that must be
        at least its writer's (AT_LEAST_THE_WRITERS). `takeover` gets what users have changed of its configuration."""
        self._run_dir, self._dir = run_dir, feed_dir(run_dir)
        self._account = account
        self._major, self._control = major, control
        self._parameters = tuple(map(max, own, control.parameters))
        self._files = WalFiles(table, control.wal_segment_bytes)
        self.timelines = Timelines(control.timeline)
        self._control_page = _page_of(table, CONTROL_PATH)
        self._config = ConfigFiles(table)
        self.takeover = takeover
        self._lsn = lsn
        self._read = read
        self._turn = asyncio.Lock()  # who holds it moves the window
        self._window: WalWindow | None = None
        self._stale_read: set[int] = set()  # pages of such segments whose old content is in the window
        self._stuck = Stuck()
        self._given = 0
        self._most_given = 0  # ... from when all that there was had been given out
        self._walked_from: int | None = None  # all WAL from there on was looked through
        self._copies = 0  # see WalWindow
        self.checkpoints = 0
        self._progress = Progress(lsn)
        self._connection: Connection | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._horizon: tuple[Horizon, float] | None = None
        self.failed: asyncio.Future[AuroraError] = asyncio.get_running_loop().create_future()

    # ---- as a StandbyFeed

    @property
    def settings(self) -> Mapping[str, str]:
        """What the server's command line says of where its WAL comes from."""
        address = f"host={_quoted(str(self._dir))} port={PORT} user=aurora application_name=aurora"
        return {**standby_settings(major=self._major, parameters=self._parameters), "primary_conninfo": address}

    async def open(self) -> None:
        """Listens. Raises OSError, ConfigurationError, and what reading the volume raises."""
        self.timelines = await self._timelines_to(self.timelines.newest)
        make_private(self._dir, self._run_dir, self._account)
        path = self._dir / f".s.PGSQL.{PORT}"
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._on_connected, path=path)
        self._account.own(path, 0o600)

    async def take(self, flush: Flush) -> None:
        """The next flush of the log. Raises MalformedError, and what reading the volume raises."""
        came_s = time.monotonic()
        async with self._turn:
            self._lsn = flush.end
            await self._apply(flush)
            if self._window is None:
                self._progress.missed(came_s)
                return
            window = self._window
            window.look()
            if self._stuck.looks(window.end, came_s):
                await self._look_again(window)
                if not self._stuck.at(window.end, came_s):
                    _log.error("WAL at %X was not what the volume has, and was read anew", self._given)
            await self._give(window)
            if self._window is None:
                self._progress.missed(came_s)
            elif self.timelines.end_of(window.timeline) is not None:
                self._fail(EngineError(f"the rest of timeline {window.timeline} behind {self._given:X} did not come"))
            elif self._stuck.at(window.end, came_s):
                self._progress.missed(came_s)
            else:
                self._progress.given(self._given, flush.end, came_s)

    def replayed(self) -> Replayed:
        """How far the standby is."""
        return Replayed(self._progress.replayed_lsn, self._progress.waits_since())

    @property
    def given(self) -> int:
        """See StandbyFeed."""
        return self._most_given

    @property
    def horizon(self) -> Horizon | None:
        """What its sessions need; None if it has not said so lately."""
        if self._horizon is None or time.monotonic() - self._horizon[1] > FEEDBACK_S:
            return None
        return self._horizon[0]

    async def wait_failed(self) -> AuroraError:
        """Returns why this standby can follow no further and is to be opened anew."""
        return await asyncio.shield(self.failed)

    async def close(self) -> None:
        """Listens no more, and ends what there is."""
        if self._server is not None:
            self._server.close()
        if self._asking is not None:
            self._asking.cancel()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, self.takeover.close(), return_exceptions=True)
        self.failed.cancel()
        await asyncio.to_thread(_remove, self._dir)

    def _fail(self, error: AuroraError) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    # ---- WAL out of the log

    async def _apply(self, flush: Flush) -> None:
        """Names first: a file that is made in a flush is written to afterwards, and ids are never used again."""
        pages: dict[int, list[tuple[int, bytes, int]]] = {}
        changed: set[int] = set()
        for group, batch in flush.batches.items():
            plain = inflate(batch)
            others = scan(plain, len(plain) - len(payload(plain)), pages)
            if group == 0:
                self._files.apply(plain, others)
                changed |= self._config.apply(plain, others)
        changed |= {key >> _PAGE_BITS for key in pages if key >> _PAGE_BITS in self._config}
        if changed:
            await self._tell_files(changed, flush.end)
        if self._control_page is not None and self._control_page.file_id << _PAGE_BITS in pages:
            self.checkpoints += 1  # at most: the file says other things, too
            await self._look_for_switch()
        files, window = self._files, self._window
        for key in sorted(key for key in pages if key >> _PAGE_BITS in files):
            file = files.segment(key >> _PAGE_BITS)
            if window is not None and file is not None and file.timeline == window.timeline:
                await self._change(window, file, key & (1 << _PAGE_BITS) - 1, pages[key], flush.start)
            else:
                files.unseen(key >> _PAGE_BITS)

    async def _look_for_switch(self) -> None:
        """The control file has changed: which timeline does it name? Looked at if there is a segment of a later one."""
        if self._files.timeline <= self.timelines.newest or self._control_page is None:
            return
        (page,) = await self._read(self._control_page, self._lsn)
        newest, before = ControlFile.read(page or b"").timeline, self.timelines.newest
        if newest > before:
            self.timelines = await self._timelines_to(newest)
            _log.info("the writer went on in timeline %d", newest)
            if before not in self.timelines:
                self._fail(EngineError(f"the writer is on timeline {newest} now, to which {before} does not lead"))

    async def _timelines_to(self, newest: int) -> Timelines:
        if newest == FIRST:
            return Timelines(newest)
        return Timelines.read(newest, await self.history(newest) or b"")

    async def _tell_files(self, changed: Iterable[int], lsn: int) -> None:
        contents = {}
        for file in filter(None, map(self._config.of, changed)):
            pages = await self._read(FilePart(file.file_id, file.extents, 0, FILE_PAGES_MAX + 1), lsn)
            content = b"".join(page or bytes(PAGE_BYTES) for page in pages).rstrip(b"\0")
            if content and len(content) <= FILE_PAGES_MAX * PAGE_BYTES:  # an editor may empty it before it writes
                contents[os.fsdecode(file.name)] = os.fsdecode(content)
        if contents:
            self.takeover.take(contents)

    async def _change(
        self, window: WalWindow, file: WalFile, page: int, changes: list[tuple[int, bytes, int]], before_lsn: int
    ) -> None:
        assert file.start is not None, "it is a segment"  # noqa: S101
        position = file.start + page * PAGE_BYTES
        if position < window.base:
            return
        if file.stale and position not in self._stale_read:
            await self._read_stale(window, file, page, before_lsn)
        for _, batch, offset in changes:
            window.change(position, batch, offset)
        self._stuck.came(position + PAGE_BYTES)

    async def _read_stale(self, window: WalWindow, file: WalFile, page: int, lsn: int) -> None:
        """What some pages held before: this one, and those behind it that nothing has changed since."""
        assert file.start is not None, "it is a segment"  # noqa: S101
        position = file.start + page * PAGE_BYTES
        count = min(CATCH_UP_PAGES, self._control.wal_segment_bytes // PAGE_BYTES - page)
        places = range(position, position + count * PAGE_BYTES, PAGE_BYTES)
        places = places[: next((at for at, place in enumerate(places) if place in self._stale_read), count)]
        old = await self._read(FilePart(file.file_id, file.extents, page, len(places)), lsn)
        for place, content in zip(places, [*old, *[None] * (len(places) - len(old))], strict=True):
            window.put(place, content or bytes(PAGE_BYTES))
        self._stale_read = {known for known in self._stale_read if known >= window.base} | set(places)

    async def _look_again(self, window: WalWindow) -> None:
        """What stands in the window is no whole record for so long that it may not be what the volume has."""
        file = self._files.at(window.end, self.timelines.to_look_in(window.timeline))
        if file is None or file.start is None:
            return
        at, end = window.base, min(window.loaded, file.start + self._control.wal_segment_bytes)
        while at < end:
            count = min(CATCH_UP_PAGES, (end - at) // PAGE_BYTES)
            pages = await self._read(
                FilePart(file.file_id, file.extents, (at - file.start) // PAGE_BYTES, count), self._lsn
            )
            window.put(at, b"".join(page or bytes(PAGE_BYTES) for page in pages))
            at += count * PAGE_BYTES
        window.look()

    async def _give(self, window: WalWindow) -> None:
        """Sends what is whole."""
        self._copies = max(self._copies, window.copies)
        if window.parameters is not None and any(
            ours < theirs for ours, theirs in zip(self._parameters, window.parameters, strict=True)
        ):
            self._fail(EngineError("the writer has larger settings now than this standby was started with"))
        position, left = self._given, self.timelines.end_of(window.timeline)
        if left is not None:
            window.cut(left)
        if window.end > position:
            wal = window.take(position)
            self._given = window.end
            if self._most_given:
                self._most_given = max(self._most_given, self._given)
            if self._connection is not None:
                try:
                    await self._connection.send(position, wal)
                except OSError:
                    self.detach(self._connection)
            self._ask_soon()
        if left is not None and self._given >= left:
            self._leave(window.timeline, left)

    def _leave(self, timeline: int, left: int) -> None:
        """The standby has all of a timeline that the writer has left, and will ask for the next."""
        connection, self._connection, self._window = self._connection, None, None
        if self._given > left:
            self._fail(
                EngineError(f"timeline {timeline} was left at {left:X}, and WAL up to {self._given:X} given out")
            )
        elif connection is not None:
            connection.finish(self.timelines.after(timeline), left)

    # ---- as a Source

    def identity(self) -> tuple[int, int, int]:
        """System identifier, timeline, and up to where WAL was given out."""
        return self._control.system_identifier, self.timelines.newest, self._given

    def strayed(self, why: str) -> None:
        """A standby asks for what is not of the volume's WAL: it is to be opened anew."""
        self._fail(EngineError(why))

    async def history(self, timeline: int) -> bytes | None:
        """The history file of a timeline, as of now."""
        file = self._files.named(path_of_history(timeline).encode())
        if file is None:
            return None
        pages = await self._read(FilePart(file.file_id, file.extents, 0, HISTORY_PAGES_MAX), self._lsn)
        return b"".join(page or b"" for page in pages).rstrip(b"\0")

    async def attach(self, connection: Connection, position: int, timeline: int) -> None:
        """Brings a standby from `position` up to where the log is followed, or to where the timeline was left; goes on
        with the log from there."""
        async with self._turn:
            if self._connection is not None:
                self._connection.close()
            start = position - position % self._control.wal_segment_bytes
            self._walked_from = start if self._walked_from is None else min(start, self._walked_from)
            self._connection, self._given, self._stale_read, self._stuck = connection, start, set(), Stuck()
            window = self._window = WalWindow(start, self._control.wal_segment_bytes, timeline)
            await self._catch_up(window)
            if self._window is window:
                self._most_given = max(self._most_given, self._given)
            if self.timelines.end_of(timeline) is None:
                self._progress.given(self._given, self._lsn, time.monotonic())
            elif self._window is window:
                self._fail(EngineError(f"what there was of timeline {timeline} behind {self._given:X} is gone"))

    async def _catch_up(self, window: WalWindow) -> None:
        at = window.base
        more = True
        look_in = self.timelines.to_look_in(window.timeline)
        while more and (file := self._files.at(at, look_in)) is not None and self._window is window:
            first = (at - (file.start or 0)) // PAGE_BYTES
            pages = await self._read(FilePart(file.file_id, file.extents, first, CATCH_UP_PAGES), self._lsn)
            window.put(at, b"".join(page or bytes(PAGE_BYTES) for page in pages))
            if file.stale:
                self._stale_read.update(range(at, at + len(pages) * PAGE_BYTES, PAGE_BYTES))
            at += len(pages) * PAGE_BYTES
            more = window.look() and any(pages)
            await self._give(window)
        if more and self._window is window and self._files.goes_on_behind(at, look_in):
            # A checkpoint of the writer has removed it since this standby's mount: it would wait for it for ever.
            self._fail(EngineError(f"WAL at {at:X} is no longer there"))

    async def copies_since(self, position: int) -> bool:
        """Whether the WAL from there on has a record whose replay copies files of a database as they are at that time,
        or cannot be looked through."""
        async with self._turn:
            walked = self._walked_from
            if walked is None or self._copies >= position:
                return True
            segment_bytes = self._control.wal_segment_bytes
            window = WalWindow(position - position % segment_bytes, segment_bytes)
            at, taken, look_in = window.base, window.base, self.timelines.to_look_in(self.timelines.newest)
            while window.end < walked and at < walked + segment_bytes and (file := self._files.at(at, look_in)):
                part = FilePart(file.file_id, file.extents, (at - (file.start or 0)) // PAGE_BYTES, CATCH_UP_PAGES)
                pages = await self._read(part, self._lsn)
                window.put(at, b"".join(page or bytes(PAGE_BYTES) for page in pages))
                at += len(pages) * PAGE_BYTES
                window.look()
                if window.end > taken:
                    window.take(taken)
                    taken = window.end
            return window.copies >= position or window.end < walked

    def detach(self, connection: Connection) -> None:
        """Nothing is given to it any more."""
        if self._connection is connection:
            self._connection = self._window = None

    def on_update(self, update: StatusUpdate) -> None:
        """The standby says how far it is."""
        self._progress.applied(update.applied)

    def on_feedback(self, feedback: Feedback) -> None:
        """The standby says what its sessions need."""
        self._horizon = Horizon(feedback.xmin, feedback.catalog_xmin), time.monotonic()

    # ---- how far it has replayed

    def _ask_soon(self, turn: int = 0) -> None:
        """A standby says by itself what it has written, not what it has replayed: so it is asked, soon after."""
        if self._asking is not None:
            self._asking.cancel()
        wait_s = ASK_AFTER_S[min(turn, len(ASK_AFTER_S) - 1)]
        self._asking = asyncio.get_running_loop().call_later(wait_s, self._ask, turn)

    def _ask(self, turn: int) -> None:
        self._asking = None
        if self._connection is not None and self._progress.waits_since() is not None:
            self._connection.ask(self._given)
            self._ask_soon(turn + 1)

    # ---- connections

    async def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a server's callback is a task"  # noqa: S101
        self._serving.add(task)
        try:
            await Connection(self, f"{self._major}.0", reader, writer).serve()
        except AuroraError as error:
            _log.warning("a standby cannot be served: %s", error)
            writer.close()
        except asyncio.CancelledError:  # `close`; a server's callback that ends so, asyncio reports as a fault
            writer.close()
        finally:
            self._serving.discard(task)


def _page_of(table: FileTable, path: bytes) -> FilePart | None:
    """The first page of a file."""
    entry = table.lookup(path)
    return FilePart(entry.file_id, array("I", entry.extents), 0, 1) if entry is not None else None


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _remove(directory: Path) -> None:
    for path in directory.glob(".s.PGSQL.*"):
        path.unlink(missing_ok=True)
    if directory.is_dir():
        directory.rmdir()
