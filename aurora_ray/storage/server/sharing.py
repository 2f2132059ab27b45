"""How volumes share a node's appends, so that a busy one starves nobody.

What an append waits for in a node is the event loop, which checks and writes one message after the other, and the
disk, which syncs. While one volume is written to, both are done at once, in the loop. As soon as a second one is,
messages wait in a queue for each volume, and volumes take turns by bytes (`turns.py`). A turn that writes much is
synced by a thread, and the loop is free for the others meanwhile: a sync of megabytes holds up nobody's sync of a few
hundred bytes. What comes for a volume during its sync is written and synced together in its next turn. Little is synced
in the loop: where all CPUs are busy, a thread and then the loop have to wait for theirs, which takes longer than a sync
(measured with all syncs in threads: a quiet tenant's commits took two to three times as long).

What a volume has waiting is bounded: a connection that has sent more is not read from until half of it was taken.
Nothing that a message says counts before it is durable (`Appender.take_in`), and a seal that comes in the middle has it
refused, as if it had come later.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from aurora_ray.errors import AuroraError
from aurora_ray.log.wire import aim_of, append_reply
from aurora_ray.rpc.stream_server import RefusedError
from aurora_ray.storage.node.status import refusal
from aurora_ray.storage.server.holding import Hold
from aurora_ray.storage.server.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aurora_ray.rpc.stream_server import Line
    from aurora_ray.storage.segment.segment import Segment, VdlBox
    from aurora_ray.storage.server.append import Appender, Stored, Written

SHARED_FOR_S: Final = 1.0  # since appends of two volumes followed each other
WAITING_BYTES_MAX: Final = 8 << 20  # of one stream: beyond, it is not read from
THREAD_FROM_BYTES: Final = 1 << 20  # written by a turn
SYNC_THREADS: Final = 8  # the disk has as many syncs to do at once; volumes beyond that wait in turn
_END_S: Final = 5.0


class AppendCall:
    """One stream at the append port; messages and replies are bytes."""

    def __init__(self, appender: Appender, sharing: Sharing) -> None:
        self._appender, self._sharing = appender, sharing
        self._acked_lsn = 0
        self._waiting_bytes = 0
        self._box: VdlBox | None = None  # of the volume that the stream is for
        self._line: Line | None = None
        self._hold = Hold(appender.crowded, self._pay)

    @property
    def ended(self) -> bool:
        """Whether nobody is there to be answered."""
        return self._line is None

    def on_message(self, message: bytes) -> bytes | None:
        """Stores it; the reply. None while it has to wait for its turn. Raises RefusedError."""
        volume, has_records = aim_of(message)
        if self._line is not None and self._sharing.is_needed(volume, has_records=has_records):
            self._waiting_bytes += len(message)
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._line.listen(wanted=False)
            self._sharing.add(volume, self, message)
            return None
        try:
            stored = self._appender.store(message)
        except AuroraError as error:
            raise RefusedError(*refusal(self._appender.node, error)) from error
        return self._acknowledge(stored)

    def _pay(self, owed: int) -> None:
        """Replies that were held back."""
        for _ in range(owed):
            if self._line is not None:
                self._line.answer(self._reply())

    def on_begin(self, line: Line) -> None:
        """See Talker."""
        self._line = line

    def on_end(self) -> None:
        """The stream is over."""
        self._line = None
        self._hold.end()
        self._listen_to(None)

    def answer(self, message_bytes: int, stored: Stored) -> None:
        """A message that waited is durable."""
        reply = self._acknowledge(stored)
        self._waiting_bytes -= message_bytes
        if self._line is not None and reply is not None:
            self._line.answer(reply)
        if self._line is not None and self._waiting_bytes <= WAITING_BYTES_MAX // 2:
            self._line.listen(wanted=True)

    def refuse(self, error: Exception) -> None:
        """A message that waited cannot be stored: the call ends."""
        told = RefusedError(*refusal(self._appender.node, error))
        if self._line is not None:
            self._line.refuse(told)

    def _acknowledge(self, stored: Stored) -> bytes | None:
        """The reply, or None if it is to come later."""
        self._acked_lsn = max(self._acked_lsn, stored.lsn)
        if stored.box is not self._box:
            self._listen_to(stored.box)
        if self._line is not None and self._hold.takes(stored.crowded):
            self._appender.node.counters["held_acknowledgements"] += stored.crowded is not None
            return None
        return self._reply()

    def _listen_to(self, box: VdlBox | None) -> None:
        if self._box is not None:
            self._box.on_subscribed.discard(self._on_subscribed)
        self._box = box
        if box is not None and self._line is not None:
            box.on_subscribed.add(self._on_subscribed)

    def _on_subscribed(self) -> None:
        """The writer is told at once: a subscriber waits for news that nothing else would bring soon."""
        if self._line is not None and not self._hold.holds:
            self._line.send_message(self._reply())

    def _reply(self) -> bytes:
        return append_reply(self._acked_lsn, subscribed=self._box is not None and self._box.subscribed)


class _Waiting(NamedTuple):
    call: AppendCall
    message: bytes


class _Unsynced(NamedTuple):
    call: AppendCall
    message_bytes: int
    written: Written


class Sharing:
    """Of one node. `call` serves a stream."""

    def __init__(self, appender: Appender, clock: Callable[[], float] = time.monotonic) -> None:
        self._appender, self._clock = appender, clock
        self._turns: Turns[_Waiting] = Turns()
        self._last_volume = b""
        self._shared_s = -math.inf  # when appends of two volumes followed each other for the last time
        self._serving = False
        self._threads: ThreadPoolExecutor | None = None
        self._syncs: set[asyncio.Task[None]] = set()

    def call(self) -> AppendCall:
        """What serves a stream at the append port."""
        return AppendCall(self._appender, self)

    async def close(self) -> None:
        """Lets syncs end that are under way."""
        if self._syncs:
            await asyncio.wait(self._syncs, timeout=_END_S)
        if self._threads is not None:
            self._threads.shutdown(wait=not self._syncs)

    def is_needed(self, volume: bytes, *, has_records: bool) -> bool:
        """Whether a message of this volume has to wait for its turn."""
        if has_records and volume != self._last_volume:
            if self._last_volume:
                self._shared_s = self._clock()
            self._last_volume = volume
        return self._turns.has(volume) or (has_records and self._clock() - self._shared_s < SHARED_FOR_S)

    def add(self, volume: bytes, call: AppendCall, message: bytes) -> None:
        """At the end of the volume's queue."""
        self._turns.add(volume, _Waiting(call, message), len(message))
        self._serve_soon()

    def _serve_soon(self) -> None:
        """After a look at all sockets: who has come meanwhile takes part."""
        if self._turns.due and not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serving = False
        turn = self._turns.next()
        if turn is None:
            return
        volume, waiting = turn
        unsynced = self._write(waiting)
        if sum(each.message_bytes for each in unsynced) < THREAD_FROM_BYTES:
            self._finish_synced(volume, unsynced, _sync_all(_syncs_of(unsynced)))
        elif any(each.written.fresh for each in unsynced):
            sync = asyncio.get_running_loop().create_task(self._sync(volume, unsynced), name="storage-append-sync")
            self._syncs.add(sync)
            sync.add_done_callback(self._syncs.discard)
        else:
            self._finish(volume, unsynced)
        self._serve_soon()

    def _write(self, waiting: Sequence[_Waiting]) -> list[_Unsynced]:
        unsynced = []
        for call, message in waiting:
            if call.ended:  # refused, or gone: whoever sends it again has a new one
                continue
            try:
                unsynced.append(_Unsynced(call, len(message), self._appender.write(message)))
            except Exception as error:
                call.refuse(error)
        return unsynced

    async def _sync(self, volume: bytes, unsynced: Sequence[_Unsynced]) -> None:
        """In a thread."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="append-sync")
        syncs = _syncs_of(unsynced)
        error = await asyncio.get_running_loop().run_in_executor(self._threads, _sync_all, syncs)
        self._finish_synced(volume, unsynced, error)
        self._serve_soon()

    def _finish_synced(self, volume: bytes, unsynced: Sequence[_Unsynced], error: Exception | None) -> None:
        """`error`: of the sync."""
        kept = [segment for segment in _segments_of(unsynced) if not segment.closed]  # others were replaced or dropped
        if error is not None and kept:
            failure = self._appender.failed(kept, error)
            for each in unsynced:
                each.call.refuse(failure)
            unsynced = ()
        self._finish(volume, unsynced)

    def _finish(self, volume: bytes, unsynced: Sequence[_Unsynced]) -> None:
        for call, message_bytes, written in unsynced:
            try:
                call.answer(message_bytes, self._appender.take_in(written))
            except Exception as error:
                call.refuse(error)
        self._turns.done(volume)


def _segments_of(unsynced: Sequence[_Unsynced]) -> list[Segment]:
    return list(dict.fromkeys(segment for each in unsynced for segment in each.written.segments))


def _syncs_of(unsynced: Sequence[_Unsynced]) -> list[Callable[[bool], object]]:
    """One for each segment, for all that the turn wrote."""
    return [segment.store.sync for segment in _segments_of(unsynced)]


def _sync_all(syncs: Sequence[Callable[[bool], object]]) -> Exception | None:
    """What fails is given, without a traceback that would keep a database open."""
    try:
        for sync in syncs:
            sync(True)
    except Exception as error:  # RocksDB's errors have no common class
        return error.with_traceback(None)
    return None
