"""The hot path: one long-lived stream a writer, one write and one sync a message, in the event loop.

Nothing is indexed here and no thread is involved: a hop to a thread costs more than the write. A message is checked as
a whole before any of it is stored, so a refused message changes nothing; the refusal ends the stream.

The stream is served twice, by the same logic: at the node's address by gRPC's library, as all else, for whoever has
only that; and at the append port by `stream_server.py`, which takes half the CPU for a message. Writers use the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc.aio

from aurora_ray.errors import AuroraError, DiskFullError, UnknownVolumeError
from aurora_ray.log.batch import BatchHeader, check_records, verify
from aurora_ray.log.wire import append_reply, split_append
from aurora_ray.rpc.stream_server import RefusedError
from aurora_ray.storage.disk.keys import LSN_KEY
from aurora_ray.storage.node.status import refusal, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from aurora_ray.storage.node.node import Node
    from aurora_ray.storage.segment.segment import Segment, VdlBox


_DISK_CHECK_BYTES: Final = 1 << 20


class Stored(NamedTuple):
    """What a message brought: the highest flush_end, and where its volume's VDL is known; None if it was empty."""

    lsn: int
    box: VdlBox | None


class AppendCall:
    """One stream at the append port; messages and replies are bytes."""

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._acked_lsn = 0
        self._box: VdlBox | None = None  # of the volume that the stream is for
        self._send: Callable[[bytes], object] | None = None

    def on_message(self, message: bytes) -> bytes:
        """Stores it; the reply. Raises RefusedError."""
        try:
            stored = self._appender.store(message)
        except AuroraError as error:
            raise RefusedError(*refusal(self._appender.node, error)) from error
        self._acked_lsn = max(self._acked_lsn, stored.lsn)
        if stored.box is not self._box:
            self._listen_to(stored.box)
        return self._reply()

    def on_begin(self, send: Callable[[bytes], object]) -> None:
        """`send` sends a reply that nobody asked for."""
        self._send = send

    def on_end(self) -> None:
        """The stream is over."""
        self._send = None
        self._listen_to(None)

    def _listen_to(self, box: VdlBox | None) -> None:
        if self._box is not None:
            self._box.on_subscribed.discard(self._on_subscribed)
        self._box = box
        if box is not None and self._send is not None:
            box.on_subscribed.add(self._on_subscribed)

    def _on_subscribed(self) -> None:
        """The writer is told at once: a subscriber waits for news that nothing else would bring soon."""
        if self._send is not None:
            self._send(self._reply())

    def _reply(self) -> bytes:
        return append_reply(self._acked_lsn, subscribed=self._box is not None and self._box.subscribed)


class Appender:
    """Serves Append for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._unchecked_bytes = 0

    def call(self) -> AppendCall:
        """What serves a stream at the append port."""
        return AppendCall(self)

    async def serve(self, _: object, context: Any) -> None:
        """One stream by gRPC's library; messages and replies are bytes."""
        read, write, store = context.read, context.write, self.store
        acked_lsn = 0
        while True:
            message = await read()
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            try:
                stored = store(message)
            except AuroraError as error:
                await refuse(context, self.node, error)
            acked_lsn = max(acked_lsn, stored.lsn)
            await write(append_reply(acked_lsn, subscribed=stored.box is not None and stored.box.subscribed))

    def store(self, message: bytes) -> Stored:
        """Makes the message's batches durable. Raises AuroraError."""
        node = self.node
        self._unchecked_bytes += len(message)
        if self._unchecked_bytes > max(_DISK_CHECK_BYTES, node.config.disk_reserve_bytes // 16):
            # The background looks every second, in which the reserve could be used up.
            self._unchecked_bytes = 0
            node.check_disk()
        if node.disk_full:
            raise DiskFullError("less than the reserve is free on the node's disk; nothing was written")
        fresh, told, stored = self._check(split_append(message))
        written: list[Segment] = []
        put_key = LSN_KEY.pack
        try:
            for segment, header, batch in fresh:
                if segment not in written:
                    written.append(segment)
                segment.store.put_log(put_key(header.flush_end), batch)
            for segment in written:
                segment.store.sync(True)
        except Exception as error:  # RocksDB's errors have no common class
            node.reopen_after_error(written, error)
            raise DiskFullError(f"the log could not be written: {error}") from error
        for segment, header, _ in fresh:
            segment.link(header)
        for segment, vdl in told:
            segment.learn_vdl(vdl)
        node.counters["appended_batches"] += len(fresh)
        return stored

    def _check(
        self, batches: list[bytes]
    ) -> tuple[list[tuple[Segment, BatchHeader, bytes]], list[tuple[Segment, int]], Stored]:
        """The batches that are new, VDLs that the others tell, and what will be stored. Changes nothing."""
        segments = self.node.segments
        fresh: list[tuple[Segment, BatchHeader, bytes]] = []
        told: list[tuple[Segment, int]] = []
        chain_ends: dict[Segment, int] = {}
        highest_lsn, box = 0, None
        for batch in batches:
            header = verify(batch)
            segment = segments.get((header.volume, header.group))
            if segment is None:
                raise UnknownVolumeError(f"no segment of group {header.group} of volume {header.volume.hex()} here")
            box = segment.box
            at_lsn = chain_ends.get(segment, segment.scl)
            if not header.record_count:
                segment.check(header, 0)
                told.append((segment, header.vdl))
            elif segment.check(header, at_lsn):
                check_records(batch, header)
                fresh.append((segment, header, batch))
                if header.prev_lsn == at_lsn:
                    chain_ends[segment] = header.flush_end
            highest_lsn = max(highest_lsn, header.flush_end)
        return fresh, told, Stored(highest_lsn, box)
