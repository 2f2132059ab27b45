"""What a replica is fed with: the writer's binary log, cut out of the durable log of the volume.

The binary log's files are files of the volume like all others, so what is written to them stands in the volume's log.
The feed knows which files they are (`files`), keeps the pages of the one that is being written from the end of what was
given out on, and gives whole events (`events`) to the replica's own receiver, which connects to a port of loopback with
a password of that run (`connection`). So a reader shows what is durable, and never speaks to the writer.

A replica begins where its own recovery has got to: at the end of the last whole group of events in the volume that it
was opened on. What is behind that of a file, and was not seen being written, is read from the volume.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from aurora_ray.engine.base import FilePart, Replayed
from aurora_ray.engine.mariadb.credentials import new_password
from aurora_ray.engine.mariadb.follow import events
from aurora_ray.engine.mariadb.follow.connection import Connection
from aurora_ray.engine.mariadb.follow.events import EventType
from aurora_ray.engine.mariadb.follow.files import BinlogFiles
from aurora_ray.engine.mariadb.follow.replica import Replica
from aurora_ray.engine.mariadb.settings import PAGE_BYTES, follow_settings
from aurora_ray.engine.progress import Progress
from aurora_ray.errors import AuroraError, EngineError
from aurora_ray.log.batch import inflate, payload
from aurora_ray.log.pages import apply_at, scan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aurora_ray.engine.base import Horizon, ReadFile
    from aurora_ray.engine.mariadb.administration import Administration
    from aurora_ray.engine.mariadb.follow.files import BinlogFile
    from aurora_ray.engine.mariadb.follow.protocol import Dump
    from aurora_ray.log.filetable import FileTable
    from aurora_ray.log.flush import Flush

USER: Final = "aurora_feed"
READ_PAGES: Final = 64
_PAGE_BITS: Final = 32
_POSITION_BITS: Final = 40
NO_BINLOG: Final = "the volume has no binary log yet: its writer begins one with its next start (aurora failover)"

_log = logging.getLogger(__name__)


class MariadbFeed:
    """See StandbyFeed. Belongs to one event loop."""

    def __init__(
        self, writer: tuple[str, int], admin: Administration, *, table: FileTable, lsn: int, read: ReadFile
    ) -> None:
        """`writer`: its version and the number of its server. `table` is the volume's as of `lsn`; `admin` gets into
        the replica."""
        self._version, self.server_id = writer
        self._replica, self._read = Replica(admin), read
        self._files = BinlogFiles(table)
        self._lsn = lsn
        self._password = new_password()
        self._turn = asyncio.Lock()  # who holds it moves what is given out
        self._start: tuple[BinlogFile, int] | None = None
        self._file: BinlogFile | None = None  # that is being given out, up to `_given`
        self._given = 0
        self._base = 0  # the first byte of `_content`, on a page's border
        self._content = bytearray()
        self._progress = Progress(lsn)
        self._connection: Connection | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self.failed: asyncio.Future[AuroraError] = asyncio.get_running_loop().create_future()

    # ---- as a StandbyFeed

    @property
    def settings(self) -> Mapping[str, str]:
        """What a server that follows is started with."""
        return follow_settings(self.server_id)

    @property
    def given(self) -> int:
        """0: a replica does not go on as the writer."""
        return 0

    @property
    def checkpoints(self) -> int:
        """As `given`."""
        return 0

    @property
    def horizon(self) -> Horizon | None:
        """None: the writer needs to keep nothing for a replica's sessions, which have their own rows."""
        return None

    async def open(self) -> None:
        """Finds where the replica begins, and listens. Raises EngineError, and what reading the volume raises."""
        newest = self._files.newest
        if newest is None:
            raise EngineError(NO_BINLOG)
        self._start = newest, await self._recovered_end(newest)
        self._server = await asyncio.start_server(self._on_connected, host="127.0.0.1", port=0)

    async def take(self, flush: Flush) -> None:
        """The next flush of the log. Raises MalformedError, and what reading the volume raises."""
        came_s = time.monotonic()
        async with self._turn:
            self._lsn = flush.end
            self._apply(flush)
            if self._files.restarted:
                self._fail(EngineError("the writer's binary log was begun anew"))
            if self._file is None:
                self._progress.missed(came_s)
                return
            await self._give()
            self._progress.given(self._place(), flush.end, came_s)
            self._more.set()

    def replayed(self) -> Replayed:
        """How far the replica is."""
        return Replayed(self._progress.replayed_lsn, self._progress.waits_since())

    async def wait_failed(self) -> AuroraError:
        """Returns why this replica can follow no further and is to be opened anew."""
        return await asyncio.shield(self.failed)

    async def close(self) -> None:
        """Listens no more, and ends what there is."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._serving, *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._replica.close()
        self.failed.cancel()

    async def begin(self) -> None:
        """The replica has started: has it follow. Raises EngineError."""
        assert self._server is not None and self._start is not None, "it is open"  # noqa: S101, PT018
        port = self._server.sockets[0].getsockname()[1]
        file, position = self._start
        await self._replica.follow(port, USER, self._password, file.name, position)
        self._watching = asyncio.create_task(self._watch(), name="watch a replica")

    async def _watch(self) -> None:
        """Learns how far the replica is, for as long as it goes on."""
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                place = self._place()
                if self._file is not None and self._progress.waits_since() is not None:
                    await self._replica.wait_replayed(self._file.name, self._given)
                    self._progress.applied(place)
        except AuroraError as error:
            self._fail(error)

    def _fail(self, error: AuroraError) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    def _place(self) -> int:
        return (self._file.number << _POSITION_BITS) + self._given if self._file is not None else 0

    # ---- events out of the log

    def _apply(self, flush: Flush) -> None:
        """Names first: a file that is made in a flush is written to afterwards, and ids are never used again."""
        pages: dict[int, list[tuple[int, bytes, int]]] = {}
        for group, batch in flush.batches.items():
            plain = inflate(batch)
            others = scan(plain, len(plain) - len(payload(plain)), pages)
            if group == 0:
                self._files.apply(plain, others)
        if self._file is None:
            return
        first = self._file.file_id << _PAGE_BITS
        for key in sorted(key for key in pages if key >> _PAGE_BITS == self._file.file_id):
            self._change((key - first) * PAGE_BYTES, pages[key])

    def _change(self, start: int, changes: list[tuple[int, bytes, int]]) -> None:
        if start < self._base:
            return  # what was given out does not change, but for a flag
        at = start - self._base
        missing = at + PAGE_BYTES - len(self._content)
        if missing > 0:
            self._content.extend(bytes(missing))
        page = self._content[at : at + PAGE_BYTES]
        for _, batch, offset in changes:
            apply_at(batch, offset, page)
        self._content[at : at + PAGE_BYTES] = page

    async def _give(self) -> None:
        """Sends what is whole, of this file and those after it, for as long as the replica is there: its connection may
        break at each wait (see `detach`)."""
        while (file := self._file) is not None:
            await self._give_file()
            following = self._files.numbered(file.number + 1)
            if following is None or not await self._has_begun(following) or self._file is not file:
                return
            self._file = following
            await self._load(following, 0)
            await self._send(events.rotation(self.server_id, following.name, len(events.MAGIC)))
            self._given = len(events.MAGIC)

    async def _give_file(self) -> None:
        for event in events.whole_events(self._content, self._given - self._base):
            whole = bytes(self._content[event.offset : event.offset + event.nbytes])
            if event.kind == EventType.FORMAT:
                self._check(whole)
                whole = events.format_of(whole, from_start=True)
            await self._send(whole)
            self._given += event.nbytes
        keep = self._given - self._given % PAGE_BYTES
        if keep > self._base:
            del self._content[: keep - self._base]
            self._base = keep

    async def _has_begun(self, file: BinlogFile) -> bool:
        """Whether a file's first event is whole. The one before it is then at its end."""
        return any(True for _ in events.whole_events(await self._pages(file, 0, 1), len(events.MAGIC)))

    async def _send(self, event: bytes) -> None:
        if self._connection is not None:
            try:
                await self._connection.send_event(event)
            except OSError:
                self.detach(self._connection)

    def _check(self, first: bytes) -> None:
        if not events.has_checksums(first):
            self._fail(EngineError("the writer's binary log has no checksums"))

    # ---- out of the volume

    async def _pages(self, file: BinlogFile, first: int, count: int) -> bytearray:
        found = await self._read(FilePart(file.file_id, file.extents, first, count), self._lsn)
        return bytearray(b"".join(page or bytes(PAGE_BYTES) for page in found))

    async def _load(self, file: BinlogFile, position: int) -> None:
        """Makes `_content` what the volume has of a file from a position on."""
        first = position // PAGE_BYTES
        self._base, self._content = first * PAGE_BYTES, bytearray()
        while more := await self._pages(file, first, READ_PAGES):
            self._content += more
            first += len(more) // PAGE_BYTES
            if len(more) < READ_PAGES * PAGE_BYTES or not any(more[-PAGE_BYTES:]):
                return

    async def _recovered_end(self, file: BinlogFile) -> int:
        """Behind the last whole group of a file, which is what a server on this volume recovers."""
        groups, position, first, content = events.Groups(len(events.MAGIC)), len(events.MAGIC), 0, bytearray()
        base = 0
        while True:
            more = await self._pages(file, first, READ_PAGES)
            content += more
            first += READ_PAGES
            for event in events.whole_events(content, position - base):
                groups.take(content, event, position)
                position += event.nbytes
            keep = position - position % PAGE_BYTES
            del content[: keep - base]
            base = keep
            if len(more) < READ_PAGES * PAGE_BYTES or not any(more[-PAGE_BYTES:]):
                return groups.end

    # ---- as a Source

    async def attach(self, connection: Connection, dump: Dump) -> None:
        """Begins with a replica at a place of the binary log; goes on with the log from there. Raises EngineError."""
        async with self._turn:
            number = int(dump.name.rpartition(".")[2] or 0) if dump.name.rpartition(".")[2].isdigit() else 0
            file = self._files.numbered(number)
            if file is None:
                raise EngineError(f"there is no binary log {dump.name}")
            if self._connection is not None:
                self._connection.close()
            self._connection, self._file = connection, file
            self._given = max(dump.position, len(events.MAGIC))
            await self._send(events.rotation(self.server_id, file.name, self._given))
            if self._given > len(events.MAGIC):
                await self._send_format(file)
            await self._load(file, self._given)
            await self._give()
            self._progress.given(self._place(), self._lsn, time.monotonic())
            self._more.set()

    async def _send_format(self, file: BinlogFile) -> None:
        content = await self._pages(file, 0, 1)
        for event in events.whole_events(content, len(events.MAGIC)):
            first = bytes(content[event.offset : event.offset + event.nbytes])
            self._check(first)
            await self._send(events.format_of(first, from_start=False))
            return

    def detach(self, connection: Connection) -> None:
        """Nothing is given to it any more."""
        if self._connection is connection:
            self._connection = self._file = None

    async def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"  # noqa: S101
        self._serving.add(task)
        try:
            await Connection(self, self._version, self._password, (reader, writer)).serve()
        finally:
            self._serving.discard(task)
